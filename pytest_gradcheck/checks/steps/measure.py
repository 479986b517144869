"""A training being run: calls gathered to windows, each of which ends with an update."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pytest_gradcheck.backends.steps import Call, Clip, Loop, Update
from pytest_gradcheck.checks.steps.contract import Contract
from pytest_gradcheck.errors import UsageError
from pytest_gradcheck.numerics import precision

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

Grads = Sequence["np.ndarray | None"]
MOST_BATCHES = 64  # of an epoch: a loader without end is cut there
MOST_CALLS = 200
NEAR = 1e-6  # of a gradient: below the tolerance of every precision


@dataclass(slots=True, eq=False)
class Window:
    """The calls that led to an update.

    Args:
        number: Number of the update, from 1.
        first: Number of the first call, from 1.
        batches: What the calls were given.
        marks: The state of the generators before each.
        losses: The loss before each.
        micro: The fresh gradient before each.
        at: The parameters before.
        events: What was seen in all of them.
        updates: The steps of optimizers with which it ended.
        clips: The clips of the framework that were called.
        retaken: The gradients as they were taken after the call, where they may be others than
            before: under the conditions of the step, at the parameters of each update, with what
            else the loss depends on as the step left it.
        is_altered: Whether the conditions changed.
        is_retaken: Whether ``micro`` are the gradients of ``retaken``, which ``losses`` are not of.
        idle: Places of calls that did nothing, among the batches.
        again: The losses once more, after everything; empty until they are asked for.
    """

    number: int
    first: int
    batches: list[Any] = field(default_factory=list)
    marks: list[Any] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    micro: list[Grads] = field(default_factory=list)
    at: Sequence[np.ndarray] = ()
    events: list[tuple[str, float]] = field(default_factory=list)
    updates: Sequence[Update] = ()
    clips: list[Clip] = field(default_factory=list)
    retaken: list[Grads] = field(default_factory=list)
    is_altered: bool = False
    is_retaken: bool = False
    idle: list[int] = field(default_factory=list)
    again: list[float] = field(default_factory=list)

    @property
    def last(self) -> int:
        """Number of the last call."""
        return self.first + len(self.batches) - 1


@dataclass(slots=True, eq=False)
class Run:
    """Everything that was seen.

    Args:
        loop: The training.
        windows: One for each update.
        calls: Every call.
        skipped: Numbers of calls whose update was left out on purpose (an overflow).
        bad: The call with a batch that is not finite, and its number; None where none was made.
        left: Calls after the last update.
        zero: What a step with zero gradients moved, before anything else.
    """

    loop: Loop
    windows: list[Window] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    skipped: list[int] = field(default_factory=list)
    bad: Call | None = None
    left: int = 0
    zero: Sequence[tuple[str, Sequence[str], bool]] = ()

    @property
    def coarsest(self) -> str:
        """The coarsest precision of the parameters and of the loss."""
        return precision.coarsest({*(p.dtype for p in self.loop.parameters), self.loop.dtype})

    @property
    def names(self) -> list[str]:
        """Names of the parameters."""
        return [p.name for p in self.loop.parameters]


def batches_of(batches: Any) -> list[Any]:
    """The batches of an epoch.

    Raises:
        UsageError: There is none, or it is nothing to go through.
    """
    if not hasattr(batches, "__iter__") and not hasattr(batches, "__getitem__"):
        raise UsageError(
            f"Training.batches={batches!r} is not allowed; allowed: a list of batches, a loader"
        )
    found = []
    for batch in batches:
        found.append(batch)
        if len(found) == MOST_BATCHES:
            break
    if not found:
        raise UsageError("Training.batches is empty: give the batches of an epoch")
    return found


def run(loop: Loop, batches: Sequence[Any], contract: Contract, least: int) -> Run:
    """Call the step over a whole epoch, until there were enough calls and updates."""
    seen = Run(loop, zero=tuple(loop.idle(True)))
    loop.accumulate = contract.accumulate or 1
    wanted = max(len(batches), least * (contract.accumulate or 1))
    window = Window(1, 1)
    number = 0
    while number < wanted or (len(seen.windows) < least and number < min(4 * wanted, MOST_CALLS)):
        batch = batches[number % len(batches)]
        number += 1
        window = _called(seen, window, batch, number)
        if seen.calls[-1].error:
            return seen
        is_tried = contract.nonfinite in ("skip", "raise")
        if is_tried and seen.bad is None and number >= 3 and not window.batches:
            bad = _spoilt(batch)
            if bad is not None:
                seen.bad = loop.call(bad)
                if seen.bad.error or seen.bad.updates:
                    return seen
    seen.left = len(window.batches)
    return seen


def _called(seen: Run, window: Window, batch: Any, number: int) -> Window:
    """One call; the window that goes on, or the next one."""
    loop = seen.loop
    mark = loop.mark()
    loss, fresh = loop.gradient(batch, None, mark)
    call = loop.call(batch)
    seen.calls.append(call)
    if not window.batches:
        window.first, window.at = number, call.before
    window.batches.append(batch)
    window.marks.append(mark)
    window.losses.append(loss)
    window.micro.append(fresh)
    window.events += call.events
    window.clips += call.clips
    window.is_altered |= call.is_altered
    if call.is_idle:
        window.idle.append(len(window.batches) - 1)
    if call.updates:
        window.updates = call.updates
    window.retaken.append(_retaken(loop, window, call))
    if call.updates:
        seen.windows.append(window)
        return Window(window.number + 1, number + 1)
    words = [word for word, _ in call.events]
    is_finite = all(g is None or bool(np.all(np.isfinite(g))) for g in fresh)
    if "scaler step" in words or not is_finite:
        seen.skipped.append(number)
        return Window(window.number, number + 1)
    return window


def renew(seen: Run) -> None:
    """Take the fresh gradients of all windows anew."""
    for window in seen.windows:
        pairs = zip(window.batches, window.marks, strict=True)
        window.micro = [seen.loop.gradient(batch, window.at, mark)[1] for batch, mark in pairs]
        window.retaken = list(window.micro)


def _retaken(loop: Loop, window: Window, call: Call) -> Grads:
    """The gradient of the last batch as the step takes it, where that may be another one."""
    batch, mark, fresh = window.batches[-1], window.marks[-1], window.micro[-1]
    again = getattr(loop, "seen_gradient", loop.gradient)
    if len(window.batches) > 1 or not call.updates:
        return again(batch, window.at, mark)[1] if call.is_altered else fresh
    found, seen = list(fresh), set()
    for update in call.updates:
        is_first = update.which not in seen
        seen.add(update.which)
        if not is_first or (_is_near(update, fresh) and not call.is_altered):
            continue
        _, grads = again(batch, update.before, mark)
        mine = held_by(update)
        found = [a if i in mine else b for i, (a, b) in enumerate(zip(grads, found, strict=True))]
    return found


def held_by(update: Update) -> set[int]:
    """Numbers of the parameters that an update is about: all, where that is not known."""
    mine = {i for i, hyper in enumerate(update.hyper) if hyper}
    return mine or set(range(len(update.before)))


def _is_near(update: Update, fresh: Grads) -> bool:
    """Whether what arrived is about what was expected; also where that cannot be seen."""
    if update.received is None:
        return True
    for i in held_by(update):
        a, b = update.received[i], fresh[i]
        if a is None or b is None:
            if a is not b and np.any(b if a is None else a):
                return False
        elif not np.linalg.norm(a - b) <= NEAR * np.linalg.norm(b):
            return False
    return True


def _spoilt(batch: Any) -> Any:
    """A batch with one infinite number in its first floating-point array; None where none is."""
    if isinstance(batch, dict):
        for key, value in batch.items():
            inner = _spoilt(value)
            if inner is not None:
                return {**batch, key: inner}
        return None
    if isinstance(batch, (list, tuple)):
        for i, value in enumerate(batch):
            inner = _spoilt(value)
            if inner is not None:
                parts = [*batch[:i], inner, *batch[i + 1 :]]
                return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
        return None
    dtype = str(getattr(batch, "dtype", ""))
    if "float" not in dtype or not getattr(batch, "size", None):
        return None
    return batch * np.inf if isinstance(batch, np.ndarray) else batch * float("inf")
