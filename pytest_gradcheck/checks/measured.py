"""Everything that the verdict on a derivative is made from."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_gradcheck.checks.locate import Culprit
from pytest_gradcheck.checks.plan import Plan
from pytest_gradcheck.checks.rounding import Lossy
from pytest_gradcheck.checks.survey import Look, Survey


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """The numbers of one point.

    Args:
        plan: What was compared with what.
        survey: The looks along directions.
        suspect: A look that contradicts, if any.
        culprits: Inputs with a wrong gradient; none where the contradiction did not hold.
        lossy: Inputs whose gradient loses more in the function's own precision than accepted.
        beside: The same, measured beside a kink or a jump at the point.
    """

    plan: Plan
    survey: Survey
    suspect: Look | None = None
    culprits: tuple[Culprit, ...] = ()
    lossy: tuple[Lossy, ...] = ()
    beside: Measured | None = None

    @property
    def label(self) -> str:
        """Name of the function."""
        return self.plan.probe.problem.label

    def name(self, index: int) -> str:
        """Path of an input under test."""
        return self.plan.probe.problem.names[index]
