"""What a right clip makes of gradients, and how far from a prediction a case is."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from pytest_gradcheck.checks.clipping.claim import Claim
from pytest_gradcheck.checks.clipping.judge import Judged
from pytest_gradcheck.limits import CLIP_ROUNDING
from pytest_gradcheck.numerics import clipping

Tensors = Sequence[np.ndarray]
Prediction = Callable[[Tensors], "list[np.ndarray]"]
TINY = 1e-300


def right(claim: Claim) -> Prediction | None:
    """What is claimed, where the gradients alone say it: units need their parameters."""
    c, p = claim.threshold, claim.norm_type
    if claim.max_value is not None:
        return lambda x: [np.clip(g, -c, c) for g in x]
    if claim.per == "tensor":
        return lambda x: [g * _factor([g], c, p) for g in x]
    if claim.per == "all":
        return lambda x: [g * _factor(x, c, p) for g in x]
    return None


def _factor(x: Tensors, threshold: float, p: float | str) -> float:
    return min(1.0, threshold / max(clipping.norm(x, p), TINY))


def distance(item: Judged, predict: Prediction, other: Prediction | None = None) -> float:
    """Between a prediction and what the clip made (or another prediction), relative."""
    before = [g for g in item.clipped.before if g is not None]
    expected = clipping.flat(predict(before))
    found = item.rows[1] if other is None else clipping.flat(other(before))
    size = max(clipping.norm([expected], 2), clipping.norm([found], 2))
    return float(clipping.norm([found - expected], 2) / max(size, TINY))


def only_rounded(wrong: Sequence[Judged], claim: Claim) -> float:
    """By how much the worst case is off, where all are as near as a right clip is by default.

    Or as one in float32 is. Zero where some case is not.
    """
    expected = right(claim)
    if expected is None or any(item.wrong not in ("norm", "direction") for item in wrong):
        return 0.0
    gaps = [(distance(item, expected), _most(item.case.dtype)) for item in wrong]
    return max(gap for gap, _ in gaps) if all(gap <= most for gap, most in gaps) else 0.0


def _most(dtype: str) -> float:
    return max(CLIP_ROUNDING[dtype], CLIP_ROUNDING["float32"])
