"""Symptoms along a branch: the gradient fades or grows on its way back, or data on theirs."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pytest_gradcheck.backends.layers import Pass
from pytest_gradcheck.checks.flow import gains
from pytest_gradcheck.checks.flow.branches import Branch
from pytest_gradcheck.checks.flow.flows import FAR, power
from pytest_gradcheck.checks.flow.passes import Statistics
from pytest_gradcheck.checks.flow.symptom import Numbers, Symptom
from pytest_gradcheck.limits import Limits
from pytest_gradcheck.numerics import breaks, depth
from pytest_gradcheck.numerics.intervals import Interval, of_mean

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

FELT = 0.01  # share of the loss by which an answer that matters moves it
ALIKE = 0.3  # spread of one fade, in decades, where there is a single realisation


def attenuated(seen: Statistics, limits: Limits) -> list[Symptom]:
    """The gradient fades or grows in a branch, for certain in the worst one, or perhaps."""
    found: list[Symptom] = []
    for kind, sign in (("vanishing", -1), ("exploding", 1)):
        limit = math.log10(limits.number("vanish" if sign < 0 else "explode"))
        known = [b for b in seen.branches if not math.isnan(b.attenuation.mean)]
        by_side = {
            side: [b for b in known if b.attenuation.side(limit) == side] for side in (sign, 0)
        }
        for side, those in by_side.items():
            if those and not (side == 0 and by_side[sign]):
                worst = max(those, key=lambda b: sign * b.attenuation.mean)
                found.append(_attenuation(kind, sign, worst, side == 0))
    return _of_one_mind(found)


def _of_one_mind(found: list[Symptom]) -> list[Symptom]:
    """What may fade as well as grow is told once, the way in which it tends."""
    means = {dict(s.numbers)["attenuation"] for s in found if s.is_open}
    if len(found) < 2 or len(means) > 1 or not all(s.is_open for s in found):
        return found
    return found[:1] if means.pop() <= 1.0 else found[1:]


def _attenuation(kind: str, sign: int, branch: Branch, is_open: bool) -> Symptom:
    mean, low, high = branch.attenuation
    names = branch.layers
    step = breaks.largest(branch.profiles, sign)
    spot = step.layer if step is not None and step.is_single else None
    factor = depth.growth(mean, branch.depth)
    verb = "fades" if sign < 0 else "grows"
    how = f"by {factor:.2g} per layer" if spot is None else f"at {names[spot]}"
    way = f"in all from {names[-1]} back to {names[0]}"
    told = f"the gradient {verb} {how}: {10.0**mean:.1e} {way}"
    if is_open:
        told = f"the gradient changes by {_span(low, high)} {way}: it may {verb[:-1]} too far"
    return Symptom(
        kind,
        names[0 if spot is None else spot],
        told,
        (
            ("attenuation", 10.0**mean),
            ("low", 10.0 ** max(low, -300.0)),
            ("high", 10.0 ** min(high, 300.0)),
            ("growth", factor),
            ("growth_low", depth.growth(max(low, -300.0), branch.depth)),
            ("growth_high", depth.growth(min(high, 300.0), branch.depth)),
            ("depth", branch.depth),
            *_broken(step),
        ),
        is_open=is_open,
    )


def _span(low: float, high: float) -> str:
    """An interval of decades as factors, in words."""
    if high - low > FAR:
        return "an unknown factor"
    return f"{power(low):.1e} to {power(high):.1e}"


def _broken(step: breaks.Break | None) -> Numbers:
    """What speaks for one culprit, or for a uniform decay."""
    if step is None:
        return ()
    p = () if math.isnan(step.p) else (("break_p", step.p),)
    return (("break_share", step.share), *p)


def faded(passes: Sequence[Pass], seen: Statistics, limits: Limits) -> list[Symptom]:
    """The data fades on the way forward, so that the answer hardly depends on any layer.

    The gradient need not fade then: that of a layer is as small as its output at every one.
    """
    limit = 2 * math.log10(limits.number("vanish"))
    found = [(fade(passes, seen, branch), branch) for branch in seen.branches]
    certain = [(f, b) for f, b in found if f.side(limit) < 0]
    if not certain:
        return []
    mean, branch = min(((f.mean, b) for f, b in certain), key=lambda pair: pair[0])
    layers = seen.of(branch.layers)
    sizes = [list(row)[::-1] for row in zip(*(y.activations for y in layers), strict=True)]
    step = breaks.largest(sizes, -1)
    spot = step.layer if step is not None and step.is_single else None
    factor = depth.growth(mean, branch.depth + 1)
    return [
        Symptom(
            "vanishing",
            layers[0].name if spot is None else layers[-spot].name,
            f"activations fade by {factor:.2g} per layer: {10.0**mean:.0e} in all from what "
            f"{layers[0].name} is given to {layers[-1].name}",
            (
                ("attenuation", 10.0**mean),
                ("growth", factor),
                ("depth", branch.depth),
                *_broken(step),
            ),
        )
    ]


def fade(passes: Sequence[Pass], seen: Statistics, branch: Branch) -> Interval:
    """Log10 of the size of a branch's last output over that of what goes in.

    What normalisation takes away from large inputs is no loss, so that products with weights and
    activations must account for it. An answer that the loss feels may have any size.
    """
    layers = seen.of(branch.layers)
    logs = [
        _fade([(y.kind != "other", y.activations[k], y.given[k]) for y in layers], one.source)
        for k, one in enumerate(passes)
        if not _is_felt(one)
    ]
    known = [x for x in logs if math.isfinite(x)]
    return of_mean(known, ALIKE) if len(known) == len(passes) else of_mean([])


def _fade(layers: Sequence[tuple[bool, float, float]], source: float) -> float:
    is_counted, size, given = layers[0]
    given = source if is_counted and math.isnan(given) else given
    start = given if given > 0 else size
    return max(depth.log_ratio(layers[-1][1], start), gains.total(layers, start))


def _is_felt(one: Pass) -> bool:
    last = [y.kind for y in one.layers if y.op != "softmax"][-1]
    if one.loss is None or math.isnan(one.plain_loss) or last != "linear":
        return False  # a zero after a sigmoid is no small answer
    return abs(one.loss - one.plain_loss) > FELT * abs(one.plain_loss)
