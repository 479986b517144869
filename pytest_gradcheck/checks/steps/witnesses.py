"""What calls are seen to differentiate: those that were held against fresh gradients, and others.

The loss of a call is that of the contract, its graph has the form of one whose gradient was right,
and what it left is what the optimizer was given: then its gradient is right, too.
"""

from __future__ import annotations

from pytest_gradcheck.backends.seen import Witness
from pytest_gradcheck.backends.steps import Call

# Of a loss that is computed twice from the same numbers; in lower precisions it must be the same.
ROUNDING = {"float64": 2.0**-50, "float32": 2.0**-21}
TELLING = 2.0**10  # roundings by which losses must differ, or the number says nothing of what it is
MOST = 3  # forms in a row that were never seen: then the next one is another one, too


class Witnesses:
    """The forms of calls whose gradients were right."""

    def __init__(self) -> None:
        self._forms: set[str] = set()
        self._values: list[float] = []  # losses of the contract
        self._missed = 0  # calls in a row whose gradients were right, of another form or none

    @property
    def is_of_use(self) -> bool:
        """Whether calls can be told by them."""
        return bool(self._forms) and self._missed < MOST

    def agrees(self, call: Call) -> bool:
        """Whether a call differentiates what calls did whose gradients were right."""
        return right_form(call.witness) in self._forms and self._tells(call.witness)

    def _tells(self, witness: Witness | None) -> bool:
        """Whether a loss is another number than those before: no large constant rules it."""
        if witness is None:
            return False
        values = [*self._values, witness.meant]
        least = TELLING * ROUNDING.get(witness.dtype, 0.0) * max(map(abs, values))
        return max(values) - min(values) >= least

    def learn(self, call: Call) -> None:
        """Look at a call whose gradient was right."""
        is_known = not self._forms or right_form(call.witness) in self._forms
        self._missed = 0 if is_known else self._missed + 1
        self._forms |= {right_form(call.witness)} - {""}
        self._values += [] if call.witness is None else [call.witness.meant]


def right_form(witness: Witness | None) -> str:
    """The form of what has the loss of the contract, and whose gradient has arrived; else empty."""
    if witness is None or not witness.has_arrived:
        return ""
    off = abs(witness.value - witness.meant)
    is_meant = off <= ROUNDING.get(witness.dtype, 0.0) * abs(witness.meant)
    return witness.form if is_meant else ""
