"""Ladders of differences that grow where their own bound asks for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pytest_gradcheck.numerics.column import EXCESS, FAST
from pytest_gradcheck.numerics.differences import (
    FINE,
    Estimate,
    around,
    careful_exponents,
    estimate,
    first_exponents,
    of_one,
    of_pair,
)
from pytest_gradcheck.numerics.ladder import RATIO_EXPONENT, Floats, Ladder

# A step of 2**HIGHEST moves an input by several times its own size; more says nothing about here.
HIGHEST = 4
TOP = HIGHEST - 2 * RATIO_EXPONENT  # of a step whose neighbours are steps too
FAR = (-2, HIGHEST)  # steps at which a function that stands still is looked at again
MAX_RUNGS = 15
# Extensions in a row that did not halve the bound: one each way and one more, for a plateau.
MOST_IN_VAIN = 2
KNOWN = 1e-3  # a bound beside its value that other steps will hardly better
FAIR = 1e-2  # a bound beside its value that leaves enough for some directions to tell


Differences = tuple[Sequence[float], Sequence[float]]  # first and second, one for each set


@dataclass(frozen=True, slots=True)
class Served:
    """Steps that served one direction, for another one like it.

    Args:
        exponents: The steps.
        like: What they gave, where that is known; the first two of them may do then.
        second: (p,) its second differences at the second step, where that one may do alone.
    """

    exponents: tuple[int, ...] = ()
    like: Estimate | None = None
    second: Floats | None = None


ANYWHERE = Served()


@dataclass(frozen=True, slots=True)
class Asked:
    """What makes a bound good enough; see ``grown``."""

    unit: float
    enough: float = 0.0
    expected: float = 0.0

    def is_met(self, found: Estimate, ladder: Ladder) -> bool:
        """Whether the bound is enough, or two directions with it would see an error of 1 %."""
        bound = float(found.bound.max())
        if 0 < bound <= self.enough:
            return True
        if not (math.isfinite(bound) and ladder.moves):
            return False
        size = float(np.abs(found.value).max())
        if _is_fair(found):  # what stands still here may climb stairs
            size = max(size, self.expected)
        return bound <= _good(self.unit) * size


def _good(unit: float) -> float:
    # 5e-7 in float64 leaves two directions enough for an error of 1 %.
    return float(unit**0.4)


def grown(
    rung: Callable[[int], Differences],
    floor: Floats,
    unit: float,
    *,
    rungs: int = 3,
    first: Served = ANYWHERE,
    enough: float = 0.0,
    expected: float = 0.0,
    is_spent: Callable[[], bool] = lambda: False,
) -> tuple[Ladder, Estimate]:
    """Differences on as many steps as it takes, with the estimate from them.

    Args:
        rung: The differences at the step of an exponent.
        floor: (p,) least rounding of one value.
        unit: Relative precision.
        rungs: Least number of steps.
        first: Steps to begin with; the quick ones of the precision by default.
        enough: A bound that is not worth improving.
        expected: About as large is the value along most directions; this one may be less by chance.
        is_spent: Whether there may be no more steps.
    """
    asked = Asked(unit, enough, expected)
    wanted = first.exponents or first_exponents(unit)
    measured: dict[int, Differences] = {}
    if first.like is not None and first.second is not None:
        measured = {wanted[1]: rung(wanted[1])}
        ladder = ladder_of(measured, floor)
        alone = of_one(ladder, first.like, first.second)
        if alone is not None and asked.is_met(alone, ladder):
            return ladder, alone
    if first.like is not None or (not first.exponents and unit <= FINE and rungs <= 3):
        measured |= {e: rung(e) for e in wanted[:2] if e not in measured}
        ladder = ladder_of(measured, floor)
        pair = of_pair(ladder, first.like)
        if pair is not None and asked.is_met(pair, ladder):
            return ladder, pair
    measured |= {e: rung(e) for e in wanted if e not in measured}
    ladder, found, is_sharp = _judged(measured, floor, asked)
    heading, vain = 0, 0
    best: float | None = None
    if _stands(ladder, rung):
        return ladder, found
    missing = () if first.exponents else [e for e in careful_exponents(unit) if e not in measured]
    if missing and not is_sharp:
        best = float(found.bound.max()) if _is_fair(found) else None
        # Small steps alone may mislead where a function rounds inside; mostly the next one tells.
        for exponent in reversed(missing):
            measured[exponent] = rung(exponent)
            ladder, found, is_sharp = _judged(measured, floor, asked)
            if is_sharp or _is_limited(found, ladder):
                break
    while True:
        if len(measured) >= rungs and is_sharp:
            return ladder, found
        bound = float(found.bound.max())
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
        ladder, found, is_sharp = _judged(measured, floor, asked)


def _judged(
    measured: Mapping[int, Differences], floor: Floats, asked: Asked
) -> tuple[Ladder, Estimate, bool]:
    """The differences, the estimate from them, and whether it is a good one."""
    ladder = ladder_of(measured, floor)
    found = estimate(ladder)
    return ladder, found, asked.is_met(found, ladder)


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


def _is_fair(found: Estimate, share: float = FAIR) -> bool:
    return bool(np.all(found.bound <= share * np.abs(found.value)))


def _central(ladder: Ladder) -> Floats:
    """(m, p) plain central differences."""
    central: Floats = ladder.first / (2 * ladder.steps[:, None])
    return central


def served(ladder: Ladder, found: Estimate, unit: float, enough: float = 0.0) -> Served | None:
    """Steps that will do for another direction, judged by one like it; None where not.

    Args:
        ladder: The differences along that one.
        found: What they gave.
        unit: Relative precision.
        enough: A bound with which the quick steps are preferred.
    """
    if len(ladder.exponents) == 2:
        finer = ladder.exponents[-1] - RATIO_EXPONENT
        return Served((*ladder.exponents, finer), found, ladder.second[-1])
    if unit > FINE:  # where digits are few, they need extrapolation
        return None
    start = _narrow(ladder, unit)
    if start is not None:
        return _part(ladder, found, start)
    # Where kinks limit the bound, rounding keeps that of small steps from being narrow by chance.
    steps = first_exponents(unit)
    if not {*steps} <= {*ladder.exponents}:
        return None
    part = _part(ladder, found, ladder.exponents.index(steps[0]))
    return part if part.like is not None and part.like.bound.max() <= enough else None


def _narrow(ladder: Ladder, unit: float) -> int | None:
    """Where the three begin between which the plain central differences agree best, if well."""
    central = _central(ladder)
    size, gaps = np.abs(central[1:-1]), np.abs(np.diff(central, axis=0))
    with np.errstate(divide="ignore", invalid="ignore"):
        # In rounding they may agree by chance.
        rounding = 2 * ladder.floor / ladder.steps[1:-1, None]
        off = ((np.maximum(gaps[:-1], gaps[1:]) + rounding) / size).max(axis=1)
    if not len(off) or not np.isfinite(off).any():
        return None
    best = int(np.nanargmin(off))
    return best if 2 * off[best] <= _good(unit) else None


def about(exponent: int, ladder: Ladder, found: Estimate) -> Served:
    """The rungs around the one that was chosen along a direction, that one and a larger first."""
    largest, larger, chosen, smaller = around(min(exponent, TOP))
    is_known = exponent <= TOP and _is_clear(found, ladder) and _is_fair(found, KNOWN)
    like = found if is_known else None  # else along another direction others may show much more
    second = ladder.second[ladder.exponents.index(exponent)] if is_known else None
    return Served((larger, chosen, largest, smaller), like, second)


def _part(ladder: Ladder, found: Estimate, start: int) -> Served:
    """Three steps of a ladder with what they alone give, where that is clear."""
    if len(ladder.exponents) > 3:
        part = slice(start, start + 3)
        rows = ladder.first[part], ladder.second[part]
        ladder = Ladder(ladder.exponents[part], *rows, ladder.floor)
        found = estimate(ladder)
    is_known = _is_clear(found, ladder)
    return Served(ladder.exponents, found if is_known else None, ladder.second[1])


def _is_clear(found: Estimate, ladder: Ladder) -> bool:
    """Whether a fair value stands out of a noise that arithmetic explains, and is of no stairs."""
    is_quiet = bool(np.all(found.noise <= EXCESS * ladder.floor))
    return is_quiet and _is_fair(found) and not found.is_staircase


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
