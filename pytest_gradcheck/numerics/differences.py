"""A derivative from central differences over a ladder of steps, with a bound of its own error.

Along a line t -> f(x + t v) the ladder holds, for steps h falling by a factor 4, the first
differences f(x + h v) - f(x - h v) and the second differences f(x + h v) + f(x - h v) - 2 f(x).
Nothing here has seen the derivative under test.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pytest_gradcheck.numerics.ladder import RATIO_EXPONENT, Floats, Ladder

NOISE_FACTOR = 3.0  # three standard deviations of the rounding of one difference
ROUNDING_UNITS = 2.0  # least rounding of a value: two units in the last place
QUOTIENT_ROUNDING = 2.0**-50  # float64 rounding of the quotient and its extrapolation, with room
# One-sided slopes that keep at least this share of their gap over a quarter of the step do not
# meet: a smooth function keeps 1/4.
KINK_SHARE = 0.5
FAST = 1 / 8  # a gap over the one before it, where the order is 3/2 or more
SLOW_FACTOR = 2.0  # what the larger gap is short of, one time in a thousand, at order 1/2
EXCESS = 1e3  # noise beside the rounding of the value that arithmetic alone does not make
SIGNAL = 8.0  # what a function has to move by, beside such noise
FINE_STAIRS = 2.0**-30  # no stairs of a function's own are so many
JUMP_SPREAD = 0.1  # differences over three steps that agree to this share are a jump
# So many candidates at smaller steps refute one; fewer may be narrow by chance in rounding noise.
CONTRADICTIONS = 3
DECISIVE = 4.0  # a single one refutes that is further off than so many of its own bounds


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
        extend: -1 when smaller steps promise a better bound, +1 for larger ones, judged on the
            projection with the widest bound.
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


def central_exponent(precision: float) -> int:
    """Exponent of the step that balances rounding and truncation of an order-4 difference.

    Rounding eps/h against truncation h**4 gives h = eps**(1/5) (Press et al. 2007, section 5.7, for
    order 2; the same balance at order 4).
    """
    return round(math.log2(precision) / 5)


def first_exponents(precision: float) -> tuple[int, ...]:
    """The four rungs to start with: one above the balance and two below it."""
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
    shape = ladder.floor.shape
    if len(ladder.exponents) < 3:
        missing = np.full(shape, np.nan)
        return Estimate(
            value=missing,
            bound=np.full(shape, np.inf),
            noise=ladder.floor,
            kink=np.zeros(shape),
            is_staircase=False,
            exponent=None,
            extend=-1,
            unrest=ladder.floor,
        )
    steps = ladder.steps
    central = ladder.first / (2 * steps[:, None])
    extrapolated = (16 * central[1:] - central[:-1]) / 15
    noise = _noise(ladder, extrapolated)
    values, bounds, rungs = _candidates(central, extrapolated, steps, noise)
    bounds = _reconciled(values, bounds + _bends(ladder, noise[-1]), rungs)
    bounds = np.where(_is_spike(ladder, noise[-1]) | _drowns(ladder, noise, rungs), np.inf, bounds)
    columns = np.arange(shape[0])
    best = np.argmin(bounds, axis=0)
    worst = int(np.argmax(bounds[best, columns]))
    return Estimate(
        value=values[best, columns],
        bound=bounds[best, columns],
        noise=noise[-1],
        kink=np.zeros(shape) if is_staircase else _kink(ladder, noise[-1]),
        is_staircase=is_staircase,
        exponent=ladder.exponents[int(rungs[best[worst]])],
        extend=_extension(whole, central[:, worst], bounds[:, worst]),
        unrest=noise[0],
        settles=_settles(central[:, worst]),
    )


def _noise(ladder: Ladder, extrapolated: Floats) -> Floats:
    """(m - 2, p) rounding error of one value around each step, never less than at smaller steps.

    The gap of neighbouring extrapolations times their smallest step is rounding, or more than it
    where truncation has not died out. A function that rounds inside (to a lower precision, to a
    grid) is the noisier the larger the step, so each step has its own.
    """
    scaled = np.abs(extrapolated[1:] - extrapolated[:-1]) * ladder.steps[2:, None]
    rising = np.maximum.accumulate(scaled[::-1], axis=0)[::-1]
    return np.maximum(rising, np.maximum(ROUNDING_UNITS * ladder.floor, _quantum(ladder)))


def _quantum(ladder: Ladder) -> Floats:
    """(p,) least change of a function that stands still at smaller steps, exactly; else 0.

    Only where it is rounding beside the largest change: the function rounds inside, coarser than
    its value tells (1 + erf(x) far on the left). A larger one is a step of the function's own.
    """
    changes = np.maximum(np.abs(ladder.first), np.abs(ladder.second))
    if changes[-1].all():  # the rule
        return np.zeros(ladder.floor.shape)
    least = np.where(changes > 0, changes, np.inf).min(axis=0)
    rounds = (changes[-1] == 0) & (least <= FINE_STAIRS * changes.max(axis=0))
    return np.where(rounds, least, 0.0)


def _candidates(
    central: Floats, extrapolated: Floats, steps: Floats, noise: Floats
) -> tuple[Floats, Floats, NDArray[np.intp]]:
    rungs = _rungs(len(central))
    values = np.concatenate([central[1:-1], extrapolated[1:-1]])
    plain = np.abs(central[1:] - central[:-1])
    better = np.abs(extrapolated[1:] - extrapolated[:-1])
    coarser = np.concatenate([plain[:-1], better[:-1]])
    finer = np.concatenate([plain[1:], better[1:]])
    rounding = NOISE_FACTOR * noise[np.maximum(rungs - 2, 0)] / steps[rungs][:, None]
    rounding += QUOTIENT_ROUNDING * np.abs(values)
    return values, _spread(coarser, finer) + rounding, rungs


@functools.cache
def _rungs(count: int) -> NDArray[np.intp]:
    """The rungs of the candidates: those of the central differences, then the extrapolated."""
    return np.concatenate([np.arange(1, count - 1), np.arange(2, count - 1)])


def _spread(coarser: Floats, finer: Floats) -> Floats:
    """Bound of a truncation error from the gaps to both neighbours.

    Gaps that shrink fast are larger than the error. Where they do not, convergence is slow and
    irregular (order 1/2 among many kinks) or rounding rules.
    """
    return np.maximum(coarser, finer) * np.where(finer <= FAST * coarser, 1.0, SLOW_FACTOR)


def _bends(ladder: Ladder, noise: Floats) -> Floats:
    """What a kink between the point and the step may cost each candidate.

    Where the one-sided slopes do not draw together with the step, a kink lies within it: the
    central difference is a mean of both slopes, off by up to half their gap, and neighbouring
    steps agree on the same mean.
    """
    sizes = np.abs(ladder.second)
    gaps = sizes / ladder.steps[:, None]
    bends = (gaps[1:] > KINK_SHARE * gaps[:-1]) & (sizes[1:] > 10 * NOISE_FACTOR * noise)
    if not bends.any():
        return np.zeros((2 * len(gaps) - 5, len(noise)))
    cost = np.where(bends, gaps[1:] / 2, 0.0)
    cost = np.maximum.accumulate(cost[::-1], axis=0)[::-1]  # within a larger step as well
    extrapolated = (16 * cost[1:] + cost[:-1]) / 15
    return np.concatenate([cost[:-1], extrapolated[:-1]])


def _reconciled(values: Floats, bounds: Floats, rungs: NDArray[np.intp]) -> Floats:
    """Bounds so wide that few candidates at smaller steps lie outside, and none lies far outside.

    Large steps can agree with each other on a slope that is not the one at the point: over whole
    periods of a wave, over both sides of a pole. Smaller steps then disagree with them.
    """
    if len(values) < CONTRADICTIONS:
        return bounds
    finer = (rungs[:, None] < rungs)[:, :, None]
    apart = np.where(finer, np.abs(values[:, None] - values), 0.0)
    outside: Floats = np.sort(apart - bounds, axis=1)[:, -CONTRADICTIONS]
    far_outside: Floats = (apart - DECISIVE * bounds).max(axis=1)
    return np.maximum(bounds, np.maximum(outside, far_outside))


def _direction(central: Floats) -> int:
    # Rounding grows by the ratio of the steps towards the smaller ones; truncation and the kinks
    # of a piecewise smooth function do not.
    gaps = np.abs(central[1:] - central[:-1])
    return 1 if gaps[-1] >= 2 * gaps[0] or not gaps.any() else -1


def _extension(ladder: Ladder, central: Floats, bounds: Floats) -> int:
    if ladder.stands and ladder.moved().any():
        return 1  # the smallest steps are too small already
    # Where nothing is known, smaller steps.
    return -1 if np.isinf(bounds).all() else _direction(central)


def _settles(central: Floats) -> bool:
    # Near a pole the larger steps tell nothing, and agree with each other on it.
    gaps = np.abs(np.diff(central[-4:]))
    return len(gaps) == 3 and bool(0 < gaps[2] <= FAST * gaps[1] and gaps[1] < gaps[0])


def _kink(ladder: Ladder, noise: Floats) -> Floats:
    """(p,) gap between the one-sided slopes at the smallest step where rounding lets it be seen.

    (f(x+hv) - f(x))/h and (f(x) - f(x-hv))/h differ by second/h: of order h where f is smooth.
    """
    visible = 10 * NOISE_FACTOR * noise
    seen = np.abs(ladder.second) > visible
    kink = np.zeros(noise.shape)
    for column in np.flatnonzero(seen[1:].any(axis=0)):
        last = int(np.flatnonzero(seen[:, column])[-1])
        gaps = np.abs(ladder.second[:, column]) / ladder.steps
        hides = gaps[last] * ladder.steps[last + 1 :] <= visible[column]
        if hides.all() and gaps[last] > KINK_SHARE * gaps[last - 1]:
            kink[column] = gaps[last]
    return kink


def _is_spike(ladder: Ladder, noise: Floats) -> NDArray[np.bool_]:
    """(p,) where the value at the point is unlike both sides at every step, however small.

    The second difference of a smooth function falls to a sixteenth with the step, across a kink
    to a quarter; where it stays, the steps are too large for what is at the point (a pole).
    """
    sizes = np.abs(ladder.second[-3:])
    stays = (sizes[1:] > KINK_SHARE * sizes[:-1]).all(axis=0)
    visible = sizes[-1] > 10 * NOISE_FACTOR * noise
    spike: NDArray[np.bool_] = stays & visible
    return spike


def _drowns(ladder: Ladder, noise: Floats, rungs: NDArray[np.intp]) -> NDArray[np.bool_]:
    """(candidates, p) where the function moves by no more than a noise no arithmetic explains.

    Steps that are too large for a fast function (over many periods of a wave) see its values as
    noise, and their mean slope is none.
    """
    own = noise[np.maximum(rungs - 2, 0)]
    drowns: NDArray[np.bool_] = (own > EXCESS * ladder.floor) & (
        np.abs(ladder.first[rungs]) < SIGNAL * own
    )
    return drowns


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
