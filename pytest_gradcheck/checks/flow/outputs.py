"""An output stage without a slope: a sigmoid, tanh or softmax after the last product.

That it saturates is no fault where the loss undoes it, as cross entropy does. It is one where the
gradient comes back as soon as what it is given has size 1, and the loss is no smaller for that.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from pytest_gradcheck.backends.layers import Change, Pass
from pytest_gradcheck.checks.flow.branches import base
from pytest_gradcheck.checks.flow.cause import PAIRED, Trial, suspects
from pytest_gradcheck.checks.flow.passes import Grouped, Passes, Statistics, constant, statistics
from pytest_gradcheck.checks.flow.symptom import Symptom
from pytest_gradcheck.limits import Limits
from pytest_gradcheck.numerics import depth
from pytest_gradcheck.numerics.intervals import of_mean

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

SMALL = 1e-4  # of a weight of attention, at which each place gets its share
LOST = math.log10(0.2)  # of the gradient with respect to the last product that is left
FITS = math.log10(0.1)  # of the loss with a slope: a model that fits needs none


def outputs(
    passes: Passes, seen: Statistics, limits: Limits
) -> tuple[tuple[Symptom, ...], tuple[Trial, ...]]:
    """The first output stage whose saturation costs the gradient, and the change that cures it."""
    for layer in _saturated(seen, limits.number("saturated"), passes.is_single):
        product = _feeder(passes.finite[0], layer.name)
        if product is None:
            continue
        name, index = product
        odd = [pair for pair in suspects(seen, passes.seen[0].source) if pair[0][0] != "init"]
        for change, where in (*odd, (("layer", index), name)):
            cure = _cure(passes, change, where, name) if change[0] in passes.probe.changes else None
            if cure is not None:
                return (_symptom(layer),), (cure,)
    return (), ()


def attention(passes: Passes) -> tuple[Symptom, ...]:
    """Joint weights of attention whose query and key get no gradient for being too large."""
    parameters = [one.parameters for one in passes.finite]
    for name in constant(parameters, lambda p: p.trainable and bool(p.silent)):
        made = passes.probe.rescaled(passes.states[0], {name: SMALL})
        known = {p.name: p for p in made.parameters} if made is not None and made.is_finite else {}
        if name in known and not known[name].silent:
            parts = next(p.silent for p in parameters[0] if p.name == name)
            told = (
                f"attention is saturated: the gradient of {' and '.join(parts)} in {name} is "
                f"exactly zero in every initialisation, and is not with {SMALL:g} times the weight"
            )
            return (Symptom("attention", name, told, (("factor", SMALL),)),)
    return ()


def _saturated(seen: Statistics, limit: float, is_single: bool) -> Iterator[Grouped]:
    for layer in seen.layers:
        if layer.kind == "activation" and layer.index < 0 and not math.isnan(layer.saturated[0]):
            share = of_mean(layer.saturated, 0.0 if is_single else math.inf)
            if share.side(limit) > 0:
                yield layer


def _feeder(one: Pass, name: str) -> tuple[str, int] | None:
    """Name and number of the last product before a layer."""
    spot = next(n for n, y in enumerate(one.layers) if base(y.name) == name)
    while spot >= 0 and one.layers[spot].kind != "linear":
        before = one.layers[spot].parents
        spot = max(before, default=-1) if before is not None else spot - 1
    return (base(one.layers[spot].name), one.layers[spot].index) if spot >= 0 else None


def _cure(passes: Passes, change: Change, where: str, product: str) -> Trial | None:
    """The change, where it brings the gradient back."""
    plain = passes.seen[:PAIRED]
    made = [passes.probe.measure(state, change) for state in passes.states[:PAIRED]]
    if not all(one.is_finite for one in (*plain, *made)):
        return None
    pairs = list(zip(plain, made, strict=False))
    left = [_ratio(_gradient(a, product), _gradient(b, product)) for a, b in pairs]
    fits = [_ratio(abs(a.loss or 0.0), abs(b.loss or 0.0)) for a, b in pairs]
    if not all(x < LOST for x in left) or not all(x > FITS for x in fits):
        return None
    seen = statistics(made)
    return Trial(change[0], seen.mean, seen.growth, math.nan, True, where)


def _ratio(a: float, b: float) -> float:
    found = depth.log_ratio(a, b)
    return 0.0 if math.isnan(found) else found


def _gradient(one: Pass, name: str) -> float:
    return max((y.gradient for y in one.layers if base(y.name) == name), default=math.nan)


def _symptom(layer: Grouped) -> Symptom:
    share = sum(layer.saturated) / len(layer.saturated)
    what = "samples" if layer.op == "softmax" else "units"
    return Symptom(
        "saturated",
        layer.name,
        f"the answer is saturated: {share:.0%} of the {what} of {layer.name} have next to no "
        f"slope, and the loss does not undo it",
        (("share", share),),
    )
