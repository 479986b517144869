"""A training being run: calls gathered to windows, each of which ends with an update."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from pytest_gradcheck.backends.steps import Call, Loop
from pytest_gradcheck.checks.steps import retaking, spoiling
from pytest_gradcheck.checks.steps.contract import Contract
from pytest_gradcheck.checks.steps.spoiling import Spoilt
from pytest_gradcheck.checks.steps.windows import Grads, Window, are_finite
from pytest_gradcheck.errors import UsageError
from pytest_gradcheck.numerics import precision
from pytest_gradcheck.numerics.sizes import Sizes

if TYPE_CHECKING:
    from pytest_gradcheck.checks.steps.spared import Usual

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

MOST_BATCHES = 64  # of an epoch: a loader without end is cut there
MOST_CALLS = 200
LONGEST = 64  # calls without any update, after which none is waited for
PARTS = (
    "Training.batches looks like one batch, and each of its parts was taken for a batch: give a "
    "list of batches, such as batches=[(x, y)]"
)


@dataclass(slots=True, eq=False)
class Run:
    """Everything that was seen.

    Args:
        loop: The training.
        windows: One for each update.
        calls: Every call.
        epoch: Batches of an epoch.
        are_parts: Whether the batches look like the parts of one.
        skipped: Numbers of calls whose update was left out on purpose (an overflow).
        bad: What the step did with a batch that is not finite; None where none was made.
        left: Calls after the last update.
        unmoved: Numbers of calls that returned parameters and state as they were.
        zero: What a step with zero gradients moved, before anything else.
        sizes: Norms of gradients and parameters, into which nobody writes.
        clipping: Numbers of the tensors by whose norm the optimizer itself clips; empty where it
            does not, None where nobody asked.
    """

    loop: Loop
    windows: list[Window] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    epoch: int = 0
    are_parts: bool = False
    skipped: list[int] = field(default_factory=list)
    bad: Spoilt | None = None
    left: int = 0
    unmoved: list[int] = field(default_factory=list)
    zero: Sequence[tuple[str, Sequence[str], bool]] = ()
    sizes: Sizes = field(default_factory=Sizes)
    clipping: set[int] | None = None

    @property
    def coarsest(self) -> str:
        """The coarsest precision of the parameters and of the loss."""
        return precision.coarsest({*(p.dtype for p in self.loop.parameters), self.loop.dtype})

    @property
    def names(self) -> list[str]:
        """Names of the parameters."""
        return [p.name for p in self.loop.parameters]


def some_of(names: Sequence[str]) -> str:
    """The first of some names, and how many more there are."""
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def percent(share: float) -> str:
    """A share in percent, whole where it is large."""
    return f"{share:.0%}" if share >= 0.1 else f"{100 * share:.2g} %"


def batches_of(batches: Any) -> list[Any]:
    """The batches of an epoch; of a long list the first ones, and the last, which may be short.

    Raises:
        UsageError: There is none, or it is nothing to go through.
    """
    if not hasattr(batches, "__iter__") and not hasattr(batches, "__getitem__"):
        raise UsageError(
            f"Training.batches={batches!r} is not allowed; allowed: a list of batches, a loader"
        )
    if isinstance(batches, (list, tuple)) and len(batches) > MOST_BATCHES:
        return [*batches[: MOST_BATCHES - 1], batches[-1]]
    found = []
    for batch in batches:
        found.append(batch)
        if len(found) == MOST_BATCHES:
            break
    if not found:
        raise UsageError("Training.batches is empty: give the batches of an epoch")
    return found


def _are_parts(batches: Sequence[Any]) -> bool:
    """Whether what was given as batches is arrays, or the names of a dictionary: a batch, maybe."""
    return all(isinstance(batch, str) or hasattr(batch, "shape") for batch in batches)


def run(
    loop: Loop,
    batches: Sequence[Any],
    contract: Contract,
    least: int,
    usual: Usual | None = None,
) -> Run:
    """Call the step over a whole epoch, until there were enough calls and updates.

    With ``usual``, calls that go on like others are made without a fresh gradient.
    """
    seen = Run(loop, epoch=len(batches), zero=tuple(loop.idle(True)))
    seen.are_parts = _are_parts(batches)
    loop.accumulate = contract.accumulate or 1
    wanted = max(len(batches), least * (contract.accumulate or 1))
    window = Window(1, 1)
    number = 0
    while number < wanted or (len(_moved(seen)) < least and number < _patience(seen, wanted)):
        batch = batches[number % len(batches)]
        number += 1
        is_asked = usual is None or usual.asks(number, wanted, batch)
        loop.is_witnessed = usual is not None and usual.is_plain
        window = _called(seen, window, batch, number, None if is_asked else usual)
        if seen.calls[-1].error:
            return seen
        if usual is not None:
            usual.learn(seen)
            if usual.is_open:
                return seen
        if contract.nonfinite and seen.bad is None and number >= 3 and not window.batches:
            seen.bad = _spoilt(seen, contract.nonfinite, batch)
    seen.left = len(window.batches)
    _leave_out(seen)
    return seen


def doubted(run: Run, g: np.ndarray | None) -> float:
    """The norm by which a fresh gradient may be off: at a kink, each side has one of its own."""
    return float(getattr(run.loop, "kinks", {}).get(id(g), (g, 0.0))[1])


def _patience(seen: Run, wanted: int) -> int:
    """After how many calls no further update is waited for."""
    return MOST_CALLS if _moved(seen) else min(max(4 * wanted, LONGEST), MOST_CALLS)


def _moved(seen: Run) -> list[Window]:
    """The windows that end with an update of something."""
    return [w for w in seen.windows if not all(u.is_still for u in w.updates)]


def _leave_out(seen: Run) -> None:
    """Take calls that returned everything as it was for no updates, if others are some."""
    moved = _moved(seen)
    if moved and len(moved) < len(seen.windows):
        seen.unmoved = [w.last for w in seen.windows if w not in moved]
        seen.windows = moved
        for number, window in enumerate(moved, start=1):
            window.number = number


def _called(
    seen: Run, window: Window, batch: Any, number: int, usual: Usual | None = None
) -> Window:
    """One call; the window that goes on, or the next one.

    With ``usual``, its fresh gradient is taken afterwards, and only if it is unlike others.
    """
    loop = seen.loop
    mark = loop.mark()
    loss, fresh = (math.nan, ()) if usual else _fresh(seen, batch, mark, number)
    call = loop.call(batch)
    if usual and not call.error:
        window.is_spared = usual.holds(call, seen.sizes)
        if not window.is_spared:
            loss, fresh = loop.gradient(batch, call.before, mark)
        elif (got := call.updates[0].received) is not None:
            fresh = got
    # Where several losses are differentiated in a call, that before the update counts.
    first = call.updates[0].fresh if call.updates else None
    loss, fresh = first or call.fresh or (loss, fresh)
    seen.calls.append(call)
    if not window.batches:
        window.first, window.at, window.lying = number, call.before, call.lying
    window.batches.append(batch)
    window.marks.append(mark)
    window.starts.append((len(window.events), len(window.clips)))
    window.losses.append(loss)
    window.micro.append(fresh)
    window.is_altered |= call.is_altered
    if call.is_idle:
        window.idle.append(len(window.batches) - 1)
    if not call.updates:
        window.events += call.events
        window.clips += call.clips
        window.retaken.append(retaking.taken(loop, window, call, seen.sizes))
    else:
        for done in retaking.rounds(loop, window, call, seen.sizes):
            seen.windows.append(done)
        return Window(seen.windows[-1].number + 1, number + 1)
    words = [word for word, _ in call.events]
    if "scaler step" in words or not are_finite(fresh):
        seen.skipped.append(number)
        return Window(window.number, number + 1)
    return window


def _fresh(seen: Run, batch: Any, mark: Any, number: int) -> tuple[float, Grads]:
    """Loss and gradient before a call."""
    try:
        return seen.loop.gradient(batch, None, mark)
    except UsageError as error:
        if number <= seen.epoch and seen.are_parts:
            raise UsageError(f"{error}; {PARTS}") from error
        raise


def _spoilt(seen: Run, policy: str, batch: Any) -> Spoilt | None:
    """What the step does with a batch that is not finite; one that is skipped is gone on from."""
    loop, number = seen.loop, len(seen.calls)
    count = max(loop.accumulate, len(seen.windows[-1].batches) if seen.windows else 1)
    bad = spoiling.found(loop, batch, count)
    if bad is None:
        return None
    with loop.held():
        made = bad.made(loop, 0)
    # Where calls are gathered, whoever counts only good ones would be out of step with us.
    is_gone_on_from = policy == "skip" and made.keeps(policy) and count == 1
    return bad.made(loop, number) if is_gone_on_from else made
