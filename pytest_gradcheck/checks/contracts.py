"""What a backward must keep whatever its numbers are: layouts, repeated calls, its arguments."""

from __future__ import annotations

from pytest_gradcheck.checks.plan import Plan
from pytest_gradcheck.results import Finding


def findings(plan: Plan, seed: int) -> tuple[Finding, ...]:
    """Contracts that the derivative under test breaks."""
    return ()
