"""Why the flow fails: one factor changed at a time, measured again, until the flow is restored.

Each change is made on the way through the model, on initialisations that were measured before, so
that the numbers are paired. What restores the flow is the cause; changes are tried in the order of
what they cost a user, and of what the symptom suggests.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pytest_gradcheck.backends.layers import Change, Pass
from pytest_gradcheck.checks.flow import along, first, gains
from pytest_gradcheck.checks.flow.first import EXCESS
from pytest_gradcheck.checks.flow.gains import ODD
from pytest_gradcheck.checks.flow.passes import Passes, Statistics, statistics
from pytest_gradcheck.checks.flow.symptom import Symptom
from pytest_gradcheck.checks.flow.symptoms import RISK
from pytest_gradcheck.errors import UsageError
from pytest_gradcheck.limits import Limits

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

PAIRED = 2  # initialisations on which a change is measured
WIDER = {"twice as wide": 2, "four times as wide": 4}
ORDERS = {
    "nonfinite": ("activation", "smooth", "init", "input", "normalise"),
    "dead": ("bias", "input", "leak", "init", *WIDER, "normalise", "skip"),
    "saturated": ("bias", "input", "init", "normalise", "activation"),
    "exploding": ("init", "input", "activation", *WIDER, "normalise", "skip"),
    "vanishing": ("activation", "init", "smooth", "input", *WIDER, "normalise", "skip"),
    "first-loss": ("input", "init"),
    "offset": ("input", "init"),
}


@dataclass(frozen=True, slots=True)
class Trial:
    """One change and what was measured with it.

    Args:
        change: What was changed, and at which operation.
        attenuation: Mean log10 attenuation with it.
        growth: Factor per layer with it.
        dead: Largest share of dead units with it.
        restored: Whether the flow is as it should be.
        where: Layer that was changed, for a change of one.
    """

    change: str
    attenuation: float
    growth: float
    dead: float
    restored: bool
    where: str = ""


def trials(
    passes: Passes, seen: Statistics | None, symptom: Symptom, limits: Limits, kinds: set[str]
) -> tuple[Trial, ...]:
    """Changes in the order of their cost, up to the first that restores the flow."""
    order = ORDERS["saturated" if "saturated" in kinds else symptom.kind]
    source = passes.seen[0].source
    odd = suspects(seen, source) if seen is not None else ()
    if symptom.kind == "dead":  # a bias makes an output odd, too
        odd = ((("bias", -1), ""), *odd)
    others = [((name, -1), "") for name in order if name not in {c[0] for c, _ in odd}]
    tried: list[Trial] = []
    for change, where in (*odd, *others):
        if change[0] not in (*passes.probe.changes, *WIDER):
            continue
        made = _trial(change, where, passes, symptom, limits)
        if made is not None:
            tried.append(made)
        if made is not None and made.restored:
            break
    return tuple(tried)


def suspects(seen: Statistics, source: float) -> tuple[tuple[Change, str], ...]:
    """What is odd on its face, by the gain of each product with weights, and is tried first."""
    found: list[tuple[Change, str]] = []
    if not math.isnan(source) and not 1 / ODD < source < ODD:
        found.append((("input", -1), ""))
    layer = gains.odd(seen, source)
    if layer is not None:
        found.append((("layer", layer.index), layer.name))
    elif abs(gains.middle(gains.gains(seen, source))) > math.log10(ODD) / 2:
        found.append((("init", -1), ""))
    return tuple(found)


def _trial(
    change: Change, where: str, passes: Passes, symptom: Symptom, limits: Limits
) -> Trial | None:
    try:
        measured = _wider(passes, WIDER[change[0]]) if change[0] in WIDER else _on(passes, change)
    except UsageError:  # the changed model does not run
        return None
    if not measured:
        return None
    pairs = zip(measured, passes.seen, strict=False)
    measured = [replace(one, plain_loss=plain.plain_loss) for one, plain in pairs]
    finite = [one for one in measured if one.is_finite]
    if not finite:
        return Trial(change[0], math.nan, math.nan, math.nan, False, where)
    seen = statistics(finite)
    before = statistics(passes.seen[:PAIRED]) if passes.seen[0].is_finite else None
    is_idle = before is not None and before.branches == seen.branches
    shares = [max(y.dead) for y in seen.layers if y.dead and not math.isnan(y.dead[0])]
    return Trial(
        change=change[0],
        attenuation=seen.mean,
        growth=seen.growth,
        dead=max(shares, default=math.nan),
        restored=len(finite) == len(measured)
        and not is_idle
        and _is_healthy(finite, seen, symptom, limits),
        where=where,
    )


def _on(passes: Passes, change: Change) -> list[Pass]:
    return [passes.probe.measure(state, change) for state in passes.states[:PAIRED]]


def _wider(passes: Passes, factor: int) -> list[Pass]:
    """The same seeds with wider layers; nothing where the model cannot be had wider."""
    probe = passes.probe.widened(factor)
    if probe is None:
        return []
    seeds = range(passes.seed, passes.seed + min(PAIRED, len(passes.states)))
    return [probe.measure(probe.draw(seed)) for seed in seeds]


def _is_healthy(passes: Sequence[Pass], seen: Statistics, symptom: Symptom, limits: Limits) -> bool:
    low, high = (math.log10(limits.number(name)) for name in ("vanish", "explode"))
    if not seen.branches or not all(low < b.attenuation.mean < high for b in seen.branches):
        return False
    if along.faded(passes, seen, limits):
        return False
    if symptom.kind in ("first-loss", "exploding") and seen.excess and max(seen.excess) > EXCESS:
        return False
    if symptom.kind == "offset" and not max(map(first.ratio, passes)) < EXCESS:
        return False
    if symptom.kind == "dead" and (seen.dead_risk > RISK or seen.dead_networks):
        return False
    dead, saturated = (_worst(seen, what) for what in ("dead", "saturated"))
    return dead <= limits.number("dead") and saturated <= limits.number("saturated")


def _worst(seen: Statistics, what: str) -> float:
    values = [getattr(y, what) for y in seen.layers if y.index >= 0 or y.kind != "activation"]
    means = [sum(v) / len(v) for v in values if v and not math.isnan(v[0])]
    return max(means, default=0.0)
