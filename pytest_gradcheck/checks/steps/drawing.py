"""Steps that draw random numbers where their loss has none: noise on gradients, mixed batches."""

from __future__ import annotations

from collections.abc import Sequence
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


def is_drawn(
    loop: Loop, seen: Run, end: Any, contract: Contract, limits: Limits, batches: Sequence[Any]
) -> bool:
    """Whether what is wrong with the gradients is another from other random numbers.

    Where the loss draws some itself, what is wrong may follow from these: then it is not said.

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
    count, found = seen.windows[0].last, []
    for mark in (seen.windows[0].marks[0], end):
        with loop.held():
            loop.rewind(mark)
            if mark is end and hasattr(loop, "stir"):
                loop.stir()  # random keys of JAX are a part of its state
            again = run(loop, batches[:count], contract, 1)
            if not again.windows or any(call.error for call in again.calls):
                return False
            found.append(received.pair(again, again.windows[0], contract, limits))
    same, other = (np.linalg.norm(_off(p) - _off(windows[0])) for p in found)
    right = [flat(p.expected.raw, p.window.at) for p in found]
    is_fixed = np.linalg.norm(right[1] - right[0]) <= SAME * np.linalg.norm(right[0])
    return bool(is_fixed and other > OTHER * most and same < SAME * other)


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
        "augmented or mixed batches), so the gradients cannot be compared; draw the same in "
        "Training.loss, or check the step without them",
        numbers=(("error", error),),
    )
