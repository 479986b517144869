"""Gates that a bias shuts on purpose: saturated to the last unit, while the data go round them.

Highway layers begin so, with negative biases (Srivastava, Greff and Schmidhuber 2015, section 2.2).
Such a gate opens in training as long as a gradient reaches the product before it.
"""

from __future__ import annotations

from collections.abc import Sequence

from pytest_gradcheck.backends.layers import FLAT, SIGMOIDS
from pytest_gradcheck.checks.flow.branches import has_way_round
from pytest_gradcheck.checks.flow.cause import Trial
from pytest_gradcheck.checks.flow.passes import Grouped, Passes, Statistics
from pytest_gradcheck.checks.flow.symptom import Symptom

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

LEAST = 1e-3  # of the flow at the last product that opens a gate: one of about -9


def shut(
    passes: Passes, seen: Statistics | None, found: Sequence[Symptom], tried: Sequence[Trial]
) -> tuple[tuple[Symptom, ...], tuple[Trial, ...]]:
    """The symptoms and trials, a gate that is shut by its bias alone as a note without them."""
    saturated = next((s for s in found if s.severity == "fail"), None)
    cause = next((t for t in tried if t.restored), None)
    if seen is None or saturated is None or saturated.kind != "saturated" or saturated.is_open:
        return tuple(found), tuple(tried)
    gate = next(y for y in seen.layers if y.name == saturated.where)
    if cause is None or cause.change != "bias" or not _is_shut(gate, passes, seen):
        return tuple(found), tuple(tried)
    told = f"{gate.name} is shut ({gate.op} of {max(gate.activations):.1e}), and opens in training"
    note = Symptom("saturated", gate.name, told, saturated.numbers, "note")
    return (*(s for s in found if s is not saturated), note), ()


def _is_shut(gate: Grouped, passes: Passes, seen: Statistics) -> bool:
    """Whether it lets nothing through, is gone round, and gets a gradient."""
    products = [y for y in seen.layers if y.kind == "linear"]
    owner = gate.name.removesuffix(f".{gate.op}")
    feeder = next((y for y in products if y.name == owner), None)
    if gate.op not in SIGMOIDS or feeder is None or not max(gate.activations) < FLAT:
        return False
    least = min(a / b if b else 0.0 for a, b in zip(feeder.flows, products[-1].flows, strict=True))
    return least > LEAST and all(has_way_round(one, gate.name) for one in passes.finite)
