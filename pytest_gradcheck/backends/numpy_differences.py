"""NumPy: the gradient of a training's loss by central differences, element by element."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

STEP = 6e-6  # cube root of the unit in the last place of float64: best for central differences


def central(loss: Callable[[], float], point: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The gradient of a loss by arrays of float64 that it reads, and that are left as they were.

    Args:
        loss: The loss at what stands in the arrays.
        point: The arrays.
    """
    grads = [np.zeros_like(x) for x in point]
    for x, g in zip(point, grads, strict=True):
        for k in np.ndindex(x.shape):
            kept = x[k]
            h = STEP * max(1.0, abs(float(kept)))
            try:
                x[k] = kept + h
                up = loss()
                x[k] = kept - h
                g[k] = (up - loss()) / (2 * h)
            finally:
                x[k] = kept
    return grads
