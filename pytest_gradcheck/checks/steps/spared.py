"""Calls of a large training whose gradient is not held against a fresh one: they go on like others.

A fresh gradient costs what a step costs. The first calls are held against one, and every call that
is unlike those that were: what it is given, what happens in it, what it differentiates,
what its optimizer received. Between them a gradient is taken as it arrives, and the update is
replayed from it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pytest_gradcheck.backends.steps import Call, Loop
from pytest_gradcheck.checks.steps import received
from pytest_gradcheck.checks.steps.contract import Contract
from pytest_gradcheck.checks.steps.measure import Run
from pytest_gradcheck.checks.steps.windows import Grads
from pytest_gradcheck.checks.steps.witnesses import Witnesses, right_form
from pytest_gradcheck.limits import Limits
from pytest_gradcheck.numerics.sizes import Sizes
from pytest_gradcheck.results import Finding

LARGE = 100_000  # numbers in the parameters or in a batch, beyond which gradients are the cost
UNSEEN = 7  # first calls that are held where nothing is a witness of what they differentiate
APART = 3.0  # a factor on what the held gradients span, beyond which one is unlike them
PLAIN = frozenset({"zero_grad", "backward", "step", "scheduler"})  # no clip, no loss scale


class Usual:
    """What the calls that were held against fresh gradients have in common.

    Args:
        contract: What is claimed.
        limits: Those of the call.
        has_rule: Whether updates are replayed by a rule; else the optimizer itself must be asked.
    """

    def __init__(self, contract: Contract, limits: Limits, has_rule: bool) -> None:
        self._contract, self._limits, self._has_rule = contract, limits, has_rule
        self._first = int(limits.number("step_fresh"))
        self._often = int(limits.number("step_calls"))
        self.is_plain = True
        self._witnesses = Witnesses()
        self._forms: set[Any] = set()
        self._ways: set[Any] = set()
        self._sizes: list[list[float]] = []  # of each tensor's gradient, then of all
        self._turns: list[float] = []
        self._last: tuple[Grads, float] = (), math.nan  # what arrived the call before, its norm
        self._now: tuple[list[float], float | None] | None = (
            None  # measured of a call, learned by nobody
        )
        self.has_spared = False  # whether a call was made without a fresh gradient before it
        self.is_open = False  # whether one that was taken late is another

    def asks(self, number: int, last: int, batch: Any) -> bool:
        """Whether the gradient of a call must be taken, before it."""
        is_double = number >= self._often and math.log2(number / self._often).is_integer()
        if self._witnesses.is_of_use:
            is_held = number <= self._first or (is_double and number > self._often)
        else:
            is_held = number <= max(self._first, UNSEEN) or is_double or number >= last
        is_asked = is_held or not self.is_plain or form(batch) not in self._forms
        self.has_spared |= not is_asked
        return is_asked

    def holds(self, call: Call, norms: Sizes) -> bool:
        """Whether a call that was made goes on like those before it."""
        if not self._is_usual(call) or _way(call) not in self._ways:
            return False
        if self._witnesses.is_of_use and not self._witnesses.agrees(call):
            return False
        sizes, turn = self._now = self._measured(call, norms)
        columns = zip(sizes, zip(*self._sizes, strict=True), strict=True)
        is_like = turn is None or _is_within(turn, self._turns)
        return is_like and all(_is_within(x, seen) for x, seen in columns)

    def learn(self, seen: Run) -> None:
        """Look at the last call."""
        call = seen.calls[-1]
        is_first = len(seen.calls) == 1
        self.is_plain &= self._is_usual(call, is_first) and len(seen.windows) == len(seen.calls)
        self.is_plain &= not is_first or _is_large(call, seen.windows[:1])
        if not self.is_plain:
            return
        window = seen.windows[-1]
        sizes, turn = self._now or self._measured(call, seen.sizes)
        self._last, self._now = (call.updates[0].received or (), sizes[-1]), None
        if window.is_spared:
            return
        is_near = all(a is b for a, b in zip(window.micro[0], window.retaken[0], strict=True))
        if not is_near and received.pair(seen, window, self._contract, self._limits).wrong:
            self.is_plain, self.is_open = False, self.has_spared
            return
        self._witnesses.learn(call)
        self._forms.add(form(window.batches[0]))
        self._ways.add(_way(call))
        self._sizes.append(sizes)
        self._turns += [] if is_first or turn is None else [turn]

    def _is_usual(self, call: Call, is_first: bool = False) -> bool:
        if call.is_altered and not is_first and not right_form(call.witness):
            return False
        return _is_plain(call) and (self._has_rule or bool(call.updates[0].oracle))

    def _measured(self, call: Call, norms: Sizes) -> tuple[list[float], float | None]:
        """The norms of what arrived, and how far it turned from what arrived the call before.

        The turn is None where calls are told by what they differentiate.
        """
        got, (last, size) = call.updates[0].received or (), self._last
        sizes = [0.0 if g is None else norms.of(g) for g in got]
        whole = math.hypot(*sizes)
        if self._witnesses.is_of_use:
            return [*sizes, whole], None
        pairs = zip(got, last, strict=False)
        inner = sum(float(np.vdot(a, b)) for a, b in pairs if a is not None and b is not None)
        return [*sizes, whole], 1 - inner / (whole * size) if whole * size else math.nan


def usual(loop: Loop, contract: Contract, limits: Limits) -> Usual | None:
    """Where to begin; None where every gradient is needed."""
    claims = (contract.max_norm, contract.max_value, contract.loss_scale)
    is_claimed = any(x is not None for x in (*claims, contract.nonfinite, contract.semi_gradient))
    is_one = contract.accumulate in (None, 1) and contract.weights == "samples"
    is_alone = len(loop.rules) == 1 and not getattr(loop, "is_beside", False)
    is_known = loop.can_see and not loop.is_foreign
    has_copies = any(p.shadow >= 0 for p in loop.parameters)
    if is_claimed or not (is_one and is_alone and is_known) or has_copies:
        return None
    return Usual(contract, limits, bool(contract.optimizer or loop.rules[0]))


def _is_within(value: float, seen: Sequence[float]) -> bool:
    return bool(seen) and min(seen) / APART <= value <= max(seen) * APART


def _is_plain(call: Call) -> bool:
    """One update by one gradient that is finite, nothing beside it."""
    if len(call.updates) != 1 or call.error or call.replaced or call.added:
        return False
    update = call.updates[0]
    is_odd = update.is_still or update.is_lost or update.is_astray
    words = {word for word, _ in call.events}
    return not is_odd and update.received is not None and words <= PLAIN


def _way(call: Call) -> tuple[Any, ...]:
    """What happened in a call, and who received a gradient."""
    words = tuple(word for word, _ in call.events)
    having = tuple(g is not None for g in call.updates[0].received or ())
    return words, having, tuple(call.trained)


def _is_large(call: Call, windows: Sequence[Any]) -> bool:
    batches = [batch for window in windows for batch in window.batches]
    return max([sum(x.size for x in call.before), *map(_count, batches)]) >= LARGE


def form(batch: Any) -> Any:
    """The form of a batch: what holds its arrays, their shapes and dtypes, words and counts.

    What is not known is like nothing else.
    """
    if isinstance(batch, Mapping):
        return tuple((key, form(batch[key])) for key in batch.keys())  # noqa: SIM118  # not its rows
    if isinstance(batch, (list, tuple)):
        return type(batch), tuple(map(form, batch))
    if hasattr(batch, "shape") and hasattr(batch, "dtype"):
        return tuple(batch.shape), str(batch.dtype)
    return batch if isinstance(batch, (str, bool, int, type(None))) else object()


def _count(batch: Any) -> int:
    """Numbers in a batch."""
    if isinstance(batch, Mapping):
        return sum(_count(batch[key]) for key in batch.keys())  # noqa: SIM118  # likewise
    if isinstance(batch, (list, tuple)):
        return sum(map(_count, batch))
    return math.prod(getattr(batch, "shape", ()))


def findings(seen: Run) -> list[Finding]:
    """At which calls a gradient was held against a fresh one, where not at all of them."""
    held = [w.first for w in seen.windows if not w.is_spared]
    if len(held) == len(seen.windows):
        return []
    listed = ", ".join(map(str, held))
    forms = {right_form(seen.calls[number - 1].witness) for number in held} - {""}
    spared = [seen.calls[w.first - 1] for w in seen.windows if w.is_spared]
    is_seen = all(right_form(call.witness) in forms for call in spared)
    others = (
        "differentiate the same loss by the same graph" if is_seen else "are like these in size"
    )
    return [
        Finding(
            code="step-spared",
            severity="note",
            message=f"the gradient was held against a fresh one at {len(held)} of "
            f"{len(seen.windows)} calls ({listed}), the others {others}, and their updates "
            f"were replayed from what arrived (step_fresh={len(seen.windows)} asks for all)",
            numbers=(("held", len(held)), ("calls", len(seen.windows))),
        )
    ]
