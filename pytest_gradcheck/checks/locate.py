"""Which inputs have the wrong gradient, and what it looks like beside the right one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pytest_gradcheck.checks import elements, patterns, rows
from pytest_gradcheck.checks.compare import Comparison, strongest
from pytest_gradcheck.checks.look import Look
from pytest_gradcheck.checks.parts import Parts
from pytest_gradcheck.checks.patterns import MOST_ELEMENTS, Diagnosis
from pytest_gradcheck.checks.repairs import Case
from pytest_gradcheck.checks.survey import Survey

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

MOST_CULPRITS = 5  # that are examined one by one
MOST_COUNTED = 40  # that are named
LOOKS = 3  # one to find a coefficient, two to confirm it
ATTEMPTS = 2  # a half may hide its error along one direction by chance


@dataclass(frozen=True, slots=True, eq=False)
class Culprit:
    """An input whose gradient contradicts the differences.

    Args:
        index: Which input.
        looks: Looks along directions in this input alone.
        diagnosis: What is wrong with it.
    """

    index: int
    looks: tuple[Look, ...]
    diagnosis: Diagnosis

    @property
    def pattern(self) -> str:
        """What is wrong, as a stable word."""
        return self.diagnosis.pattern

    @property
    def worst(self) -> Comparison:
        """The comparison that shows it best."""
        return strongest([c for look in self.looks for c in look.comparisons])


def culprits(survey: Survey, suspects: Sequence[int]) -> list[Culprit]:
    """The inputs with a wrong gradient, found by halving; the first few are examined closely.

    Nothing is found where the whole does not show its error again, or where no input shows it
    alone.
    """
    looks = (_look(survey, suspects, attempt) for attempt in range(ATTEMPTS))
    again = next((look for look in looks if look.off is not None), None)
    found = [] if again is None else _narrowed(survey, suspects, again, [])
    return [
        _culprit(survey, index, look, is_close=k < MOST_CULPRITS)
        for k, (index, look) in enumerate(found)
    ]


def _narrowed(
    survey: Survey, group: Sequence[int], look: Look, found: list[tuple[int, Look]]
) -> list[tuple[int, Look]]:
    """The inputs of a group that shows an error, each with a look that shows its own."""
    if len(group) == 1:
        return [*found, (group[0], look)]
    half, before = len(group) // 2, found
    for attempt in range(ATTEMPTS):
        for part in (group[:half], group[half:]):
            if len(found) >= MOST_COUNTED or (found and survey.plan.probe.cost.is_spent):
                return found
            seen = _look(survey, part, attempt)
            found = found if seen.off is None else _narrowed(survey, part, seen, found)
        if found is not before:
            return found
    return found


def _look(survey: Survey, group: Sequence[int], attempt: int) -> Look:
    return survey.look(group, "locate " + ",".join(str(i) for i in group) + "'" * attempt)


def _culprit(survey: Survey, index: int, look: Look, *, is_close: bool) -> Culprit:
    again = range(1, LOOKS if is_close else 2)
    looks = (look, *(survey.look([index], f"again {index} {k}") for k in again))
    return Culprit(index, looks, _diagnosis(survey, index, looks, is_close=is_close))


def _diagnosis(survey: Survey, index: int, looks: Sequence[Look], *, is_close: bool) -> Diagnosis:
    if all(row[index] is None for row in survey.plan.claim.gradients):
        return Diagnosis("missing", factor=0.0)
    if survey.gradient_size(index) == 0:
        return Diagnosis("zero", factor=0.0)
    factor = patterns.common_factor([c for look in looks for c in look.comparisons if c.is_known])
    if factor == factor:  # no NaN
        return Diagnosis("sign" if abs(factor + 1) < 1e-3 else "factor", factor=factor)
    if _is_idle(looks) or survey.plan.probe.problem.inputs[index].size > MOST_ELEMENTS:
        return Diagnosis("other")
    case = Case(survey.plan, index)
    found = patterns.diagnosis(case, patterns.sights(case, looks))
    if found is None and is_close and not survey.plan.probe.cost.is_spent:
        found = _within(Parts(survey, case, _clearest(looks)))
    return found or Diagnosis("other")


def _is_idle(looks: Sequence[Look]) -> bool:
    """Whether the input moves nothing, so that the right gradient is zero."""
    return all(abs(c.reference) <= c.bound for look in looks for c in look.comparisons)


def _clearest(looks: Sequence[Look]) -> Look:
    """The look in which the strongest comparison is."""
    worst = strongest([c for look in looks for c in look.comparisons])
    return next(look for look in looks if worst in look.comparisons)


def _within(parts: Parts) -> Diagnosis:
    """What is wrong where no repair of the whole gradient fits."""
    for examine in (elements.few, elements.pooled, elements.masked, rows.wrong):
        found = examine(parts)
        if found is not None:
            return found
    return elements.many(parts)
