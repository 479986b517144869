"""The derivative under test against the differences along one direction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pytest_gradcheck.checks.demand import Demand
from pytest_gradcheck.checks.plan import Plan
from pytest_gradcheck.checks.probe import Line, Shares
from pytest_gradcheck.checks.projection import norm
from pytest_gradcheck.numerics import precision

# A Gaussian projection of an error of norm t exceeds 4 t once in 16,000 directions.
TOLERANCE_FACTOR = 4.0
ROUNDED_UP = 1 + 2.0**-20  # so that what is off by the tolerance itself is accepted
# Rounding of a sum of some thousand terms that cancel, in units of the last place of the terms.
CANCELLATION_UNITS = 64.0
# The same for a function that rounds more than its own precision explains, measured.
INNER_UNITS = 4.0
EXCESS = 1e3


@dataclass(frozen=True, slots=True)
class Comparison:
    """One number claimed, the same number from differences, and what may lie between them.

    Args:
        claimed: Directional derivative from the derivative under test.
        reference: The same from differences.
        bound: Bound of the reference's error.
        slack: Accepted error of the claimed number itself.
        cancelled: The part of it that is the rounding of terms that cancel.
        is_meant: Whether the rest of it was given as what is right, and is no rounding.
        kink: Gap between the one-sided slopes, 0 where the function is smooth.
        is_staircase: Whether zero is right as well: the function is flat between its steps.
    """

    claimed: float
    reference: float
    bound: float
    slack: float
    kink: float
    is_staircase: bool = False
    cancelled: float = 0.0
    is_meant: bool = False

    @property
    def difference(self) -> float:
        """Claimed minus reference."""
        return self.claimed - self.reference

    def hidden(self, shown: float) -> float:
        """Largest error of the derivative that could hide here.

        Args:
            shown: The largest difference that was seen along like directions, this one among them.
        """
        return self.obscure + min(self.slack - self.cancelled, shown)

    def plain(self, factor: float) -> float:
        """A difference that leaves no doubt: what is accepted on purpose is none."""
        sure = self.slack - self.cancelled if self.is_meant else 0.0
        return sure + factor * (self.bound + self.slack - sure)

    @property
    def obscure(self) -> float:
        """The part of that which does not shrink with the shares by which inputs move."""
        return 2 * self.bound + self.cancelled

    @property
    def is_known(self) -> bool:
        """Whether the reference says anything."""
        return math.isfinite(self.bound)

    @property
    def is_off(self) -> bool:
        """Whether claimed and reference are further apart than both can be wrong."""
        if self.is_staircase and abs(self.claimed) <= self.slack:
            return False
        return self.is_known and abs(self.difference) > self.bound + self.slack

    @property
    def ratio(self) -> float:
        """Claimed over reference; NaN where the reference is not above its bound."""
        return self.claimed / self.reference if abs(self.reference) > self.bound else math.nan


def compare(plan: Plan, line: Line, shares: Shares, demand: Demand) -> tuple[Comparison, ...]:
    """One comparison for each set of cotangents.

    Args:
        plan: Gives the claim.
        line: What was measured.
        shares: For each input that moved, the share of its own size by which it did.
        demand: What is accepted.
    """
    found, tolerance = line.estimate, demand.of_claimed
    norms, scales = plan.claim.norms, plan.probe.scales
    lengths = _lengths(plan, line, shares) if demand.is_meant else {}
    comparisons = []
    for j, gradient in enumerate(plan.claim.gradients):
        parts = {i: norms[j][i] * scales[i] * share for i, share in shares.items()}
        accepted = TOLERANCE_FACTOR * tolerance * math.hypot(*parts.values())
        if demand.is_meant:
            most = math.fsum(lengths[i] * part for i, part in parts.items())
            accepted = min(accepted, ROUNDED_UP * tolerance * most)
        cancelled = TOLERANCE_FACTOR * _cancelled(plan, j, line, demand.tolerance)
        comparisons.append(
            Comparison(
                claimed=plan.probe.pairing(gradient, line.direction),
                reference=float(found.value[j]),
                bound=float(found.bound[j]),
                slack=accepted + cancelled,
                kink=float(found.kink[j]),
                is_staircase=found.is_staircase,
                cancelled=cancelled,
                is_meant=demand.is_meant,
            )
        )
    return tuple(comparisons)


def _lengths(plan: Plan, line: Line, shares: Shares) -> dict[int, float]:
    """Length of a direction in each input that moved, in its scale and share.

    An error of norm t is at most t times that along the direction, whatever it is.
    """
    backend, scales = plan.probe.problem.backend, plan.probe.scales
    return {
        i: norm(backend, line.direction[i]) / (scales[i] * share) for i, share in shares.items()
    }


def _cancelled(plan: Plan, j: int, line: Line, tolerance: float) -> float:
    """Rounding of a gradient that is zero by cancellation: like that of the numbers that cancel.

    The whole gradient, or the value itself where all of it cancels. (The tolerance goes with the
    size of the gradient in the inputs that moved.)
    """
    # In 16 bits so many units would be the gradient itself.
    cancelled = min(cancellation(plan, j), tolerance * whole(plan, j)) + float(line.ladder.floor[j])
    # What computes in a lower precision inside does so in its derivative too.
    inner = float(line.estimate.noise[j])
    return cancelled + (INNER_UNITS * inner if inner > EXCESS * line.ladder.floor[j] else 0.0)


def cancellation(plan: Plan, j: int, unit: float | None = None) -> float:
    """Rounding of a gradient entry whose terms cancel, in units of the whole scaled gradient.

    Args:
        plan: Gives the gradient.
        j: Set of cotangents.
        unit: Unit in the last place; that of the claim by default.
    """
    unit = precision.epsilon(plan.claim.dtype) if unit is None else unit
    return CANCELLATION_UNITS * unit * whole(plan, j)


def whole(plan: Plan, j: int) -> float:
    """Size of a whole gradient, scaled."""
    sizes = (n * s for n, s in zip(plan.claim.norms[j], plan.probe.scales, strict=True))
    return math.hypot(*sizes)


def strongest(comparisons: Sequence[Comparison]) -> Comparison:
    """The comparison whose difference is largest beside what was allowed."""
    return max(comparisons, key=lambda c: abs(c.difference) / (c.bound + c.slack or 5e-324))
