"""Which inputs have the wrong gradient, and what it looks like beside the right one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pytest_gradcheck.checks.compare import Comparison, strongest
from pytest_gradcheck.checks.look import Look
from pytest_gradcheck.checks.survey import Survey

MOST_CULPRITS = 5


@dataclass(frozen=True, slots=True, eq=False)
class Culprit:
    """An input whose gradient contradicts the differences.

    Args:
        index: Which input.
        looks: Looks along directions in this input alone.
        pattern: What is wrong, as a stable word: missing, zero, sign, factor, or other.
        factor: Claimed over reference where that is one number, else NaN.
    """

    index: int
    looks: tuple[Look, ...]
    pattern: str
    factor: float

    @property
    def worst(self) -> Comparison:
        """The comparison that shows it best."""
        return strongest([c for look in self.looks for c in look.comparisons])


def culprits(survey: Survey, suspects: Sequence[int]) -> list[Culprit]:
    """The inputs with a wrong gradient, found by halving; at most ``MOST_CULPRITS``.

    Nothing is found where the whole does not show its error a third time, or where no input shows
    it alone.
    """
    found: list[Culprit] = []
    pending = [list(suspects)]
    while pending and len(found) < MOST_CULPRITS:
        group = pending.pop(0)
        look = _look(survey, group)
        if look.off is None:
            continue
        if len(group) == 1:
            found.append(_culprit(survey, group[0], look))
        else:
            half = len(group) // 2
            pending[:0] = [group[:half], group[half:]]
    return found


def _look(survey: Survey, group: Sequence[int]) -> Look:
    return survey.look(group, "locate " + ",".join(str(i) for i in group))


def _culprit(survey: Survey, index: int, look: Look) -> Culprit:
    looks = (look, survey.look([index], f"again {index}"))
    comparisons = [c for each in looks for c in each.comparisons if c.is_known]
    pattern, factor = _pattern(survey, index, comparisons)
    return Culprit(index, looks, pattern, factor)


def _pattern(survey: Survey, index: int, comparisons: list[Comparison]) -> tuple[str, float]:
    gradients = [row[index] for row in survey.plan.claim.gradients]
    if all(g is None for g in gradients):
        return "missing", 0.0
    if survey.gradient_size(index) == 0:
        return "zero", 0.0
    factor = _common_factor(comparisons)
    if math.isnan(factor):
        return "other", math.nan
    return ("sign" if abs(factor + 1) < 1e-3 else "factor"), factor


def _common_factor(comparisons: list[Comparison]) -> float:
    """Claimed over reference where it is the same number along every direction, else NaN."""
    best = max(comparisons, key=lambda c: abs(c.reference))
    if abs(best.reference) <= best.bound:
        return math.nan
    factor = best.claimed / best.reference
    fits = all(
        abs(c.claimed - factor * c.reference)
        <= abs(factor) * c.bound
        + c.slack
        + best.bound * abs(c.reference / best.reference)
        + 1e-6 * abs(c.claimed)
        for c in comparisons
    )
    return factor if fits else math.nan
