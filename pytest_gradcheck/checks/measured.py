"""Everything that the verdict on a derivative is made from."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_gradcheck.checks.kinks import Slope
from pytest_gradcheck.checks.locate import Culprit
from pytest_gradcheck.checks.look import Look
from pytest_gradcheck.checks.plan import Plan
from pytest_gradcheck.checks.rounding import Lossy
from pytest_gradcheck.checks.survey import Survey


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
        is_right_beside: Whether a gradient that is wrong at the point is right beside it.
        outside: A claimed slope that does not lie between those on both sides of a kink.
    """

    plan: Plan
    survey: Survey
    suspect: Look | None = None
    culprits: tuple[Culprit, ...] = ()
    lossy: tuple[Lossy, ...] = ()
    beside: Measured | None = None
    outside: Slope | None = None
    is_right_beside: bool = False

    @property
    def is_clear(self) -> bool:
        """Whether nothing contradicts, and every input was seen as well as asked."""
        survey = self.survey
        return self.suspect is None and bool(survey.live) and not survey.unresolved(survey.live)

    @property
    def jumps(self) -> bool:
        """Whether the function jumps at the point."""
        return self.suspect is not None and self.suspect.jumps

    @property
    def is_rough(self) -> bool:
        """Whether the function has a kink or a jump at the point, which got in the way."""
        return self.suspect is not None and (self.suspect.jumps or self.suspect.has_kink)

    @property
    def label(self) -> str:
        """Name of the function."""
        return self.plan.probe.problem.label

    def name(self, index: int) -> str:
        """Path of an input under test."""
        return self.plan.probe.problem.names[index]
