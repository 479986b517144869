"""What rounded products take from a gradient: TF32 and the like, in which GPUs multiply float32.

The same gradient is rounded otherwise where it is put together otherwise: of micro-batches, of a
compiled step. By how much is measured, where a gradient is to be called wrong: it is taken once
more with all digits of its products, where that can be set, and of a multiple of the loss, which
would be the same but for what kernels round inside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import numpy as np

from pytest_gradcheck.checks.steps.measure import Run
from pytest_gradcheck.checks.steps.windows import Grads, Window

Exactly = Callable[[], "AbstractContextManager[None] | None"]
Meant = Callable[[list[Grads]], Grads]

TIMES = 4.0  # what is rounded otherwise is off on both sides, and by luck little in one tensor
REPEATED = 0.1  # of what rounding does: a loss that is not repeated better shows nothing of it
MOST = 0.1  # of a gradient: what has lost more than that is told, whatever took it
FACTOR = 0.7  # no power of two, by which nothing is rounded otherwise
BENT = 1e-2  # of a gradient: it is no multiple of its cotangent, where it is off by more than this


def exactly(run: Run) -> AbstractContextManager[None] | None:
    """Products in full for a while; None where they are anyway."""
    found: Exactly | None = getattr(run.loop, "exactly", None)
    return found() if found else None


def doubts(run: Run, window: Window, meant: Meant) -> tuple[float, ...]:
    """For each tensor a norm that rounded products may add to it; empty where they do not.

    Args:
        run: The run.
        window: The calls that led to an update.
        meant: What fresh gradients of these calls should make of it.
    """
    others = list(_rounded_otherwise(run, window, meant))
    if not others:
        return ()
    own, again = meant(_taken(run, window)), meant(_taken(run, window))
    sizes = [0.0 if g is None else run.sizes.of(g) for g in own]
    whole, repeated = float(np.linalg.norm(sizes)), float(np.linalg.norm(_off(run, own, again)))
    found = [0.0] * len(sizes)
    for grads, most in others:
        off = _off(run, own, grads)
        length = float(np.linalg.norm(off))
        if not whole or not repeated <= REPEATED * length or length > most * whole:
            continue
        usual = length / whole  # for a tensor whose products happen to lose little
        found = [max(f, o, usual * s) for f, o, s in zip(found, off, sizes, strict=True)]
    return tuple(TIMES * f for f in found) if any(found) else ()


def _rounded_otherwise(run: Run, window: Window, meant: Meant) -> Iterator[tuple[Grads, float]]:
    """The same gradient rounded otherwise, and how much of it that may be."""
    if run.coarsest != "float32" or getattr(run.loop, "lowered", "") != "":
        return
    exact = exactly(run)
    if exact is not None:
        with exact:
            found = meant(_taken(run, window))
        yield found, np.inf
    scaled = getattr(run.loop, "scaled", None)
    if scaled is not None and (exact is not None or run.loop.device != "cpu"):
        with scaled(FACTOR):
            found = meant(_taken(run, window))
        yield found, BENT


def _taken(run: Run, window: Window) -> list[Grads]:
    """The fresh gradients of the calls, once more."""
    gradient = run.loop.gradient
    if window.is_retaken:
        gradient = getattr(run.loop, "seen_gradient", gradient)
    return [grads for _, grads in window.each(gradient)]


def _off(run: Run, one: Grads, other: Grads) -> list[float]:
    """Norms of the differences of tensors."""
    pairs = zip(one, other, strict=True)
    return [0.0 if a is None or b is None else run.sizes.apart(a, b) for a, b in pairs]
