"""NumPy: the gradient of a training's loss by central differences, element by element."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pytest_gradcheck.errors import UsageError

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

STEP = 6e-6  # cube root of the unit in the last place of float64: best for central differences
KINK = 1e-3  # of a slope, above which what is apart on both sides is looked at once more
LONGER = 10.0  # times the step, at which a smooth point is that much farther apart
MOST = 5000  # elements that are differentiated one by one: each costs the loss twice


def require_few(point: Sequence[np.ndarray]) -> None:
    """Refuse what would take too long.

    Raises:
        UsageError: There are too many numbers.
    """
    if sum(x.size for x in point) > MOST:
        raise UsageError(
            f"more than {MOST} parameters are too many for differences: give Training.grad, a "
            f"function grad(params, batch)"
        )


def central(
    loss: Callable[[], Any], point: Sequence[np.ndarray], start: float
) -> list[tuple[np.ndarray, float]]:
    """The gradient of a loss by arrays of float64 that it reads, and that are left as they were.

    Beside each array of it: by how much it may be off. At a kink a gradient may be the slope on
    either side, or any one between them: the norm of half the difference of both.

    Args:
        loss: The loss at what stands in the arrays.
        point: The arrays.
        start: The loss at the point.
    """
    found = []
    for x in point:
        g, jumps = np.zeros_like(x), np.zeros_like(x)
        for k in np.ndindex(x.shape):
            h = STEP * max(1.0, abs(float(x[k])))
            right, left, noise = _sides(loss, x, k, h, start)
            g[k] = (right + left) / 2
            jump = abs(right - left) / 2
            if jump > KINK * max(abs(right), abs(left)) + noise:
                # What bends is ten times as far apart then; a kink is what it was.
                right, left, _ = _sides(loss, x, k, LONGER * h, start)
                jumps[k] = jump if abs(right - left) / 2 < 2 * jump else 0.0
        found.append((g, float(np.linalg.norm(jumps))))
    return found


def _sides(
    loss: Callable[[], Any], x: np.ndarray, k: tuple[int, ...], h: float, start: float
) -> tuple[float, float, float]:
    """The slopes on both sides of an element, and their rounding."""
    kept = x[k]
    try:
        x[k] = kept + h
        up = float(np.asarray(loss(), np.float64))
        x[k] = kept - h
        down = float(np.asarray(loss(), np.float64))
    finally:
        x[k] = kept
    noise = 8 * np.finfo(np.float64).eps * max(abs(up), abs(down), abs(start)) / h
    return (up - start) / h, (start - down) / h, float(noise)
