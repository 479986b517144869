"""Steps that draw random numbers where their loss has none: noise on gradients, mixed batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pytest_gradcheck.backends.steps import Loop
from pytest_gradcheck.checks.steps import received
from pytest_gradcheck.checks.steps.contract import Contract
from pytest_gradcheck.checks.steps.expected import flat
from pytest_gradcheck.checks.steps.measure import Run, run
from pytest_gradcheck.checks.steps.received import Pair
from pytest_gradcheck.limits import Limits
from pytest_gradcheck.results import Finding

OTHER = 0.02  # of what is wrong, by which it is another from other random numbers
SAME = 1e-3  # of that, by which it may be another from the same ones
LUCK = ("step-uphill", "step-too-long")  # where an update goes that is drawn


def is_drawn(
    loop: Loop, seen: Run, end: Any, contract: Contract, limits: Limits, batches: Sequence[Any]
) -> bool:
    """Whether what is wrong with the gradients is another from other random numbers.

    Where the loss draws some itself, what is wrong may follow from these: then it is said of what
    is drawn after the last backward pass alone, where that is seen.

    Args:
        loop: The training, set back to its start.
        seen: What was seen of it.
        end: The state of the generators after that, which the first update is drawn from now.
        contract: What is claimed.
        limits: The limits of the call.
        batches: Those of an epoch.
    """
    windows = [received.pair(seen, w, contract, limits) for w in seen.windows]
    most = max(float(np.linalg.norm(_off(p))) for p in windows)
    first = seen.windows[0]

    def again(stir: Callable[[], None]) -> Pair | None:
        with loop.held():
            loop.rewind(first.marks[0])
            stir()
            found = run(loop, batches[: first.last], contract, 1)
            if not found.windows or any(call.error for call in found.calls):
                return None
            return received.pair(found, found.windows[0], contract, limits)

    def everywhere() -> None:
        loop.rewind(end)
        if hasattr(loop, "stir"):
            loop.stir()  # random keys of JAX are a part of its state

    def counting() -> None:
        loop.passes = []  # type: ignore[attr-defined]  # of torch

    def late() -> None:
        loop.stirred = (passes, end)  # type: ignore[attr-defined]  # of torch

    same = again(counting)
    passes = sum(getattr(loop, "passes", [])[: first.last])
    ways = [everywhere, late] if passes else [everywhere]
    return same is not None and any(
        other is not None and _is_another(windows[0], same, other, most)
        for other in map(again, ways)
    )


def _is_another(first: Pair, same: Pair, other: Pair, most: float) -> bool:
    """Whether other numbers make another mistake, and the same ones the same; the loss has none."""
    right, moved = (flat(p.expected.raw, p.window.at) for p in (same, other))
    if np.linalg.norm(moved - right) > SAME * np.linalg.norm(right):
        return False
    still, changed = (float(np.linalg.norm(_off(p) - _off(first))) for p in (same, other))
    return changed > OTHER * most and still < SAME * changed


def _off(pair: Pair) -> np.ndarray:
    """What is wrong with a gradient; the update itself, where no gradient was seen."""
    at = pair.window.at
    if pair.got is None:
        return np.asarray(flat(pair.window.updates[-1].after, at) - flat(at, at))
    return np.asarray(flat(pair.got, at) - flat(pair.expected.clipped, at))


def finding(error: float) -> Finding:
    """What is told of such a step."""
    return Finding(
        code="step-random",
        severity="fail",
        message="the step draws random numbers that the loss does not draw (noise on gradients, "
        "augmented or mixed batches, shuffled labels), so the gradients cannot be compared; draw "
        "the same in Training.loss, or check the step without them",
        numbers=(("error", error),),
    )
