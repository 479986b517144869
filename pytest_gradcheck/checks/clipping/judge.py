"""One call of a clip held against its claim, in numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pytest_gradcheck.backends.clips import Clipped
from pytest_gradcheck.checks.clipping.cases import Case
from pytest_gradcheck.checks.clipping.claim import TORCH_FLOOR, Claim
from pytest_gradcheck.numerics import clipping, precision


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """One case, what came of it, and whether that is right.

    Args:
        case: The gradients.
        clipped: What the clip made of them.
        wrong: What is wrong, as the start of a finding's code; empty where nothing.
        before: Norm before, of the first group that shows what is wrong.
        after: Norm after.
        threshold: Threshold.
        factor: ``<after, before> / <before, before>``.
        cosine: Cosine between after and before.
        bites: Whether some group was above its threshold.
    """

    case: Case
    clipped: Clipped
    wrong: str
    before: float
    after: float
    threshold: float
    factor: float
    cosine: float
    bites: bool

    @property
    def rows(self) -> tuple[np.ndarray, np.ndarray]:
        """All elements before and after."""
        return present(self.clipped.before), present(self.clipped.after)


def present(values: Sequence[np.ndarray | None]) -> np.ndarray:
    """All elements of what is there, in one row."""
    return clipping.flat([v for v in values if v is not None])


def judged(case: Case, got: Clipped, parameters: Sequence[np.ndarray], rounding: float) -> Judged:
    """A case of finite gradients against the claim.

    Args:
        case: The case.
        got: What the clip made of it.
        parameters: The parameters that the gradients belong to.
        rounding: Relative error accepted of a norm or an element.
    """
    owners = [p for p, g in zip(parameters, got.before, strict=True) if g is not None]
    values = [g for g in got.before if g is not None]
    groups = case.claim.groups(values, owners)
    row, out = present(got.before), present(got.after)
    if case.claim.max_value is not None:
        return _by_value(case, got, row, out)
    sizes = clipping.norms(row, groups, case.claim.norm_type)
    worst, wrong = int(np.argmax(sizes / groups.thresholds)), ""
    for k, (size, threshold) in enumerate(zip(sizes, groups.thresholds, strict=True)):
        mask = groups.labels == k
        found = _group(row[mask], out[mask], float(size), float(threshold), case, rounding)
        if found:
            worst, wrong = k, found
            break
    mask = groups.labels == worst
    factor, cosine = clipping.ratio(out[mask], row[mask])
    return Judged(
        case=case,
        clipped=got,
        wrong=wrong,
        before=float(sizes[worst]),
        after=clipping.norm([out[mask]], case.claim.norm_type),
        threshold=float(groups.thresholds[worst]),
        factor=factor,
        cosine=cosine,
        bites=bool(np.any(sizes > groups.thresholds)),
    )


def _group(
    x: np.ndarray, y: np.ndarray, size: float, threshold: float, case: Case, rounding: float
) -> str:
    """What is wrong with one group; empty where nothing."""
    if size == 0:
        return "" if np.array_equal(y, x) else "zero-gradient"
    if not np.all(np.isfinite(y)):
        return "broken"
    if size + TORCH_FLOOR <= threshold * (1 - rounding):
        return "" if np.array_equal(y, x) else "touched"
    # A factor that is subnormal has lost its last digits whatever one does, and so has an element.
    quantum = precision.smallest(case.dtype) * precision.epsilon(case.dtype)
    rounding += quantum * size / threshold
    if rounding >= 1:  # the factor is below what the precision holds
        return "" if clipping.norm([y], 2) <= 2 * threshold else "norm"
    low, high = threshold / (size + TORCH_FLOOR), min(1.0, threshold / size)
    factor, _ = clipping.ratio(y, x)
    if not low * (1 - rounding) <= factor <= high * (1 + rounding):
        return "norm"
    lost = np.sqrt(x.size) * quantum
    off = clipping.norm([y - factor * x], 2)
    return "" if off <= rounding * clipping.norm([y], 2) + lost else "direction"


def _by_value(case: Case, got: Clipped, row: np.ndarray, out: np.ndarray) -> Judged:
    limit = case.claim.threshold
    expected = np.clip(row, -limit, limit)
    near = np.abs(out - expected) <= precision.epsilon(case.dtype) * limit * (np.abs(row) >= limit)
    factor, cosine = clipping.ratio(out, row)
    return Judged(
        case=case,
        clipped=got,
        wrong="" if bool(np.all(near)) else "value",
        before=clipping.norm([row], np.inf),
        after=clipping.norm([out], np.inf),
        threshold=limit,
        factor=factor,
        cosine=cosine,
        bites=bool(np.any(np.abs(row) > limit)),
    )


def returned(item: Judged, claim: Claim, rounding: float) -> bool:
    """Whether the norm that the clip returned, if any, is the one before clipping."""
    got = item.clipped.returned
    if got is None or claim.max_norm is None or claim.per != "all":
        return True
    size = clipping.norm([item.rows[0]], claim.norm_type)
    return bool(abs(got - size) <= rounding * size + TORCH_FLOOR)  # as in sqrt(squares + 1e-12)


def is_factor(item: Judged, rounding: float) -> bool:
    """Whether a right clip returned the factor that it applied, in the place of a norm."""
    got, size = item.clipped.returned, clipping.norm([item.rows[0]], 2)
    if got is None or size == 0:
        return True
    factor, _ = clipping.ratio(item.rows[1], item.rows[0])
    return abs(min(got, 1.0) - factor) <= rounding * factor
