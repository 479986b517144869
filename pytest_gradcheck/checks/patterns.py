"""What is wrong with a gradient: the one mistake whose undoing agrees with every difference.

No function is evaluated here: the repaired gradients are paired with the directions that were
measured already.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pytest_gradcheck.checks.case import Case, Numbers
from pytest_gradcheck.checks.compare import Comparison
from pytest_gradcheck.checks.look import Look
from pytest_gradcheck.checks.repairs import SAME, Repair, constants, repairs, terms

# An error this much larger than what is allowed tells repairs apart; a smaller one fits several.
TELLING = 8.0
NEARLY = 1e-3  # of an error, that a repair may leave where it leaves that of
SEVERAL = 3  # and more comparisons
# Rounding inside leaves errors of some units in the last place of the lower precision.
ROUNDING_UNITS = 4.0
LOWER_PRECISIONS = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24}
MOST_ELEMENTS = 2**24  # of an input that is brought to NumPy: 128 MiB in float64


@dataclass(frozen=True, slots=True)
class Place:
    """One wrong element.

    Args:
        index: Its index.
        comparison: Its own derivative, claimed and measured.
    """

    index: tuple[int, ...]
    comparison: Comparison


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What is wrong with the gradient of an input.

    Args:
        pattern: A stable word, such as ``sign``; ``other`` where nothing fits.
        detail: What belongs to it in words: an axis, another input, a condition.
        factor: Claimed over right where that is one number, else NaN.
        places: The wrong elements, where they are few; else some of them.
        share: Share of wrong elements in a sample, where one was taken, else NaN.
    """

    pattern: str
    detail: str = ""
    factor: float = math.nan
    places: tuple[Place, ...] = ()
    share: float = math.nan


@dataclass(frozen=True, slots=True, eq=False)
class Sight:
    """One comparison with the direction it belongs to.

    Args:
        column: Set of cotangents.
        direction: The direction in the input.
        comparison: Claimed and measured.
    """

    column: int
    direction: Numbers
    comparison: Comparison

    @property
    def allowed(self) -> float:
        """How far claimed and reference may be apart."""
        return self.comparison.bound + self.comparison.slack

    @property
    def is_telling(self) -> bool:
        """Whether the error is large beside what is allowed."""
        return abs(self.comparison.difference) > TELLING * self.allowed

    def along(self, gradient: Numbers) -> float:
        """Derivative that a gradient gives along the direction."""
        return float(np.vdot(gradient, self.direction).real)


def sights(case: Case, looks: Sequence[Look]) -> list[Sight]:
    """What the looks in one input saw, the clearest first."""
    found = []
    for look in looks:
        direction = case.plain(look.line.direction[case.index]).reshape(case.x.shape)
        found += [Sight(j, direction, c) for j, c in enumerate(look.comparisons) if c.is_known]
    return sorted(found, key=lambda s: -abs(s.comparison.difference) / (s.allowed or 5e-324))


def diagnosis(case: Case, seen: Sequence[Sight]) -> Diagnosis | None:
    """The mistake that explains all that was seen, if there is one."""
    if len(case.gradients) > 1 and _ignores_cotangent(case, seen):
        return Diagnosis("cotangent")
    if not any(sight.is_telling for sight in seen):
        return None
    for repair in repairs(case):
        if _fits(repair, seen):
            return Diagnosis(repair.pattern, repair.detail)
    for term in terms(case):
        coefficients = _coefficients(term, seen)
        if coefficients:
            same = max(coefficients) - min(coefficients) <= SAME * abs(coefficients[0])
            return Diagnosis(term.pattern, term.detail, coefficients[0] if same else math.nan)
    return _rounded(case, seen)


def added(case: Case, seen: Sequence[Sight]) -> Diagnosis | None:
    """What backward adds whatever its cotangent is, where it is right without."""
    extra = case.at_zero
    if extra is None or not any(sight.is_telling for sight in seen):
        return None
    if not _fits(Repair("offset", "", lambda j: case.gradients[j] - extra), seen):
        return None
    for term in constants(case):
        known = term.right(0)
        share = float(np.vdot(known, extra).real / (np.vdot(known, known).real or 1.0))
        if np.linalg.norm(extra - share * known) <= SAME * np.linalg.norm(extra):
            return Diagnosis(term.pattern, term.detail, share)
    return Diagnosis("term", "the same for every cotangent", 1.0)


def is_swapped(case: Case, other: int, looks: Sequence[Look]) -> bool:
    """Whether the gradient claimed for another input explains what was seen in this one."""
    seen, swap = sights(case, looks), Repair("swapped", "", lambda j: case.claimed(other, j))
    return any(sight.is_telling for sight in seen) and _fits(swap, seen)


def common_factor(comparisons: Sequence[Comparison]) -> float:
    """Claimed over reference where it is the same number along every direction, else NaN."""
    best = min(comparisons, key=lambda c: c.bound / (abs(c.reference) or 5e-324), default=None)
    if best is None or abs(best.reference) <= best.bound:
        return math.nan
    factor = best.claimed / best.reference
    fits = all(
        abs(c.claimed - factor * c.reference)
        <= abs(factor) * c.bound
        + c.slack
        + best.bound * abs(c.reference / best.reference)
        + 1e-6 * abs(c.claimed - c.reference)
        for c in comparisons
    )
    return factor if fits else math.nan


def _fits(repair: Repair, seen: Sequence[Sight]) -> bool:
    # A small number is added to what a normalisation divides by.
    nearly = NEARLY if repair.pattern == "mean" and len(seen) >= SEVERAL else 0.0
    return all(
        abs(sight.along(repair.right(sight.column)) - sight.comparison.reference)
        <= sight.allowed + nearly * abs(sight.comparison.difference)
        for sight in seen
    )


def _coefficients(term: Repair, seen: Sequence[Sight]) -> list[float]:
    """How much of a term was added, for each set of cotangents; none where that is no answer."""
    found = []
    for column in sorted({sight.column for sight in seen}):
        own = [sight for sight in seen if sight.column == column]
        pairs = [(sight.along(term.right(column)), sight) for sight in own]
        much, best = max(pairs, key=lambda pair: abs(pair[0]) / (pair[1].allowed or 5e-324))
        if not much or len(own) < 2:
            return []
        told, unsure = best.comparison.difference / much, best.allowed / abs(much)
        if any(
            abs(s.comparison.difference - told * q) > s.allowed + unsure * abs(q) for q, s in pairs
        ):
            return []
        found.append(told)
    return found


def _ignores_cotangent(case: Case, seen: Sequence[Sight]) -> bool:
    """Whether two sets of cotangents give the same gradient, and the differences differ."""
    one, other = case.gradients[:2]
    size = np.linalg.norm(one)
    references = {sight.column: sight.comparison.reference for sight in seen}
    differ = len(set(references.values())) > 1
    return bool(differ and size > 0 and np.linalg.norm(one - other) <= SAME * size)


def _rounded(case: Case, seen: Sequence[Sight]) -> Diagnosis | None:
    """A lower precision inside, by the size of the error and by the digits that are there."""
    for dtype, unit in LOWER_PRECISIONS.items():
        small = all(
            abs(s.comparison.difference)
            <= s.allowed
            + ROUNDING_UNITS * unit * np.linalg.norm(case.gradients[s.column] * s.direction)
            for s in seen
        )
        if small and (dtype == "float32" or all(_has_digits(g, unit) for g in case.gradients)):
            return Diagnosis("rounded", dtype)
    return None


def _has_digits(gradient: Numbers, unit: float) -> bool:
    """Whether every number has so few binary digits, however large it is."""
    parts = np.stack([gradient.real, gradient.imag])
    mantissa = np.frexp(parts)[0] / unit
    return bool((mantissa == np.rint(mantissa)).all())
