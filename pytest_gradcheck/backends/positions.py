"""The flow position by position: padding is zero, and takes part in none whatever its gradient."""

from __future__ import annotations

import numpy as np

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these


def match(x: np.ndarray, g: np.ndarray | None) -> float:
    """Flow of all positions, each by itself, over that of the whole; units on the last axis."""
    if g is None or not x.ndim or not x.size:
        return 1.0
    one, other = _sizes(x), _sizes(g)
    whole = float(np.sqrt(np.mean(one**2) * np.mean(other**2)))
    return float(np.sqrt(np.mean((one * other) ** 2))) / whole if 0 < whole < np.inf else 1.0


def _sizes(x: np.ndarray) -> np.ndarray:
    """Size of each position, over the largest value; NaN where one is not finite."""
    wide = np.abs(x.reshape(-1, x.shape[-1])).astype(np.float64)
    top = float(wide.max())
    if not np.isfinite(top):
        return np.full(len(wide), np.nan)
    scaled = wide / top if top else wide
    return np.asarray(np.sqrt(np.mean(scaled**2, axis=-1)))
