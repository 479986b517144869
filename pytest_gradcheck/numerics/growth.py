"""Ladders of differences that grow where their own bound asks for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from pytest_gradcheck.numerics.column import FAST
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
FAIR = 1e-2  # a bound beside its value that leaves enough for some directions to tell


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
    ladder, found, is_sharp = _judged(measured, floor, unit)
    heading, vain = 0, 0
    best: float | None = None
    if _stands(ladder, rung):
        return ladder, found
    missing = () if first else [e for e in careful_exponents(unit) if e not in measured]
    if missing and not is_sharp:
        best = float(found.bound.max()) if _is_fair(found) else None
        # Small steps alone may mislead where a function rounds inside; mostly the next one tells.
        for exponent in reversed(missing):
            measured[exponent] = rung(exponent)
            ladder, found, is_sharp = _judged(measured, floor, unit)
            if is_sharp or _is_limited(found, ladder):
                break
    while True:
        bound = float(found.bound.max())
        if len(measured) >= rungs and (0 < bound <= enough or is_sharp):
            return ladder, found
        # The ladder's own trend comes first; a way that did not help is left for the other one.
        refuted = heading < 0 and best is not None and bound > best  # by smaller steps
        vain = 0 if best is None or bound < best / 2 else vain + 1
        heading = found.extend if not heading else -heading if vain else heading
        if found.exponent is None or found.settles or (refuted and found.extend < 0):
            heading, vain = -1, 0
        best = bound if best is None else min(best, bound)
        steps = more(sorted(measured), ladder, heading, unit)
        most = 0 if _is_fair(found) else MOST_IN_VAIN
        in_vain = not found.extend or (vain > most and best < math.inf)
        if not steps or is_spent() or (in_vain and len(measured) >= rungs):
            return ladder, found
        measured |= {e: rung(e) for e in steps}
        ladder, found, is_sharp = _judged(measured, floor, unit)


def _judged(
    measured: Mapping[int, Differences], floor: Floats, unit: float
) -> tuple[Ladder, Estimate, bool]:
    """The differences, the estimate from them, and whether it is a good one."""
    ladder = ladder_of(measured, floor)
    found = estimate(ladder)
    return ladder, found, is_good(found, ladder, unit)


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


def _is_limited(found: Estimate, ladder: Ladder) -> bool:
    """Whether a fair bound is all that larger steps would leave of it: they cross ever more kinks.

    Told by four steps: what differs between neighbours rises towards the larger ones (rounding
    inside a function would make it fall), and by less than truncation does.
    """
    if len(ladder.exponents) < 4 or found.exponent is None:
        return False
    gaps = np.abs(np.diff(_central(ladder), axis=0))
    rises = (gaps[0] >= gaps.max(axis=0)) & (gaps[1] > FAST * gaps[0])
    return _is_fair(found) and bool(np.all(rises & (found.bound <= 4 * gaps[0])))


def _is_fair(found: Estimate) -> bool:
    return bool(np.all(found.bound <= FAIR * np.abs(found.value)))


def _central(ladder: Ladder) -> Floats:
    """(m, p) plain central differences."""
    central: Floats = ladder.first / (2 * ladder.steps[:, None])
    return central


def narrow(ladder: Ladder, unit: float) -> tuple[int, ...]:
    """Three rungs that will do for another direction, judged by one like it; none where not.

    Those between which the plain central differences agree best, if that needs no extrapolation.
    Where digits are few, it does.
    """
    if unit > FINE:
        return ()
    central = _central(ladder)
    size, gaps = np.abs(central[1:-1]), np.abs(np.diff(central, axis=0))
    with np.errstate(divide="ignore", invalid="ignore"):
        # In rounding they may agree by chance.
        rounding = 2 * ladder.floor / ladder.steps[1:-1, None]
        off = ((np.maximum(gaps[:-1], gaps[1:]) + rounding) / size).max(axis=1)
    if not len(off) or not np.isfinite(off).any():
        return ()
    best = int(np.nanargmin(off))
    return ladder.exponents[best : best + 3] if 2 * off[best] <= unit**0.4 else ()


def quick(ladder: Ladder, unit: float, enough: float) -> tuple[int, ...]:
    """The quick steps where they alone would have given a bound like that; none where not.

    Where kinks limit the bound, rounding keeps that of small steps from being narrow by chance.
    """
    steps = first_exponents(unit)
    if unit > FINE or steps[-1] not in ladder.exponents or steps[0] not in ladder.exponents:
        return ()
    part = slice(ladder.exponents.index(steps[0]), ladder.exponents.index(steps[-1]) + 1)
    found = estimate(Ladder(steps, ladder.first[part], ladder.second[part], ladder.floor))
    return steps if _is_fair(found) and found.bound.max() <= enough else ()


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
