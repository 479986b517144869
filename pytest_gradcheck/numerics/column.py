"""The derivative of one projection on a ladder: candidates, their bounds, noise and kinks."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from itertools import accumulate, pairwise

NOISE_FACTOR = 3.0  # three standard deviations of the rounding of one difference
ROUNDING_UNITS = 2.0  # least rounding of a value: two units in the last place
QUOTIENT_ROUNDING = 2.0**-50  # float64 rounding of the quotient and its extrapolation, with room
# One-sided slopes that keep at least this share of their gap over a quarter of the step do not
# meet: a smooth function keeps 1/4.
KINK_SHARE = 0.5
FAST = 1 / 8  # a gap over the one before it, where the order is 3/2 or more
SLOW_FACTOR = 2.0  # what the larger gap is short of, one time in a thousand, at order 1/2
RISE = 1.5  # of gaps from one step to the next smaller one; rounding alone makes it 4
CREDIBLE = 0.25  # a bound beside its value that larger steps have settled on
EXCESS = 1e3  # noise beside the rounding of the value that arithmetic alone does not make
SIGNAL = 8.0  # what a function has to move by, beside such noise
FINE_STAIRS = 2.0**-30  # no stairs of a function's own are so many
# So many candidates at smaller steps refute one; fewer may be narrow by chance in rounding noise.
CONTRADICTIONS = 3
DECISIVE = 4.0  # a single one refutes that is further off than so many of its own bounds


class Column:
    """One projection on a ladder of at least three rungs, all finite.

    Plain lists: for so few numbers they are several times as fast as arrays.

    Args:
        first: First differences.
        second: Second differences.
        floor: Least rounding of one value.
        steps: Step sizes, falling.
    """

    def __init__(
        self, first: list[float], second: list[float], floor: float, steps: list[float]
    ) -> None:
        self.first, self.second, self.floor, self.steps = first, second, floor, steps
        self.central = [d / (2 * h) for d, h in zip(first, steps, strict=True)]
        self.extrapolated = [(16 * b - a) / 15 for a, b in pairwise(self.central)]
        self.noise = self._noise()
        rungs = _rungs(len(steps))
        values, bounds = self._candidates(rungs)
        bounds = _reconciled(values, bounds, rungs)
        if self._is_spike():
            bounds = [math.inf] * len(bounds)
        self.bounds = [
            math.inf if self._drowns(r) else b for b, r in zip(bounds, rungs, strict=True)
        ]
        best = min(range(len(values)), key=self.bounds.__getitem__)
        self.value, self.bound, self.rung = values[best], self.bounds[best], rungs[best]

    def _noise(self) -> list[float]:
        """(m - 2) rounding error of one value around each step, never less than at smaller steps.

        The gap of neighbouring extrapolations times their smallest step is rounding, or more than
        it where truncation has not died out. A function that rounds inside (to a lower precision,
        to a grid) is the noisier the larger the step, so each step has its own.
        """
        gaps = gaps_of(self.extrapolated)
        scaled = [gap * h for gap, h in zip(gaps, self.steps[2:], strict=True)]
        least = max(ROUNDING_UNITS * self.floor, self._quantum())
        return [max(rising, least) for rising in _rising(scaled)]

    def _quantum(self) -> float:
        """Least change of a function that stands still at smaller steps, exactly; else 0.

        Only where it is rounding beside the largest change: the function rounds inside, coarser
        than its value tells (1 + erf(x) far on the left). A larger one is a step of the function's
        own.
        """
        if self.first[-1] or self.second[-1]:  # the rule
            return 0.0
        changes = [max(abs(a), abs(b)) for a, b in zip(self.first, self.second, strict=True)]
        least = min((change for change in changes if change), default=math.inf)
        return least if least <= FINE_STAIRS * max(changes) else 0.0

    def _candidates(self, rungs: Sequence[int]) -> tuple[list[float], list[float]]:
        """Values of the central differences, then of the extrapolated, with their bounds."""
        values = self.central[1:-1] + self.extrapolated[1:-1]
        gaps = [*pairwise(gaps_of(self.central)), *pairwise(gaps_of(self.extrapolated))]
        bounds = []
        for value, (coarser, finer), bend, rung in zip(
            values, gaps, self._bends(), rungs, strict=True
        ):
            rounding = NOISE_FACTOR * self.noise[max(rung - 2, 0)] / self.steps[rung]
            rounding += QUOTIENT_ROUNDING * abs(value)
            bounds.append(_spread(coarser, finer) + rounding + bend)
        return values, bounds

    def _bends(self) -> list[float]:
        """What a kink between the point and the step may cost each candidate.

        Where the one-sided slopes do not draw together with the step, a kink lies within it: the
        central difference is a mean of both slopes, off by up to half their gap, and neighbouring
        steps agree on the same mean.
        """
        visible = 10 * NOISE_FACTOR * self.noise[-1]
        sizes = [abs(d) for d in self.second]
        gaps = [size / h for size, h in zip(sizes, self.steps, strict=True)]
        bends = [
            b / 2 if b > KINK_SHARE * a and size > visible else 0.0
            for (a, b), size in zip(pairwise(gaps), sizes[1:], strict=True)
        ]
        if not any(bends):
            return [0.0] * (2 * len(gaps) - 5)
        cost = _rising(bends)  # within a larger step as well
        return cost[:-1] + [(16 * b + a) / 15 for a, b in pairwise(cost)][:-1]

    def _is_spike(self) -> bool:
        """Whether the value at the point is unlike both sides at every step, however small.

        The second difference of a smooth function falls to a sixteenth with the step, across a
        kink to a quarter; where it stays, the steps are too large for what is at the point (a
        pole).
        """
        sizes = [abs(d) for d in self.second[-3:]]
        stays = all(b > KINK_SHARE * a for a, b in pairwise(sizes))
        return stays and sizes[-1] > 10 * NOISE_FACTOR * self.noise[-1]

    def _drowns(self, rung: int) -> bool:
        """Whether the function moves by no more than a noise no arithmetic explains.

        Steps that are too large for a fast function (over many periods of a wave) see its values
        as noise, and their mean slope is none.
        """
        own = self.noise[max(rung - 2, 0)]
        return own > EXCESS * self.floor and abs(self.first[rung]) < SIGNAL * own

    @property
    def may_gain_below(self) -> bool:
        """Whether some smaller step could halve the bound, for all that rounding leaves of it."""
        noise = ROUNDING_UNITS * self.floor
        if self._rises and self.bound < abs(self.value) * CREDIBLE:
            noise = max(noise, self.noise[-1])
        return NOISE_FACTOR * noise / self.steps[-1] < self.bound / 2

    @property
    def _rises(self) -> bool:
        """Whether what differs between neighbours grows towards small steps, as rounding does."""
        gaps = gaps_of(self.central[-4:])
        return all(b > RISE * a for a, b in pairwise(gaps))

    @property
    def may_gain_above(self) -> bool:
        """Whether some larger step could halve the bound: not where truncation rules there."""
        plain = gaps_of(self.central[:3])
        rises = plain[0] >= plain[1]
        return not rises or min(plain[0], *gaps_of(self.extrapolated[:2])) < self.bound / 2

    @property
    def kink(self) -> float:
        """Gap between the one-sided slopes at the smallest step where rounding lets it be seen.

        (f(x+hv) - f(x))/h and (f(x) - f(x-hv))/h differ by second/h: of order h where f is smooth.
        """
        visible = 10 * NOISE_FACTOR * self.noise[-1]
        seen = [i for i, d in enumerate(self.second) if abs(d) > visible]
        if not seen or not seen[-1]:
            return 0.0
        last = seen[-1]
        gap = abs(self.second[last]) / self.steps[last]
        before = abs(self.second[last - 1]) / self.steps[last - 1]
        hides = all(gap * h <= visible for h in self.steps[last + 1 :])
        return gap if hides and gap > KINK_SHARE * before else 0.0


def gaps_of(values: Sequence[float]) -> list[float]:
    """Distances of neighbours."""
    return [abs(b - a) for a, b in pairwise(values)]


def _rising(values: Sequence[float]) -> list[float]:
    """Each raised to the largest of those behind it."""
    return list(accumulate(reversed(values), max))[::-1]


@functools.cache
def _rungs(count: int) -> tuple[int, ...]:
    """The rungs of the candidates: those of the central differences, then the extrapolated."""
    return (*range(1, count - 1), *range(2, count - 1))


def _spread(coarser: float, finer: float) -> float:
    """Bound of a truncation error from the gaps to both neighbours.

    Gaps that shrink fast are larger than the error. Where they do not, convergence is slow and
    irregular (order 1/2 among many kinks) or rounding rules.
    """
    return max(coarser, finer) * (1.0 if finer <= FAST * coarser else SLOW_FACTOR)


def _reconciled(
    values: Sequence[float], bounds: Sequence[float], rungs: Sequence[int]
) -> list[float]:
    """Bounds so wide that few candidates at smaller steps lie outside, and none lies far outside.

    Large steps can agree with each other on a slope that is not the one at the point: over whole
    periods of a wave, over both sides of a pole. Smaller steps then disagree with them.
    """
    wide = []
    for value, bound, rung in zip(values, bounds, rungs, strict=True):
        finer = [
            (abs(value - other), room)
            for other, room, smaller in zip(values, bounds, rungs, strict=True)
            if smaller > rung
        ]
        outside = sorted((gap - room for gap, room in finer), reverse=True)
        far_outside = max((gap - DECISIVE * room for gap, room in finer), default=0.0)
        few = outside[CONTRADICTIONS - 1] if len(outside) >= CONTRADICTIONS else 0.0
        wide.append(max(bound, few, far_outside))
    return wide
