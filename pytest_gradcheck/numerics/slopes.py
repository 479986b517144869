"""Slopes on both sides of a point for a ladder of steps, and what they say of a claimed one."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

RATIO = 4.0  # between the steps of a ladder
GAPS = 2.0  # how many gaps between steps a central difference may be off


@dataclass(frozen=True, slots=True)
class Slope:
    """The slope of the loss along a direction, by differences of one step.

    Args:
        down: The slope behind.
        up: The slope ahead.
        slack: How far they may be off.
    """

    down: float
    up: float
    slack: float

    @property
    def low(self) -> float:
        """The smaller of both."""
        return min(self.down, self.up)

    @property
    def high(self) -> float:
        """The larger one."""
        return max(self.down, self.up)

    @property
    def middle(self) -> float:
        """The central difference."""
        return (self.down + self.up) / 2

    def agrees(self, claimed: float, tolerance: float, slack: float) -> bool:
        """Whether a claimed slope is the central difference, or near enough."""
        return not abs(self.middle - claimed) > slack + tolerance

    def holds(self, claimed: float, tolerance: float) -> bool:
        """Whether a claimed slope lies between both sides, or near enough."""
        slack = self.slack + tolerance
        return not self.low - slack > claimed and not self.high + slack < claimed


def at_zero(seen: Sequence[Slope], allowed: float) -> Slope:
    """The slopes on both sides of the point itself, where a right gradient lies between them.

    A kink keeps them apart however short the step; what a bend puts between them goes with the step
    and is taken off (Richardson), by the two shortest steps that rounding does not rule.
    """
    last = max((k for k, each in enumerate(seen) if each.slack <= allowed), default=0)
    fine, coarse = seen[max(last, 1)], seen[max(last, 1) - 1]
    parts = [(RATIO * b - a) / (RATIO - 1) for a, b in _sides(coarse, fine)]
    return Slope(parts[0], parts[1], (RATIO * fine.slack + coarse.slack) / (RATIO - 1))


def _sides(one: Slope, other: Slope) -> tuple[tuple[float, float], tuple[float, float]]:
    return (one.down, other.down), (one.up, other.up)


def bounded(seen: Sequence[Slope]) -> list[Slope]:
    """The slopes with the gaps to their neighbours among the slack: what a bend may cost."""
    gaps = [abs(a.middle - b.middle) for a, b in itertools.pairwise(seen)]
    return [
        replace(each, slack=each.slack + GAPS * max(gaps[max(k - 1, 0) : k + 1]))
        for k, each in enumerate(seen)
    ]
