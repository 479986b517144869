"""A step down the gradient that takes away a share of the loss, to first order."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

STEP = 0.1  # share of the loss that is to go


def descent(gradients: Sequence[np.ndarray], loss: float) -> list[np.ndarray]:
    """What is to be added to each parameter, in float64; zero where there is no gradient.

    Gradients are scaled to a largest element of 1, so that no square overflows or is lost.
    """
    wide = [np.asarray(g).astype(np.float64) for g in gradients]
    top = max((float(np.abs(g).max()) for g in wide if g.size), default=0.0)
    if not top or not math.isfinite(top):
        return [np.zeros_like(g) for g in wide]
    units = [g / top for g in wide]
    total = math.fsum(float(np.sum(np.square(g))) for g in units)
    with np.errstate(over="ignore", under="ignore"):
        return [-STEP * abs(loss) / top / total * g for g in units]
