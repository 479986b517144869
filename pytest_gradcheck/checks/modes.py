"""The framework's other modes: forward, batched, and the derivative of the derivative."""

from __future__ import annotations

from pytest_gradcheck.checks.measured import Measured
from pytest_gradcheck.checks.question import Question
from pytest_gradcheck.limits import Limits
from pytest_gradcheck.results import Finding


def findings(seen: Measured, question: Question, limits: Limits, seed: int) -> tuple[Finding, ...]:
    """What the modes that were asked for beside reverse have wrong."""
    return ()
