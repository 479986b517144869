"""A derivative from central differences over a ladder of steps, with a bound of its own error.

Along a line t -> f(x + t v) the ladder holds, for steps h falling by a factor 4, the first
differences f(x + h v) - f(x - h v) and the second differences f(x + h v) + f(x - h v) - 2 f(x).
Nothing here has seen the derivative under test.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from pytest_gradcheck.numerics.column import (
    FAST,
    KINK_SHARE,
    NOISE_FACTOR,
    QUOTIENT_ROUNDING,
    ROUNDING_UNITS,
    SLOW_FACTOR,
    Column,
    gaps_of,
)
from pytest_gradcheck.numerics.ladder import RATIO_EXPONENT, Floats, Ladder

FINE = 2.0**-40  # a precision that leaves a plain central difference digits to spare
WITNESSED = 4.0  # of what one witness of rounding shows, the most that another is taken for
ALIKE = 16.0  # times the second differences of another direction are still those of the same curve
JUMP_SPREAD = 0.1  # differences over three steps that agree to this share are a jump


@dataclass(frozen=True, slots=True)
class Estimate:
    """Derivatives along a line, one for each projection.

    Args:
        value: (p,) derivative; NaN where no three neighbouring rungs were usable.
        bound: (p,) bound of its error; inf where there is no value.
        noise: (p,) rounding error of one value, measured.
        kink: (p,) gap between the two one-sided slopes where they do not meet, else 0.
        is_staircase: Whether the value is the slope of stairs, flat in between.
        exponent: Exponent of the step behind the widest bound; None where there is no value.
        extend: -1 when smaller steps promise a better bound, +1 for larger ones, 0 when neither
            can halve it; judged on the projection with the widest bound.
        unrest: (p,) the same at any step, where truncation may be in it.
        settles: Whether the smallest steps draw together fast, so that smaller ones will do better.
    """

    value: Floats
    bound: Floats
    noise: Floats
    kink: Floats
    is_staircase: bool
    exponent: int | None
    extend: int
    unrest: Floats
    settles: bool = False


@functools.cache
def central_exponent(precision: float) -> int:
    """Exponent of the step that balances rounding and truncation of an order-4 difference.

    Rounding eps/h against truncation h**4 gives h = eps**(1/5) (Press et al. 2007, section 5.7, for
    order 2; the same balance at order 4).
    """
    return round(math.log2(precision) / 5)


@functools.cache
def first_exponents(precision: float) -> tuple[int, ...]:
    """The rungs to start with.

    In float64 three around the balance of the plain central difference, eps**(1/3), which is
    enough for most functions; where digits are few, four that leave room to extrapolate.
    """
    if precision <= FINE:
        middle = RATIO_EXPONENT * round(math.log2(precision) / 3 / RATIO_EXPONENT)
        return (middle + RATIO_EXPONENT, middle, middle - RATIO_EXPONENT)
    return careful_exponents(precision)


@functools.cache
def careful_exponents(precision: float) -> tuple[int, ...]:
    """Four rungs with room to extrapolate: one above the balance and two below it."""
    return around(central_exponent(precision) - RATIO_EXPONENT)


def around(exponent: int) -> tuple[int, ...]:
    """The four rungs that let the step of an exponent be chosen: two above it and one below it."""
    return tuple(exponent + RATIO_EXPONENT * offset for offset in (2, 1, 0, -1))


def estimate(ladder: Ladder) -> Estimate:
    """The derivative on the rung where neighbours agree best, with its bound.

    Candidates are the plain central differences and their first Richardson extrapolation; the
    bound of each is the larger gap to its two neighbours plus the measured rounding over the
    step, wider where smaller steps contradict it. No order is assumed: a candidate of too high an
    order disagrees with its neighbours.
    """
    whole = ladder.finite()
    ladder = whole.steps_only()
    is_staircase = len(ladder.exponents) < len(whole.exponents)
    if len(ladder.exponents) < 3:
        return _nothing(ladder.floor)
    found = [Column(*column, ladder.sizes) for column in ladder.columns()]
    worst = max(found, key=lambda column: column.bound)
    return Estimate(
        value=np.array([column.value for column in found]),
        bound=np.array([column.bound for column in found]),
        noise=np.array([column.noise[-1] for column in found]),
        kink=np.array([0.0 if is_staircase else column.kink for column in found]),
        is_staircase=is_staircase,
        exponent=ladder.exponents[worst.rung],
        extend=_extension(whole, worst),
        unrest=np.array([column.noise[0] for column in found]),
        settles=_settles(worst.central),
    )


def of_pair(ladder: Ladder, like: Estimate | None) -> Estimate | None:
    """The derivative on two steps, where they agree so well that no third one is needed; else None.

    The central difference at the smaller step. Its bound is the gap to the larger one, twice, on
    top of the bound that another direction had there, or of the rounding.

    Args:
        ladder: Two rungs.
        like: What a ladder gave along a direction like this one at the smaller step, if there was.
    """
    if ladder.stands or not np.isfinite(ladder.first).all():
        return None
    coarser, value = ladder.first / (2 * ladder.steps[:, None])
    gap, step = np.abs(value - coarser), ladder.sizes[-1]
    noise = ROUNDING_UNITS * ladder.floor if like is None else like.noise
    unrest = np.maximum(noise, gap * step)
    second = np.abs(ladder.second)
    large, small = second / ladder.steps[:, None]  # gaps between the one-sided slopes
    if np.any((small > KINK_SHARE * large) & (second[1] > 10 * NOISE_FACTOR * unrest)):
        return None
    if like is None:
        # Second differences of a smooth function fall to a sixteenth; what they are off by is the
        # rounding of six values, and a second witness of it beside the gap.
        off = np.abs(ladder.second[0] / 16 - ladder.second[1])
        noise = np.maximum(noise, off / 2)
        unrest = np.maximum(noise, np.minimum(gap * step, WITNESSED * noise))
        least = NOISE_FACTOR * unrest / step + QUOTIENT_ROUNDING * np.abs(value)
    elif np.any(SLOW_FACTOR * gap > like.bound):  # steps that serve this direction less well
        return None
    else:
        least = like.bound
    return Estimate(
        value=value,
        bound=SLOW_FACTOR * gap + least,
        noise=noise,
        kink=np.zeros(ladder.floor.shape),
        is_staircase=False,
        exponent=ladder.exponents[1],
        extend=0,
        unrest=unrest,
    )


def of_one(ladder: Ladder, like: Estimate, second: Floats) -> Estimate | None:
    """The derivative on one step that served a direction like this one; None where it may bend.

    Its bound is what it was along that one. Where it should be too narrow, a claim that agrees
    within it still hides no more: an error along a Gaussian direction falls within a bound less
    often, not more, where something independent is added to it (Anderson 1955). So it may show that
    a claim is right, and accuses of nothing.

    Args:
        ladder: One rung.
        like: What that direction gave there.
        second: (p,) its second differences there.
    """
    if like.kink.any() or ladder.stands or not np.isfinite(ladder.first).all():
        return None
    unseen = 10 * NOISE_FACTOR * like.noise
    if np.any(np.abs(ladder.second[0]) > np.maximum(ALIKE * np.abs(second), unseen)):
        return None
    value = ladder.first[0] / (2 * ladder.sizes[0])
    return replace(like, value=value, exponent=ladder.exponents[0], extend=0)


def _nothing(floor: Floats) -> Estimate:
    return Estimate(
        value=np.full(floor.shape, np.nan),
        bound=np.full(floor.shape, np.inf),
        noise=floor,
        kink=np.zeros(floor.shape),
        is_staircase=False,
        exponent=None,
        extend=-1,
        unrest=floor,
    )


def _extension(ladder: Ladder, column: Column) -> int:
    if ladder.stands and ladder.moves:
        return 1  # the smallest steps are too small already
    down, up = column.may_gain_below, column.may_gain_above
    if not (down and up):
        return up - down
    # Rounding grows by the ratio of the steps towards the smaller ones; truncation and the kinks
    # of a piecewise smooth function do not.
    gaps = gaps_of(column.central)
    return 1 if gaps[-1] >= 2 * gaps[0] or not any(gaps) else -1


def _settles(central: Sequence[float]) -> bool:
    # Near a pole the larger steps tell nothing, and agree with each other on it.
    gaps = gaps_of(central[-4:])
    return len(gaps) == 3 and 0 < gaps[2] <= FAST * gaps[1] and gaps[1] < gaps[0]


def is_jump(ladder: Ladder) -> bool:
    """Whether some difference keeps its size while the step shrinks to a sixteenth.

    A first difference does so at a jump, a second one where the point has a value of its own.
    """
    ladder = ladder.finite()
    if len(ladder.exponents) < 3:
        return False
    return any(
        _stays(differences[-3:], ladder.floor) for differences in (ladder.first, ladder.second)
    )


def _stays(differences: Floats, floor: Floats) -> bool:
    # Noise keeps its size too, but not its value.
    last = np.abs(differences[-1])
    alike = np.abs(differences[:-1] - differences[-1]).max(axis=0) < JUMP_SPREAD * last
    return bool(np.any(alike & (last > 100 * floor)))
