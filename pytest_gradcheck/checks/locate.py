"""Which inputs have the wrong gradient, and what it looks like beside the right one."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pytest_gradcheck.checks import elements, patterns, rows
from pytest_gradcheck.checks.case import Case
from pytest_gradcheck.checks.compare import Comparison, strongest
from pytest_gradcheck.checks.look import Look
from pytest_gradcheck.checks.parts import Parts
from pytest_gradcheck.checks.patterns import MOST_ELEMENTS, Diagnosis
from pytest_gradcheck.checks.survey import Survey

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

MOST_CULPRITS = 8  # that are named: some 30 evaluations each
MOST_EXAMINED = 3  # of which the wrong elements are looked for: some 100 evaluations each
LOOKS = 3  # one to find a coefficient, two to confirm it


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
    looks = (_look(survey, suspects, attempt) for attempt in range(survey.demand.attempts))
    again = next((look for look in looks if look.off is not None), None)
    found = [] if again is None else _narrowed(survey, suspects, again, [])
    named = [_culprit(survey, index, look) for index, look in found]
    named = _exchanged(survey, named)
    unexplained = [culprit for culprit in named if culprit.pattern == "other"][:MOST_EXAMINED]
    return [_examined(survey, c) if c in unexplained else c for c in named]


def _narrowed(
    survey: Survey, group: Sequence[int], look: Look, found: list[tuple[int, Look]]
) -> list[tuple[int, Look]]:
    """The inputs of a group that shows an error, each with a look that shows its own."""
    if len(group) == 1:
        return [*found, (group[0], look)]
    half, before = len(group) // 2, found
    for attempt in range(survey.demand.attempts):
        for part in (group[:half], group[half:]):
            if len(found) >= MOST_CULPRITS or (found and survey.plan.probe.cost.is_spent):
                return found
            seen = _look(survey, part, attempt)
            found = found if seen.off is None else _narrowed(survey, part, seen, found)
        if found is not before:
            return found
    return found


def _look(survey: Survey, group: Sequence[int], attempt: int) -> Look:
    return survey.look(group, "locate " + ",".join(str(i) for i in group) + "'" * attempt)


def _culprit(survey: Survey, index: int, look: Look) -> Culprit:
    if all(row[index] is None for row in survey.plan.claim.gradients):
        return Culprit(index, (look,), Diagnosis("missing", factor=0.0))
    if survey.gradient_size(index) == 0:
        return Culprit(index, (look,), Diagnosis("zero", factor=0.0))
    looks = (look, *(survey.look([index], f"again {index} {k}") for k in range(1, LOOKS)))
    return Culprit(index, looks, _diagnosis(survey, index, looks))


def _exchanged(survey: Survey, found: Sequence[Culprit]) -> list[Culprit]:
    """The same where two inputs have each other's gradient, whatever each looks like alone."""
    named = list(found)
    for one, other in itertools.combinations(range(len(named)), 2):
        a, b = named[one], named[other]
        if _has_that_of(survey, a, b.index) and _has_that_of(survey, b, a.index):
            names = survey.plan.probe.problem.names
            named[one] = replace(a, diagnosis=Diagnosis("swapped", names[b.index]))
            named[other] = replace(b, diagnosis=Diagnosis("swapped", names[a.index]))
    return named


def _has_that_of(survey: Survey, culprit: Culprit, other: int) -> bool:
    """Whether what another input gets is right for this one."""
    case = Case(survey.plan, culprit.index)
    is_known = culprit.pattern != "other" and _can_be_examined(survey, case.index, culprit.looks)
    return is_known and other in case.twins and patterns.is_swapped(case, other, culprit.looks)


def _diagnosis(survey: Survey, index: int, looks: Sequence[Look]) -> Diagnosis:
    """What is wrong by the looks that there are."""
    can_be = _can_be_examined(survey, index, looks)
    case = Case(survey.plan, index)
    seen = patterns.sights(case, looks) if can_be else []
    extra = patterns.added(case, seen) if can_be else None
    if extra is not None:
        return extra
    factor = patterns.common_factor([c for look in looks for c in look.comparisons if c.is_known])
    if not math.isnan(factor):
        return Diagnosis("sign" if abs(factor + 1) < 1e-3 else "factor", factor=factor)
    return (patterns.diagnosis(case, seen) if can_be else None) or Diagnosis("other")


def _examined(survey: Survey, culprit: Culprit) -> Culprit:
    """The culprit after a search for its wrong elements and outputs."""
    index, looks = culprit.index, culprit.looks
    if survey.plan.probe.cost.is_spent or not _can_be_examined(survey, index, looks):
        return culprit
    clearest = next(look for look in looks if culprit.worst in look.comparisons)
    return replace(culprit, diagnosis=_within(Parts(survey, Case(survey.plan, index), clearest)))


def _can_be_examined(survey: Survey, index: int, looks: Sequence[Look]) -> bool:
    """Whether an input is not too large for NumPy, and moves the output at all."""
    moves = any(abs(c.reference) > c.bound for look in looks for c in look.comparisons)
    return moves and survey.plan.probe.problem.inputs[index].size <= MOST_ELEMENTS


def _within(parts: Parts) -> Diagnosis:
    """What is wrong where no repair of the whole gradient fits."""
    faint = None
    for examine in (elements.few, elements.pooled, elements.masked, elements.sliced, rows.wrong):
        found = examine(parts)
        if found is not None and found.pattern == "broadcast":
            # A mean is what is left of a gradient that leaves out an output.
            found = rows.wrong(parts) or found
        if found is not None and found.pattern != "other":
            return found
        faint = faint or found
    return faint or elements.many(parts)
