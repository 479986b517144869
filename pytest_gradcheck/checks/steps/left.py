"""Batches that a step leaves out now and then, after their backward pass: spikes of the loss.

A loop that means to gather micro-batches and loses them does so in every window; one that throws
away what it does not like makes longer windows now and then. One that means to leave out some in
every window says so by ``accumulate=1``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from pytest_gradcheck.checks.steps.contract import Contract
from pytest_gradcheck.checks.steps.measure import Run
from pytest_gradcheck.checks.steps.windows import Window
from pytest_gradcheck.results import Finding

if TYPE_CHECKING:
    from pytest_gradcheck.checks.steps.received import Pair


def full(run: Run, contract: Contract) -> tuple[int, ...]:
    """Calls that a window has where nothing is left out, the likeliest first; none if not known.

    The first window and those at the end of an epoch may be short for other reasons. Where all
    others are equally long, nothing is left out of them; unless a window is claimed to be one call.
    """
    inner = {w.count for w in run.windows if w.first > 1 and w.last % run.epoch}
    if contract.accumulate == 1:
        return (1,)
    if contract.accumulate is not None:
        return (contract.accumulate,) if contract.accumulate in inner or len(inner) > 1 else ()
    return tuple(dict.fromkeys([min(inner), *([1] if len(inner) > 1 else [])])) if inner else ()


def meanings(run: Run, window: Window, contract: Contract) -> Iterator[Window]:
    """A window that is longer than it should be, without the calls before its last ones."""
    for wanted in full(run, contract):
        if window.count > wanted:
            yield from _last(window, wanted)


def _last(window: Window, wanted: int) -> Iterator[Window]:
    """A window of its last calls, with the gradients before or after the call."""
    working = [k for k in range(len(window.batches)) if k not in window.idle]
    gone, start = working[:-wanted], working[-wanted]
    events, clips = window.starts[start]
    kept = replace(
        window.without({*gone, *window.idle}),
        first=window.first + start,
        left=len(gone),
        events=window.events[events:],
        clips=window.clips[clips:],
    )
    yield kept
    if any(window.retaken[k] is not window.micro[k] for k in working[-wanted:]):
        retaken = [window.retaken[k] for k in working[-wanted:]]
        yield replace(kept, micro=retaken, is_retaken=True)


def findings(run: Run, pairs: Sequence[Pair]) -> list[Finding]:
    """What is told of batches that no update has anything of."""
    windows = [p.window for p in pairs if p.window.left]
    if run.unmoved:
        return [_unmoved(run)]
    if not windows:
        return []
    count = sum(window.left for window in windows)
    is_always = len(windows) == len(pairs)
    return [
        Finding(
            code="step-batch-skipped",
            severity="warn" if is_always else "note",
            message=f"{count} of {len(run.calls)} batches are left out after their backward pass, "
            f"such as that of call {windows[0].first - 1}: no update has anything of them",
            numbers=(("calls", count),),
        )
    ]


def _unmoved(run: Run) -> Finding:
    return Finding(
        code="step-batch-skipped",
        severity="note",
        message=f"{len(run.unmoved)} of {len(run.calls)} batches are left out, such as that of "
        f"call {run.unmoved[0]}: the step returns parameters and state as they were",
        numbers=(("calls", len(run.unmoved)),),
    )
