"""What a check has to reach, and what it takes as right."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_gradcheck.checks.plan import Plan
from pytest_gradcheck.limits import Limits

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

# A claim that is off by what is accepted hides errors of so many tolerances from five directions.
HIDDEN_BY_TOLERANCE = 32.0


@dataclass(frozen=True, slots=True)
class Demand:
    """What a survey has to reach, from the limits.

    Args:
        resolution: Relative error of an input's gradient that the differences must show.
        within: The same where the claim is off by what is accepted, which hides what is below.
        miss_probability: Probability with which an error may be missed.
        tolerance: Relative error of an input's gradient that is accepted.
        is_meant: Whether somebody gave the tolerance: then it is no rounding, and what lies
            beyond it is wrong however little that is.
    """

    resolution: float
    within: float
    miss_probability: float
    tolerance: float
    is_meant: bool = False

    @property
    def attempts(self) -> int:
        """Directions along which an error must show once: not far beyond a tolerance few do."""
        return 6 if self.is_meant else 2

    @property
    def of_claimed(self) -> float:
        """The tolerance as a part of the claimed gradient, which may be that much too small."""
        return self.tolerance / (1 - min(self.tolerance, 0.5)) if self.is_meant else self.tolerance


def demand(limits: Limits, plan: Plan) -> Demand:
    """What the limits ask for in the precisions of a plan."""
    tolerance = limits.number("tolerance", plan.claimed_in)
    resolution = limits.number("resolution", plan.probe.precision)
    is_meant = limits.use("tolerance").source != "default"
    within = resolution
    if limits.use("resolution").source == "default":
        # An error that is accepted cannot be asked to show.
        resolution = max(resolution, tolerance)
        hidden = HIDDEN_BY_TOLERANCE * tolerance
        within = max(resolution, hidden if is_meant else min(1.0, hidden))
    return Demand(
        resolution=resolution,
        within=within,
        miss_probability=limits.number("miss_probability"),
        tolerance=tolerance,
        is_meant=is_meant,
    )
