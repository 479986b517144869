"""How often a threshold bit in a real run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pytest_gradcheck.checks.clipping.claim import Claim
from pytest_gradcheck.errors import UsageError
from pytest_gradcheck.results import Finding

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these


def findings(norms: Sequence[Any] | None, claim: Claim) -> list[Finding]:
    """The share of recorded norms above the threshold; a warning when all or none are.

    Raises:
        UsageError: What was recorded are no numbers.
    """
    if norms is None:
        return []
    try:
        sizes = np.array([float(n) for n in norms])
    except (TypeError, ValueError) as error:
        raise UsageError(f"norms= must hold numbers: {error}") from error
    if not sizes.size:
        raise UsageError("norms= is empty: record the norm of each step")
    kept = sizes[np.isfinite(sizes)]
    if not kept.size:
        raise UsageError("norms= holds nothing but inf and nan")
    return [told(kept, claim.threshold)]


def told(sizes: np.ndarray, threshold: float) -> Finding:
    """The finding on how often a threshold bit."""
    share = float(np.mean(sizes > threshold))
    numbers = (("share", share), ("largest", float(np.max(sizes))))
    if share == 0:
        return Finding(
            code="clip-never-bites",
            severity="warn",
            message=f"in {sizes.size} recorded steps nothing was clipped: the largest norm is "
            f"{np.max(sizes):.3g}, the threshold {threshold:.3g}",
            numbers=numbers,
        )
    if share == 1:
        return Finding(
            code="clip-always-bites",
            severity="warn",
            message=f"all of {sizes.size} recorded steps were clipped: the smallest norm is "
            f"{np.min(sizes):.3g}, the threshold {threshold:.3g}; it acts as a learning rate",
            numbers=numbers,
        )
    return Finding(
        code="clip-share",
        severity="note",
        message=f"{share:.0%} of {sizes.size} recorded steps were clipped",
        numbers=numbers,
    )
