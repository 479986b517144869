"""Differences along one line over a ladder of steps."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

RATIO_EXPONENT = 2  # neighbouring steps differ by 2**2: powers of two keep x + h v exact
ONE_SIDED_NOISE = 4.0  # rounding of (4 D(h/4) - D(h))/3 beside that of a central difference
# Moving steps, a factor 4 apart, that make stairs; fewer may be a flat part and its edge.
STAIRCASE_RUNGS = 5
LAST_BITS = 4.0  # units in the last place of the value, which moves so at last, stairs or not
HIGH_STAIRS = 2.0**-9  # those of bfloat16 are half as high beside their own value


@dataclass(frozen=True)
class Ladder:
    """Differences along one line, for several projections of the output.

    Args:
        exponents: (m,) binary exponents of the steps, falling by ``RATIO_EXPONENT``.
        first: (m, p) first differences; non-finite where the function was not.
        second: (m, p) second differences.
        floor: (p,) least rounding error of one value, in units of the value.
    """

    exponents: tuple[int, ...]
    first: Floats
    second: Floats
    floor: Floats

    @property
    def steps(self) -> Floats:
        """(m,) step sizes."""
        return np.exp2(np.asarray(self.exponents, dtype=np.float64))

    @property
    def sizes(self) -> list[float]:
        """(m,) step sizes as a list."""
        return [2.0**e for e in self.exponents]

    def columns(self) -> Iterator[tuple[list[float], list[float], float]]:
        """First and second differences and the floor of each projection."""
        rows = self.first.T.tolist(), self.second.T.tolist(), self.floor.tolist()
        return zip(*rows, strict=True)

    def finite(self) -> Ladder:
        """The rungs below every step at which some projection was not finite."""
        if np.isfinite(self.first).all():
            return self
        bad = ~np.isfinite(self.first).all(axis=1)
        start = int(np.flatnonzero(bad)[-1]) + 1
        return Ladder(self.exponents[start:], self.first[start:], self.second[start:], self.floor)

    @classmethod
    def one_sided(cls, exponents: tuple[int, ...], ahead: Floats, floor: Floats) -> Ladder:
        """The ladder of a function that ends at the point, from its side that is there.

        The first extrapolation of forward differences, (4 D(h/4) - D(h))/3, has order 2 like a
        central difference and takes its place.

        Args:
            exponents: (m,) as above.
            ahead: (m, p) forward differences f(x + h v) - f(x).
            floor: (p,) as above.
        """
        steps = np.exp2(np.asarray(exponents, dtype=np.float64))[:, None]
        slopes = ahead / steps
        second_order = (4 * slopes[1:] - slopes[:-1]) / 3
        first = second_order * 2 * steps[1:]
        return cls(exponents[1:], first, np.zeros_like(first), ONE_SIDED_NOISE * floor)

    def steps_only(self) -> Ladder:
        """Without the small steps at which a staircase stands still, if it is one.

        A function that moves over ``STAIRCASE_RUNGS`` steps or more and not in the last bit below
        them rounds inside (to a lower precision): its slope is that of the stairs. Where the stairs
        are high beside all that it moves by (an integer, a count), it is flat, and no slope is.
        Those of the last bits are the value's own rounding.
        """
        if not self.stands:
            return self
        still: NDArray[np.bool_] = np.all((self.first == 0) & (self.second == 0), axis=1)
        moving = len(still) - int(np.argmin(still[::-1])) if not still.all() else 0
        if moving == len(still) or moving < STAIRCASE_RUNGS:
            return self
        changes = np.maximum(np.abs(self.first), np.abs(self.second)).max(axis=1)
        least = changes[changes > 0].min()
        if least > HIGH_STAIRS * changes.max() or least <= LAST_BITS * self.floor.max():
            return self
        return Ladder(
            self.exponents[:moving], self.first[:moving], self.second[:moving], self.floor
        )

    @functools.cached_property
    def stands(self) -> bool:
        """Whether the function does not change at all at the smallest step."""
        return bool(len(self.first)) and not (self.first[-1].any() or self.second[-1].any())

    @functools.cached_property
    def moves(self) -> bool:
        """Whether the function changes at all along the line, be it in the last bit."""
        return bool(self.first.any() or self.second.any())
