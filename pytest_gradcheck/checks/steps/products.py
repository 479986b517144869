"""What rounded products take from a gradient: TF32 and the like, in which GPUs multiply float32.

The same gradient is rounded otherwise where it is put together otherwise: of micro-batches, of a
compiled step. By how much is measured, where a gradient is to be called wrong: it is taken once
more with all digits of its products.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import numpy as np

from pytest_gradcheck.checks.steps.measure import Run
from pytest_gradcheck.checks.steps.windows import Grads, Window

Exactly = Callable[[], "AbstractContextManager[None] | None"]

TIMES = 4.0  # what is rounded otherwise is off on both sides, and by luck little in one tensor
REPEATED = 0.1  # of what rounding does: a loss that is not repeated better shows nothing of it
MOST = 0.1  # of a gradient: what has lost more than that is told, whatever took it


def exactly(run: Run) -> AbstractContextManager[None] | None:
    """Products in full for a while; None where they are anyway."""
    found: Exactly | None = getattr(run.loop, "exactly", None)
    return found() if found else None


def doubts(run: Run, window: Window, meant: Callable[[list[Grads]], Grads]) -> tuple[float, ...]:
    """For each tensor a norm that rounded products may add to it; empty where they do not.

    Args:
        run: The run.
        window: The calls that led to an update.
        meant: What fresh gradients of these calls should make of it.
    """
    exact = exactly(run)
    if exact is None or run.coarsest != "float32" or bool(getattr(run.loop, "lowered", "")):
        return ()
    own, again = meant(_taken(run, window)), meant(_taken(run, window))
    with exact:
        full = meant(_taken(run, window))
    sizes = [0.0 if g is None else run.sizes.of(g) for g in own]
    off = [_apart(run, a, b) for a, b in zip(own, full, strict=True)]
    repeated = [_apart(run, a, b) for a, b in zip(own, again, strict=True)]
    whole, all_off = float(np.linalg.norm(sizes)), float(np.linalg.norm(off))
    if not whole or not np.linalg.norm(repeated) <= REPEATED * all_off:
        return ()
    usual = all_off / whole  # for a tensor whose products happen to lose little
    return tuple(TIMES * max(o, usual * size) for o, size in zip(off, sizes, strict=True))


def _taken(run: Run, window: Window) -> list[Grads]:
    """The fresh gradients of the calls, once more."""
    gradient = run.loop.gradient
    if window.is_retaken:
        gradient = getattr(run.loop, "seen_gradient", gradient)
    pairs = zip(window.batches, window.marks, strict=True)
    return [gradient(batch, window.at, mark)[1] for batch, mark in pairs]


def _apart(run: Run, one: np.ndarray | None, other: np.ndarray | None) -> float:
    return 0.0 if one is None or other is None else run.sizes.apart(one, other)
