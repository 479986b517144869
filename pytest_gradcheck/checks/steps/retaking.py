"""Gradients taken once more: as the step takes them, and for each of several updates in a call."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from pytest_gradcheck.backends.seen import Clip
from pytest_gradcheck.backends.steps import Call, Loop, Update
from pytest_gradcheck.checks.steps.windows import Grads, Window
from pytest_gradcheck.numerics.sizes import Sizes
from pytest_gradcheck.results import Finding

NEAR = 1e-6  # of a gradient: below the tolerance of every precision


def rounds(loop: Loop, window: Window, call: Call, sizes: Sizes) -> Iterator[Window]:
    """The window that a call ends; where an optimizer steps again in it, one for each time."""
    parts = list(_turns(call.updates))
    clips = iter(call.clips)
    for turn, updates in enumerate(parts):
        if turn:
            first = window.first + len(window.batches) - 1
            window = _later(loop, window, updates[0], first)
        is_last = turn + 1 == len(parts)
        start = parts[turn - 1][-1].place + 1 if turn else 0
        events = call.events[start : None if is_last else updates[-1].place + 1]
        window.events += events
        window.clips += _own(events, clips)
        window.updates, window.turns = updates, len(parts)
        again = window.micro[-1] if window.is_spared else taken(loop, window, call, sizes)
        window.retaken.append(again)
        yield window


def _turns(updates: Sequence[Update]) -> Iterator[list[Update]]:
    """Updates in their order, until an optimizer steps once more."""
    turn: list[Update] = []
    for update in updates:
        if any(update.which == each.which for each in turn):
            yield turn
            turn = []
        turn.append(update)
    yield turn


def _own(events: Sequence[tuple[str, float]], clips: Iterator[Clip]) -> list[Clip]:
    """The clips among some events."""
    count = sum(word.startswith("clip") and math.isfinite(n) for word, n in events)
    return [clip for _, clip in zip(range(count), clips, strict=False)]


def _later(loop: Loop, window: Window, update: Update, first: int) -> Window:
    """The window of a later update of the same call, with the gradient at its own parameters."""
    batch, mark = window.batches[-1], window.marks[-1]
    again = getattr(loop, "seen_gradient", loop.gradient)
    loss, fresh = update.fresh or again(batch, update.before, mark)
    found = Window(window.number + 1, first, at=update.before, is_altered=window.is_altered)
    found.batches, found.marks, found.starts = [batch], [mark], [(0, 0)]
    found.losses, found.micro = [loss], [fresh]
    return found


def taken(loop: Loop, window: Window, call: Call, sizes: Sizes) -> Grads:
    """The gradient of the last batch as the step takes it, where that may be another one."""
    batch, mark, fresh = window.batches[-1], window.marks[-1], window.micro[-1]
    again = getattr(loop, "seen_gradient", loop.gradient)
    counted = len(window.batches) - len(window.idle)
    if counted > 1 or not call.updates:
        return again(batch, window.at, mark)[1] if call.is_altered and not call.fresh else fresh
    found = list(fresh)
    for update in window.updates:
        if update.fresh is None and _is_near(update, fresh, sizes) and not call.is_altered:
            continue
        _, grads = update.fresh or again(batch, update.before, mark)
        mine = held_by(update)
        found = [a if i in mine else b for i, (a, b) in enumerate(zip(grads, found, strict=True))]
    return found


def held_by(update: Update) -> set[int]:
    """Numbers of the parameters that an update is about: all, where that is not known."""
    mine = {i for i, hyper in enumerate(update.hyper) if hyper}
    return mine or set(range(len(update.before)))


def _is_near(update: Update, fresh: Grads, sizes: Sizes) -> bool:
    """Whether what arrived is about what was expected; also where that cannot be seen."""
    if update.received is None:
        return True
    for i in held_by(update):
        a, b = update.received[i], fresh[i]
        if a is None or b is None:
            if a is not b and np.any(b if a is None else a):
                return False
        elif not sizes.apart(a, b) <= NEAR * sizes.of(b):
            return False
    return True


def perturbed(radius: float | None = None) -> Finding:
    """What is told of a gradient that is right at other parameters only, so far uphill."""
    how = (
        "moves the parameters, differentiates there, and puts them back before the update: its"
        if radius is None
        else f"differentiates beside its parameters, moved along their gradient by {radius:.4g} at "
        f"first: its"
    )
    return Finding(
        code="step-perturbed",
        severity="warn",
        message=f"the step {how} gradient is right there; this is meant in sharpness-aware "
        f"minimisation (SAM) only",
        numbers=() if radius is None else (("radius", radius),),
    )
