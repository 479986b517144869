"""A loss that is the same whatever the weights are: what comes back is rounding alone.

As the sum of a softmax, or the mean of what a normalisation centres. Its gradient has a size and
flows through all layers, but is another one in another precision.
"""

from __future__ import annotations

import math

from pytest_gradcheck.backends.layers import Pass
from pytest_gradcheck.checks.flow.passes import Passes
from pytest_gradcheck.checks.flow.symptom import Symptom

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

SAME = {"float16": 1e-2, "bfloat16": 1e-2}  # relative difference of losses, 1e-5 else
LEFT = 1e-3  # share of a gradient in one precision that is left in a finer one, if it is rounding


def still(passes: Passes) -> tuple[Symptom, ...]:
    """That the loss does not depend on the weights, where a second precision says so too."""
    if len(passes.finite) < len(passes.seen) or not _is_same(passes):
        return ()
    other, sizes = passes.probe.repeated(passes.states[0])
    weights = [p for p in passes.seen[0].parameters if len(p.shape) > 1 and p.gradient > 0]
    pairs = [(p.gradient, sizes[p.name]) for p in weights if p.name in sizes]
    if passes.probe.dtype == "float64":
        is_noise = [own < LEFT * found for own, found in pairs]
    else:
        is_noise = [found < LEFT * own for own, found in pairs]
    if not pairs or not all(is_noise):
        return ()
    own, found = max(pairs)
    told = (
        f"the loss is {passes.seen[0].loss:.4g} whatever the weights are, and their gradient "
        f"rounding alone: {own:.1e} in {passes.probe.dtype}, and {found:.1e} in {other}"
    )
    return (Symptom("still", "", told, (("gradient", own), ("other", found))),)


def _is_same(passes: Passes) -> bool:
    """Whether all initialisations have the same loss, and the last product hardly moves it."""
    near = SAME.get(passes.probe.dtype, 1e-5)
    losses = [one.loss for one in passes.seen if one.loss is not None]
    sizes = list(map(_size, passes.seen))
    if len(losses) < len(passes.seen) or max(losses) - min(losses) > near * max(sizes):
        return False
    ends = [y for y in passes.seen[0].layers if y.kind == "linear"][-1:]
    # An answer that is tiny moves nothing either; so it is asked what one of size 1 would.
    moved = [y.gradient * math.sqrt(y.size) * max(1.0, y.activation) for y in ends]
    return all(x <= near * sizes[0] for x in moved)


def _size(one: Pass) -> float:
    """What the loss is made of: its own size, or that of the last layer's output."""
    answers = [y.activation for y in one.layers[-1:] if math.isfinite(y.activation)]
    return max([abs(one.loss or 0.0), *answers])
