"""Newton-Schulz iterations that make a matrix orthogonal, as implementations of Muon round them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Rounding = Callable[[np.ndarray], np.ndarray]


def orthogonal(update: np.ndarray, h: Mapping[str, Any]) -> np.ndarray:
    """Five quintic steps (Jordan et al. 2024) on a matrix of norm 1.

    Small singular values grow by 500 times and more, and with them what was rounded before: of a
    matrix that is nearly singular, bfloat16 leaves a fifth undetermined. Unless rounded alike.

    Args:
        update: A matrix ``(rows, columns)``.
        h: Hyperparameters. ``bfloat16`` says where results are rounded to it: ``fused``, after
            each sum of products (PyTorch), or ``apart``, after each operation (Jordan's own code);
            nowhere by default.
    """
    kind = h.get("bfloat16")
    rounded = bfloat16 if kind else _exact
    inner = bfloat16 if kind == "apart" else _exact
    is_tall = update.shape[0] > update.shape[1]
    x = rounded(update.T if is_tall else update)
    x = rounded(x / max(float(rounded(np.linalg.norm(x))), h.get("eps", 1e-7)))
    a, b, c = h.get("ns_coefficients", (3.4445, -4.775, 2.0315))
    for _ in range(int(h.get("ns_steps", 5))):
        gram = rounded(x @ x.T)
        square = inner(inner(c * gram) @ gram)
        poly = rounded(inner(b * gram) + square)
        x = rounded(inner(a * x) + inner(poly @ x))
    return x.T if is_tall else x


def bfloat16(x: Any) -> np.ndarray:
    """Rounded to the nearest number of 8 significant bits, ties to even."""
    single = np.atleast_1d(np.asarray(x, dtype=np.float32))
    bits = np.ascontiguousarray(single).view(np.uint32)
    bits = bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))
    wide = (bits & np.uint32(0xFFFF0000)).view(np.float32).astype(np.float64)
    return wide.reshape(np.shape(x))


def _exact(x: Any) -> np.ndarray:
    return np.asarray(x)
