"""A loss along directions from a point: its slopes by differences, held against its gradient."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from pytest_gradcheck.checks.steps.sources import Source
from pytest_gradcheck.numerics import clipping, precision
from pytest_gradcheck.numerics.slopes import RATIO, Slope, at_zero, bounded

LEVELS = 5  # steps of a difference
BEND = 8.0  # by which a bend costs less from one step to the next, among kinks
KINK = 0.1  # of a slope, by which those on both sides of a smooth point may differ


class Line:
    """A loss, a point, and the gradient there.

    Args:
        at: The point.
        source: The loss.
        grads: The gradient.
        is_sharp: Whether to trust the best of several steps, or to ask all of them.
        start: The loss at the point as it was seen to be: enough for central differences, of which
            it is no part; asked for again before anything is accused. NaN where it was not.
    """

    def __init__(
        self,
        at: Sequence[np.ndarray],
        source: Source,
        grads: Sequence[np.ndarray],
        is_sharp: bool = True,
        start: float = math.nan,
        is_careful: bool = True,
    ) -> None:
        self._at, self._loss, self.grads, self._is_sharp = at, source.loss, grads, is_sharp
        self._epsilon, self._seen = precision.epsilon(source.dtype), start
        self._start, self._is_careful = math.nan, is_careful
        self.slack = math.inf  # rounding of the longest step of the last slope that was asked for
        self.is_excused = False  # whether a slope was let pass that no step could tell
        self.is_late = False  # whether a shorter step alone agreed: one of many may do so by chance
        self.is_kinked = False  # whether the point itself is a kink, as far as float64 can tell

    def is_open(self, is_spared: bool) -> bool:
        """Whether an agreement is worth a look in float64."""
        return self.is_excused or (self.is_late and not is_spared)

    def gap(self, move: Sequence[np.ndarray], limit: float) -> tuple[float, float] | None:
        """Slope along a direction by differences and by the gradient; None where they agree."""
        claimed = clipping.inner(self.grads, move)
        if not claimed or not math.isfinite(claimed):
            return None
        found = self._off(move, claimed, limit * abs(claimed))
        return None if found is None else (found.middle, claimed)

    def climb(self, move: Sequence[np.ndarray], allowed: float) -> float | None:
        """Slope along a direction in which the gradient has none; None where the loss has none.

        At a kink none of the slopes on both sides need be 0, so they must be the same one.
        """
        found = self._off(move, 0.0, allowed, is_smooth=True)
        return None if found is None else found.middle

    def _off(
        self, move: Sequence[np.ndarray], claimed: float, allowed: float, is_smooth: bool = False
    ) -> Slope | None:
        ends: dict[int, tuple[float, float, float]] = {}
        longest = 0  # step of which an agreement is taken for what it is
        powers = list(range(LEVELS))
        while powers:
            power = powers.pop(0)
            ends[power] = self._ends(move, power)
            start = self._started() if math.isnan(self._seen) else self._seen
            self.slack = self._slope(start, *ends[0]).slack
            slope = self._slope(start, *ends[power])
            if slope.agrees(claimed, allowed, self.slack):
                if not power and self._is_bent(slope, allowed):
                    longest = 1  # what the bend puts there may be what is missing
                    continue
                self.is_late |= power > longest
                return None
            if not power:  # what is passed over is asked for at last, before anything is accused
                k = _powers(abs(slope.middle - claimed), allowed)
                powers = powers[k - 1 :] + powers[: k - 1]
        self.is_excused = True
        seen = [self._slope(self._started(), *ends[power]) for power in range(LEVELS)]
        there = at_zero(seen, allowed)
        is_last = not self._is_sharp or self._epsilon <= precision.epsilon("float64")
        self.is_kinked |= is_last and there.high - there.low > 2 * there.slack + allowed
        if there.holds(claimed, allowed):
            return None
        if is_smooth and not _is_narrow(there):
            return None
        narrow = [] if self._is_sharp else filter(_is_narrow, seen)
        if any(each.holds(claimed, allowed) for each in narrow):
            return None
        best = min(bounded(seen), key=lambda each: each.slack)
        return None if best.agrees(claimed, allowed, best.slack) else best

    def _is_bent(self, slope: Slope, allowed: float) -> bool:
        """Whether a step is so long that its central difference may be off by what is allowed.

        Where one side of a smooth point is off by a share of the slope, the middle is by about its
        square; a quarter of a step is off by a sixteenth of that.
        """
        apart, least = (slope.high - slope.low) / 2, max(abs(slope.middle), allowed)
        return self._is_careful and apart * (apart / least) > allowed

    def _ends(self, move: Sequence[np.ndarray], power: int) -> tuple[float, float, float]:
        """A step, the shorter the higher its power, and the losses after it and before it."""
        size, length = clipping.norm(self._at, 2) or 1.0, clipping.norm(move, 2)
        h = RATIO**-power * self._epsilon**0.25 * size / length
        return h, self._moved(move, h), self._moved(move, -h)

    def _slope(self, start: float, h: float, high: float, low: float) -> Slope:
        """The slopes on both sides of a point, with their rounding as slack."""
        noise = 8 * self._epsilon * max(abs(start), abs(high)) / h
        return Slope((start - low) / h, (high - start) / h, noise)

    def _started(self) -> float:
        if math.isnan(self._start):
            self._start = self._loss(self._at)
        return self._start

    def _moved(self, move: Sequence[np.ndarray], h: float) -> float:
        return self._loss([x + h * u for x, u in zip(self._at, move, strict=True)])


def _is_narrow(slope: Slope) -> bool:
    """Whether the slopes on both sides are not too far apart to tell."""
    return slope.high - slope.low <= KINK * abs(slope.middle) + 2 * slope.slack


def _powers(off: float, allowed: float) -> int:
    """How much shorter a step must be for a bend to cost no more than what is allowed."""
    if not (math.isfinite(off) and off > allowed > 0):
        return 1
    return min(max(round(math.log(off / allowed) / math.log(BEND)), 1), LEVELS - 1)
