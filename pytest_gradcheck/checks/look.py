"""One direction that was looked along: what moved, what was measured, what it says."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

from pytest_gradcheck.checks.compare import Comparison, strongest
from pytest_gradcheck.checks.probe import Line, Shares
from pytest_gradcheck.numerics.differences import is_jump

# Nearer to the claim than to the other reference, whatever both bounds hide.
SHARP = 2.0
PLAIN = 4.0
BENT = 0.1  # of the slope, by which the slopes on both sides differ where the point is at a kink


@dataclass(frozen=True, eq=False)
class Look:
    """One direction: which inputs moved, what was measured, and the comparison.

    Args:
        shares: For each input that moved, the share of its own size by which it did.
        line: The differences.
        comparisons: One for each set of cotangents.
    """

    shares: Shares
    line: Line
    comparisons: tuple[Comparison, ...]

    @property
    def inputs(self) -> tuple[int, ...]:
        """The inputs that moved."""
        return tuple(self.shares)

    @property
    def off(self) -> Comparison | None:
        """The strongest contradiction, if there is any."""
        worst = strongest(self.comparisons)
        return worst if worst.is_off else None

    @property
    def is_plain(self) -> bool:
        """Whether some comparison is off by several times what is not known for sure."""
        return any(c.is_known and abs(c.difference) > c.plain(PLAIN) for c in self.comparisons)

    @property
    def claims(self) -> bool:
        """Whether no claim is zero: differences tell zero from nothing below their bound."""
        return all(c.claimed for c in self.comparisons)

    @property
    def decisive(self) -> float:
        """A bound at which another look along the same direction refutes this one, or does not."""
        claimed = min(abs(c.claimed) for c in self.comparisons)
        difference = min((abs(c.difference) for c in self.comparisons if c.is_off), default=0.0)
        return min(claimed / 4, difference / (2 * SHARP))

    def refutes(self, suspect: Look) -> bool:
        """Whether it sides with the claim and would have seen what a suspect sees."""
        pairs = zip(self.comparisons, suspect.comparisons, strict=True)
        seen = all(2 * c.bound < abs(c.claimed) for c in self.comparisons)
        sharp = all(
            SHARP * (c.bound + c.slack) < abs(other.difference)
            for c, other in pairs
            if other.is_off
        )
        return seen and sharp and self.off is None

    @functools.cached_property
    def bound(self) -> float:
        """Root mean square over the sets of cotangents of the bounds; infinite where unknown."""
        return math.sqrt(sum(c.bound**2 for c in self.comparisons) / len(self.comparisons))

    @functools.cached_property
    def obscure(self) -> float:
        """What could hide however inputs share, root mean square over the cotangents."""
        return math.sqrt(sum(c.obscure**2 for c in self.comparisons) / len(self.comparisons))

    @property
    def tells(self) -> bool:
        """Whether some reference is larger than its bound."""
        return any(abs(c.reference) > c.bound for c in self.comparisons)

    def hidden(self, index: int, shown: float) -> float:
        """What could hide in an input's scaled gradient, root mean square over the cotangents.

        Args:
            index: The input.
            shown: Size of the differences that were seen, in that input's scaled gradient.
        """
        share = self.shares[index]
        squares = (c.hidden(shown * share) ** 2 for c in self.comparisons)
        return math.sqrt(sum(squares) / len(self.comparisons)) / share

    @functools.cached_property
    def shown(self) -> float:
        """The largest difference between a claim and its reference."""
        return max((abs(c.difference) for c in self.comparisons if c.is_known), default=0.0)

    @property
    def stood_still(self) -> bool:
        """Whether the function did not change at all along the line, not in the last bit."""
        return not self.line.ladder.moves

    @property
    def climbs_stairs(self) -> bool:
        """Whether the function is flat at small steps and moves over many larger ones."""
        return self.line.estimate.is_staircase

    @property
    def has_kink(self) -> bool:
        """Whether the slopes on both sides of the point differ."""
        return any(c.kink for c in self.comparisons)

    @property
    def bends(self) -> bool:
        """Whether they differ by a good part of the slope: its steps are no measure of others."""
        return any(c.kink > BENT * abs(c.reference) for c in self.comparisons)

    @property
    def jumps(self) -> bool:
        """Whether the function changes by a fixed amount however small the step."""
        return is_jump(self.line.ladder)
