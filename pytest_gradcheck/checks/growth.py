"""When a ladder of differences is good enough, and which steps to add where it is not."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from pytest_gradcheck.numerics.differences import Estimate
from pytest_gradcheck.numerics.ladder import RATIO_EXPONENT, Floats, Ladder

# A step of 2**HIGHEST moves an input by several times its own size; more says nothing about here.
HIGHEST = 4
FAR = (-2, HIGHEST)  # steps at which a function that stands still is looked at again
MAX_RUNGS = 14
# Extensions in a row that did not halve the bound: one each way and one more, for a plateau.
MOST_IN_VAIN = 2


Differences = tuple[Sequence[float], Sequence[float]]  # first and second, one for each set


def ladder_of(measured: Mapping[int, Differences], floor: Floats) -> Ladder:
    """The differences by falling step."""
    exponents = tuple(sorted(measured, reverse=True))
    first = np.array([measured[e][0] for e in exponents])
    second = np.array([measured[e][1] for e in exponents])
    return Ladder(exponents, first, second, floor)


def is_good(found: Estimate, ladder: Ladder, unit: float) -> bool:
    """Whether two directions would see an error of 1 % with this bound."""
    # eps**0.4 (5e-7 in float64) leaves two directions enough for an error of 1 %.
    if not np.isfinite(found.bound).all() or not ladder.moved().any():
        return False
    size = float(np.abs(found.value).max())
    return bool((found.bound <= unit**0.4 * size).all())


def narrow(ladder: Ladder, unit: float) -> tuple[int, ...]:
    """Three rungs that will do for another direction, judged by one like it; none where not.

    Where the plain central differences of the two smallest steps agree well, those around the
    smallest need no extrapolation.
    """
    central = ladder.first / (2 * ladder.steps[:, None])
    if len(central) < 4 or not np.isfinite(central[-2:]).all():
        return ()
    gap, size = np.abs(central[-1] - central[-2]), np.abs(central[-1])
    last = ladder.exponents[-1]
    good = (2 * gap <= unit**0.4 * size).all() and bool((size > 0).all())
    return (last + RATIO_EXPONENT, last, last - RATIO_EXPONENT) if good else ()


def more(exponents: list[int], ladder: Ladder, heading: int, unit: float) -> list[int]:
    """Steps to add on one side, or on the other where none is left; larger ones to a still one."""
    if not ladder.moved().any():  # what stands still does so at every smaller step
        return extension(exponents, 1, unit)
    return extension(exponents, heading, unit) or extension(exponents, -heading, unit)


def extension(exponents: list[int], extend: int, unit: float) -> list[int]:
    """Exponents of two more steps in a direction; none where the ladder may not grow."""
    lowest = round(math.log2(unit))
    if len(exponents) >= MAX_RUNGS:
        return []
    if extend > 0:
        wanted = [exponents[-1] + RATIO_EXPONENT * i for i in (1, 2)]
    else:
        wanted = [exponents[0] - RATIO_EXPONENT * i for i in (1, 2)]
    return [e for e in wanted if lowest <= e <= HIGHEST]
