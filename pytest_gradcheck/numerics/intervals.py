"""Intervals of a mean and of a rate from a few replicates."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

# Two-sided 95 % quantiles of Student's t for 1 to 19 degrees of freedom (any table of them).
_T95 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093),
)
NORMAL95 = 1.96


class Interval(NamedTuple):
    """A mean with the interval that covers it with 95 %."""

    mean: float
    low: float
    high: float

    def side(self, limit: float) -> int:
        """-1 where all of it lies below the limit, 1 where all lies above, else 0."""
        return -1 if self.high < limit else 1 if self.low > limit else 0


def quantile(count: int) -> float:
    """Student's two-sided 95 % quantile for ``count`` replicates."""
    return NORMAL95 if count - 1 > len(_T95) else _T95[max(1, count - 1) - 1]


def of_mean(values: Sequence[float], spread: float = math.inf) -> Interval:
    """Student's interval (1908) of the mean.

    Args:
        values: Independent replicates.
        spread: Standard deviation of one, used where there is a single replicate.
    """
    count = len(values)
    if not count:
        return Interval(math.nan, -math.inf, math.inf)
    mean = math.fsum(values) / count
    if count == 1:
        return Interval(mean, mean - NORMAL95 * spread, mean + NORMAL95 * spread)
    variance = math.fsum((v - mean) ** 2 for v in values) / (count - 1)
    half = quantile(count) * math.sqrt(variance / count)
    return Interval(mean, mean - half, mean + half)


def of_rate(hits: int, count: int, level: float = 0.05) -> tuple[float, float]:
    """One-sided limits of a rate, lower and upper (Clopper and Pearson 1934), by bisection."""
    low = 0.0 if not hits else _root(lambda p: 1 - _below(hits - 1, count, p) - level)
    high = 1.0 if hits == count else _root(lambda p: level - _below(hits, count, p))
    return low, high


def _below(hits: int, count: int, p: float) -> float:
    return math.fsum(math.comb(count, k) * p**k * (1 - p) ** (count - k) for k in range(hits + 1))


def _root(rising: Callable[[float], float]) -> float:
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        if rising(middle) > 0:
            high = middle
        else:
            low = middle
    return (low + high) / 2
