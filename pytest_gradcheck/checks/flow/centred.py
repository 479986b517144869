"""A last bias that is set to where the targets are: what the layers add is judged without it.

Beside such a bias what the layers add is small, as if it had vanished. That the bias is meant shows
in the loss, which is far larger without it; one beside weights that are too small does no such
thing.
"""

from __future__ import annotations

from collections.abc import Sequence

from pytest_gradcheck.checks.flow.passes import Passes, statistics
from pytest_gradcheck.checks.flow.symptom import Symptom
from pytest_gradcheck.checks.flow.symptoms import fading, still_fades
from pytest_gradcheck.limits import Limits

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

WORTH = 0.5  # of the loss without the bias that is left with it; other parts of a loss may remain


def centred(
    passes: Passes, found: Sequence[Symptom], limits: Limits, frozen: Sequence[str]
) -> tuple[Symptom, ...]:
    """The symptoms, without a gradient that seems to vanish beside a bias which is meant."""
    fades = fading(found)
    worst = statistics(passes.finite).worst if passes.finite and fades else None
    if worst is None or "bias" not in passes.probe.changes:
        return tuple(found)
    if not all(one.loss and not one.loss > WORTH * one.plain_loss for one in passes.finite):
        return tuple(found)  # an answer of zero would be as good
    last = next(y for y in statistics(passes.finite).layers if y.name == worst.layers[-1])
    if last.kind != "linear" or last.index < 0:
        return tuple(found)
    made = [passes.probe.measure(state, ("bias", last.index)) for state in passes.states]
    pairs = list(zip(passes.seen, made, strict=False))
    if not all(a.loss and b.loss and 0 < a.loss < WORTH * b.loss for a, b in pairs):
        return tuple(found)
    if still_fades(passes, made, limits, frozen):
        return tuple(found)
    with_it, without = pairs[0][0].loss or 0.0, pairs[0][1].loss or 0.0
    told = (
        f"the bias of {last.name} is at the targets (the loss is {with_it:.2g} with it and "
        f"{without:.2g} without), so that the gradient is judged without it"
    )
    note = Symptom("centred", last.name, told, (("loss", without),), "note")
    return (*(s for s in found if s not in fades), note)
