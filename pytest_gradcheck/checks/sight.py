"""What the looks at a point have shown so far: of each input, and of the function."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from pytest_gradcheck.checks.demand import Demand
from pytest_gradcheck.checks.look import Look
from pytest_gradcheck.checks.plan import Plan
from pytest_gradcheck.numerics import precision
from pytest_gradcheck.numerics.power import visible_error

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

ARITHMETIC_UNITS = 64.0  # that a value may be rounded by, beside what it changes by
DIM_FACTOR = 1e4  # bounds so much wider than rounding leaves them say nothing about zero
# Of the whole gradient: an input with less may be seen less finely than asked, and that is told.
SMALL_SHARE = {"float64": 1e-3, "float32": 1e-1}
COARSE_RESOLUTION = 0.5
FADED_SHARE = 1e-3  # the same in any precision


@dataclass(slots=True, eq=False)
class Sight:
    """The looks of one point, and what they show.

    Args:
        plan: What is compared.
        demand: What has to be reached.
        looks: The directions that were looked along.
    """

    plan: Plan
    demand: Demand
    looks: list[Look] = field(default_factory=list)

    def gradient_size(self, index: int) -> float:
        """Root mean square, over the sets of cotangents, of an input's scaled gradient norm."""
        return self.plan.sizes[index]

    def resolution(self, index: int) -> float:
        """Smallest relative error of an input's gradient that would have been seen and failed."""
        looks = [look for look in self.looks if index in look.shares]
        sure = self._visible([look.hidden(index, math.inf) for look in looks], index)
        if not self.demand.resolution < sure < math.inf:
            return max(sure, self.demand.tolerance)
        # Of what is accepted, no more hides along any direction than was seen along one of them.
        # As that decides on how long is looked, errors are missed up to twice as often: measured.
        shown = max(look.shown / look.shares[index] for look in looks)
        hidden = [look.hidden(index, shown) for look in looks]
        return max(min(sure, self._visible(hidden, index, 0.5)), self.demand.tolerance)

    def blur(self, index: int) -> float:
        """The same resolution if the differences were all that errors could hide behind."""
        looks = [look for look in self.looks if index in look.shares]
        return self._visible([look.obscure / look.shares[index] for look in looks], index)

    def _visible(self, hidden: Sequence[float], index: int, odds: float = 1.0) -> float:
        size = self.gradient_size(index)
        if not size:
            return math.inf
        return visible_error(hidden, odds * self.demand.miss_probability) / size

    def sees(self, index: int, goal: float, most: float = math.inf) -> bool:
        """Whether an error of a relative size would show: in the differences and in the claim.

        Args:
            index: The input.
            goal: The size.
            most: What may hide behind a claim that is off by what is accepted, at the most.
        """
        within = max(goal, min(self.demand.within, most))
        return self.blur(index) <= goal and self.resolution(index) <= within

    @property
    def count(self) -> int:
        """Number of inputs under test."""
        return len(self.plan.probe.scales)

    @property
    def live(self) -> list[int]:
        """The inputs with a gradient that is not zero."""
        return [i for i in range(self.count) if self.gradient_size(i) > 0]

    @property
    def arithmetic(self) -> str:
        """The precision that the function computes in, judged by its rounding.

        A function may cast to another one inside, or stop an iteration early. Its rounding is held
        against what it changes by when its inputs change by their own size.
        """
        rounding = 0.0
        for look in self.looks:
            found = look.line.estimate
            if look.inputs == tuple(self.live) and found.exponent is not None:
                rounding = max(rounding, float(found.noise.max()))
        return precision.like(rounding / (ARITHMETIC_UNITS * self.plan.whole))

    @property
    def unrest(self) -> float:
        """Rounding of the function, or truncation of its differences, beside its value."""
        unit = precision.epsilon(self.plan.probe.precision)
        parts = [
            rough / (least or 5e-324)
            for look in self.looks
            for rough, least in zip(look.line.estimate.unrest, look.line.ladder.floor, strict=True)
        ]
        return unit * float(max(parts, default=0.0))

    def is_below_noise(self, index: int) -> bool:
        """Whether an input moves the function by less than the function's own rounding."""
        looks = [look for look in self.looks if index in look.shares]
        least = min((look.obscure / look.shares[index] for look in looks), default=math.inf)
        return math.isfinite(least) and self.gradient_size(index) <= least

    def is_dim(self, index: int) -> bool:
        """Whether an input with a gradient of zero could well move the function all the same."""
        looks = [look for look in self.looks if index in look.shares]
        if not looks or any(look.stood_still or look.climbs_stairs for look in looks):
            return False
        seen = max(DIM_FACTOR * self.plan.least_bound, self.demand.resolution * self.plan.whole)
        return min(look.bound for look in looks) > seen

    def unresolved(self, inputs: Sequence[int]) -> list[int]:
        """Those of the inputs in which an error of the asked size could still hide."""
        return [i for i in inputs if not self.sees(i, self.demand.resolution)]

    @property
    def dull(self) -> list[int]:
        """Those of the inputs that move the output for which that is not good enough."""
        open_ = self.unresolved(self.live)
        return [i for i in open_ if not self.is_below_noise(i) and not self.is_coarse(i)]

    def is_coarse(self, index: int) -> bool:
        """Whether an unresolved input is small beside the others and resolved to the half.

        The gradient of such an input is less than ``SMALL_SHARE`` of the whole, and zero, a sign
        or a factor 2 in it would still be seen.
        """
        return self.is_small(index) and self.sees(index, COARSE_RESOLUTION)

    def is_small(self, index: int) -> bool:
        """Whether the gradient of an input is small beside the whole."""
        share = SMALL_SHARE.get(self.plan.probe.precision, SMALL_SHARE["float32"])
        return self.gradient_size(index) <= share * self.plan.whole

    def is_faded(self, index: int) -> bool:
        """The same in any precision: too small to be seen finely among many others."""
        return self.gradient_size(index) <= FADED_SHARE * self.plan.whole

    def spoilt(self) -> Look | None:
        """A look at a jump or a kink at the point, if that is why some input stayed unresolved."""
        live = self.live
        if len(live) == self.count and all(self.is_coarse(i) for i in self.unresolved(live)):
            return None
        rough = (look for look in self.looks if look.jumps or self._is_kinked(look))
        return next(rough, None)

    def _is_kinked(self, look: Look) -> bool:
        # A kink at the point shows along every direction, one beside it along some.
        alike = (other for other in self.looks if other.inputs == look.inputs)
        return all(other.has_kink for other in alike)
