"""The flow of a layer: how much the loss moves, to first order, with noise as large as its output.

Norm of the gradient times size of the output: unchanged by a rescaling of layers that keeps the
function (Philipp, Song and Carbonell, arXiv 1712.05577, section 4, measure backward size beside
forward size for the same reason), and kept from layer to layer at critical initialisations
whatever the widths. As a logarithm, since the product may be beyond what a float can hold.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from pytest_gradcheck.backends.layers import Layer

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

FAR = 300.0  # decades that a float can hold


def log_flow(layer: Layer) -> float:
    """Log10 of the flow; that of the norm where no output is known, NaN where no gradient is."""
    sizes = [layer.gradient, math.sqrt(layer.size), layer.match]
    sizes += [] if math.isnan(layer.activation) else [layer.activation]
    if any(map(math.isnan, sizes)):
        return math.nan
    return -math.inf if 0.0 in sizes else math.fsum(map(math.log10, sizes))


def in_squares(logs: Sequence[float]) -> float:
    """Log10 of the root of the sum of squares of what is known; NaN where nothing is."""
    known = [x for x in logs if not math.isnan(x)]
    top = max(known, default=math.nan)
    if not math.isfinite(top):
        return top
    return top + math.log10(math.hypot(*(10.0 ** max(x - top, -FAR) for x in known)))


def power(log: float) -> float:
    """The number itself, as near as a float can come to it."""
    return 0.0 if log == -math.inf else math.pow(10.0, min(max(log, -FAR), FAR))
