"""Ladders of differences that grow where their own bound asks for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from pytest_gradcheck.numerics.differences import (
    FINE,
    Estimate,
    careful_exponents,
    estimate,
    first_exponents,
)
from pytest_gradcheck.numerics.ladder import RATIO_EXPONENT, Floats, Ladder

# A step of 2**HIGHEST moves an input by several times its own size; more says nothing about here.
HIGHEST = 4
FAR = (-2, HIGHEST)  # steps at which a function that stands still is looked at again
MAX_RUNGS = 15
# Extensions in a row that did not halve the bound: one each way and one more, for a plateau.
MOST_IN_VAIN = 2


Differences = tuple[Sequence[float], Sequence[float]]  # first and second, one for each set


def grown(
    rung: Callable[[int], Differences],
    floor: Floats,
    unit: float,
    *,
    rungs: int = 3,
    first: tuple[int, ...] = (),
    enough: float = 0.0,
    is_spent: Callable[[], bool] = lambda: False,
) -> tuple[Ladder, Estimate]:
    """Differences on as many steps as it takes, with the estimate from them.

    Args:
        rung: The differences at the step of an exponent.
        floor: (p,) least rounding of one value.
        unit: Relative precision.
        rungs: Least number of steps.
        first: Exponents to begin with; the quick ones of the precision by default.
        enough: A bound that is not worth improving.
        is_spent: Whether there may be no more steps.
    """
    measured = {e: rung(e) for e in first or first_exponents(unit)}
    careful = () if first else careful_exponents(unit)
    missing = [e for e in careful if e not in measured]
    few, heading, best, vain = len(measured), 0, None, 0
    while True:
        ladder = ladder_of(measured, floor)
        found = estimate(ladder)
        is_sharp = is_good(found, ladder, unit)
        if missing and not is_sharp:
            if _stands(ladder, rung):
                return ladder, found
            # Small steps alone may mislead where a function rounds inside.
            measured |= {e: rung(e) for e in missing}
            few, missing = len(measured), []
            continue
        bound = float(np.max(found.bound))
        if len(measured) >= rungs and (0 < bound <= enough or is_sharp):
            return ladder, found
        # The ladder's own trend comes first; a way that did not help is left for the other one.
        refuted = heading < 0 and best is not None and bound > best  # by smaller steps
        vain = 0 if best is None or bound < best / 2 else vain + 1
        heading = found.extend if not heading else -heading if vain else heading
        if found.exponent is None or found.settles or (refuted and found.extend < 0):
            heading, vain = -1, 0
        best = bound if best is None else min(best, bound)
        if len(measured) == few and _stands(ladder, rung):
            return ladder, found
        steps = more(sorted(measured), ladder, heading, unit)
        in_vain = not found.extend or (vain > MOST_IN_VAIN and best < math.inf)
        if not steps or is_spent() or (in_vain and len(measured) >= rungs):
            return ladder, found
        measured |= {e: rung(e) for e in steps}


def _stands(ladder: Ladder, rung: Callable[[int], Differences]) -> bool:
    """Whether the function stands still on its first steps and far away as well."""
    if ladder.moves:
        return False
    return not any(any(first) or any(second) for first, second in map(rung, FAR))


def ladder_of(measured: Mapping[int, Differences], floor: Floats) -> Ladder:
    """The differences by falling step."""
    exponents = tuple(sorted(measured, reverse=True))
    first = np.array([measured[e][0] for e in exponents])
    second = np.array([measured[e][1] for e in exponents])
    return Ladder(exponents, first, second, floor)


def is_good(found: Estimate, ladder: Ladder, unit: float) -> bool:
    """Whether two directions would see an error of 1 % with this bound."""
    # eps**0.4 (5e-7 in float64) leaves two directions enough for an error of 1 %.
    bound = float(found.bound.max())
    if not (math.isfinite(bound) and ladder.moves):
        return False
    return bool(bound <= unit**0.4 * np.abs(found.value).max())


def narrow(ladder: Ladder, unit: float) -> tuple[int, ...]:
    """Three rungs that will do for another direction, judged by one like it; none where not.

    Those between which the plain central differences agree best, if that needs no extrapolation.
    Where digits are few, it does.
    """
    if unit > FINE:
        return ()
    central = ladder.first / (2 * ladder.steps[:, None])
    size, gaps = np.abs(central[1:-1]), np.abs(np.diff(central, axis=0))
    with np.errstate(divide="ignore", invalid="ignore"):
        # In rounding they may agree by chance.
        rounding = 2 * ladder.floor / ladder.steps[1:-1, None]
        off = ((np.maximum(gaps[:-1], gaps[1:]) + rounding) / size).max(axis=1)
    if not len(off) or not np.isfinite(off).any():
        return ()
    best = int(np.nanargmin(off))
    return ladder.exponents[best : best + 3] if 2 * off[best] <= unit**0.4 else ()


def more(exponents: list[int], ladder: Ladder, heading: int, unit: float) -> list[int]:
    """Steps to add on one side, or on the other where none is left; larger ones to a still one."""
    if not ladder.moves:  # what stands still does so at every smaller step
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
