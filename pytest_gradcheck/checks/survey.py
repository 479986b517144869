"""Random directions until every input's gradient would have shown an error of the asked size.

All inputs move together first. One whose gradient is too small to be seen beside the others gets
directions of its own; those whose gradient is zero are moved alone, to see that nothing happens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from pytest_gradcheck.backends import Array
from pytest_gradcheck.checks import edges
from pytest_gradcheck.checks.compare import compare
from pytest_gradcheck.checks.look import Look
from pytest_gradcheck.checks.plan import Plan
from pytest_gradcheck.checks.probe import Shares
from pytest_gradcheck.numerics import growth, precision
from pytest_gradcheck.numerics.differences import around
from pytest_gradcheck.numerics.ladder import RATIO_EXPONENT
from pytest_gradcheck.numerics.power import visible_error
from pytest_gradcheck.numerics.seeds import derive

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

JOINT_DIRECTIONS = 4  # in so many, inputs that move together are to be seen
MOST_DIRECTIONS = 8
WORTH_TOGETHER = 4  # joint directions; inputs that need more are better moved by themselves
OWN_ROUNDS = 4  # each covers about five decades of gradient size in float64
TOP = growth.HIGHEST - 2 * RATIO_EXPONENT  # of a step whose neighbours are steps too
ENOUGH = 4.0  # a bound so much wider than before will do: the limit is the function's own
ARITHMETIC_UNITS = 64.0  # that a value may be rounded by, beside what it changes by
DIM_FACTOR = 1e4  # bounds so much wider than rounding leaves them say nothing about zero
# Of the whole gradient: an input with less may be seen less finely than asked, and that is told.
SMALL_SHARE = {"float64": 1e-3, "float32": 1e-1}
COARSE_RESOLUTION = 0.5
# With less than this share of the whole gradient an input need not be seen more finely than this,
# whatever the precision: its gradient has faded.
FADED_SHARE, FADED_RESOLUTION = 1e-3, 0.1


@dataclass(frozen=True, slots=True)
class Demand:
    """What a survey has to reach, from the limits.

    Args:
        resolution: Relative error of an input's gradient that must be visible.
        miss_probability: Probability with which it may be missed.
        tolerance: Relative error of an input's gradient that is accepted.
    """

    resolution: float
    miss_probability: float
    tolerance: float


@dataclass(slots=True, eq=False)
class Survey:
    """The looks of one point, filled while it runs.

    Args:
        plan: What is compared.
        demand: What has to be reached.
        seed: Seed of the directions.
    """

    plan: Plan
    demand: Demand
    seed: int
    looks: list[Look] = field(default_factory=list)
    inside: str = ""  # the precision of a function that computes in a lower one than its own
    _last: Look | None = None  # its steps will do for the next direction
    _bounds: list[float] = field(default_factory=list)  # those of the looks in the same inputs
    _again: str = ""
    _goal: float = 1.0  # resolution that is looked for now
    _few: int = JOINT_DIRECTIONS  # in so many directions

    def look(self, inputs: Sequence[int], label: str) -> Look:
        """Measure and compare along the direction of a label, in some of the inputs."""
        shares = self.shares(inputs)
        direction = self.plan.probe.direction(derive(self.seed, "direction", label), shares)
        look = self.measured(shares, direction, first=self._served, enough=ENOUGH * self._bound)
        if look.line.estimate.exponent is not None:
            self._last = look
            self._bounds.append(look.bound)
        return look

    @property
    def _bound(self) -> float:
        """A usual bound of the looks in the same inputs, their geometric mean; 0 without one."""
        if not self._bounds or min(self._bounds) == 0:
            return 0.0
        return math.exp(math.fsum(map(math.log, self._bounds)) / len(self._bounds))

    @property
    def _served(self) -> tuple[int, ...]:
        """Steps that served last; none where there was no look yet."""
        if self._last is None or (served := self._last.line.estimate.exponent) is None:
            return ()
        unit = precision.epsilon(self.plan.probe.precision)
        return growth.narrow(self._last.line.ladder, unit) or around(min(served, TOP))

    def shares(self, inputs: Sequence[int]) -> dict[int, float]:
        """Shares of their own sizes by which inputs move together, so that each is seen alike.

        One whose gradient is large beside the others moves less. Only the claimed sizes decide on
        that: a claim too large still shows, as far off as it is; one too small lets its input
        move most.
        """
        sizes = {i: self.gradient_size(i) for i in inputs}
        # What a few directions like the last one resolve; less than that would not be seen.
        bound = self._bound or self.plan.least_bound
        visible = visible_error([2 * bound] * self._few, self.demand.miss_probability)
        least = min(sizes.values())
        wanted = {i: max(least, visible / self.goal(i)) for i in inputs}
        return {
            i: precision.power_of_two(wanted[i] / size) if size > wanted[i] else 1.0
            for i, size in sizes.items()
        }

    def measured(
        self,
        shares: Shares,
        direction: Sequence[Array | None],
        *,
        rungs: int = 3,
        first: tuple[int, ...] = (),
        enough: float = 0.0,
    ) -> Look:
        """Measure and compare along a direction, with the options of ``Probe.along``."""
        plan = self.plan
        line = plan.probe.along(
            direction, plan.cotangents, plan.floor, rungs=rungs, first=first, enough=enough
        )
        if line.estimate.exponent is None:
            line = edges.one_sided(plan.probe, direction, plan.cotangents, plan.floor) or line
        return Look(shares, line, compare(self.plan, line, shares, self.demand.tolerance))

    def gradient_size(self, index: int) -> float:
        """Root mean square, over the sets of cotangents, of an input's scaled gradient norm."""
        return self.plan.sizes[index]

    def resolution(self, index: int) -> float:
        """Smallest relative error of an input's gradient that would have been seen."""
        hidden = [look.hidden(index) for look in self.looks if index in look.shares]
        size = self.gradient_size(index)
        seen = visible_error(hidden, self.demand.miss_probability)
        return seen / size if size else math.inf

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
        return precision.like(rounding / (ARITHMETIC_UNITS * self.whole))

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

    def relax(self, resolution: float, arithmetic: str) -> None:
        """Ask for less from now on, along other directions, since the function rounds so much."""
        self.demand = replace(self.demand, resolution=resolution)
        self.inside = arithmetic
        self._again += "'"

    def is_below_noise(self, index: int) -> bool:
        """Whether an input moves the function by less than the function's own rounding."""
        hidden = [look.hidden(index) for look in self.looks if index in look.shares]
        least = min(hidden, default=math.inf)
        return math.isfinite(least) and self.gradient_size(index) <= least

    def is_dim(self, index: int) -> bool:
        """Whether an input with a gradient of zero could well move the function all the same."""
        looks = [look for look in self.looks if index in look.shares]
        if not looks or any(look.stood_still or look.climbs_stairs for look in looks):
            return False
        seen = max(DIM_FACTOR * self.plan.least_bound, self.demand.resolution * self.whole)
        return min(look.bound for look in looks) > seen

    def goal(self, index: int) -> float:
        """Relative error of an input's gradient that is looked for now."""
        faded = self.gradient_size(index) <= FADED_SHARE * self.whole
        return max(self._goal, FADED_RESOLUTION) if faded else self._goal

    @property
    def whole(self) -> float:
        """Size of the whole gradient."""
        return math.hypot(*(self.gradient_size(i) for i in range(self.count)))

    def unresolved(self, inputs: Sequence[int]) -> list[int]:
        """Those of the inputs in which an error of the asked size could still hide."""
        return [i for i in inputs if not self.resolution(i) <= self.demand.resolution]

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
        return self.is_small(index) and self.resolution(index) <= COARSE_RESOLUTION

    def is_small(self, index: int) -> bool:
        """Whether the gradient of an input is small beside the whole."""
        share = SMALL_SHARE.get(self.plan.probe.precision, SMALL_SHARE["float32"])
        return self.gradient_size(index) <= share * self.whole

    def run(self) -> Look | None:
        """Look along directions until the demand is met or nothing helps; stop at a contradiction.

        Returns:
            The contradicting look, or None.
        """
        self._goal, self._few = self.demand.resolution, JOINT_DIRECTIONS
        still = [i for i in range(self.count) if i not in self.live]
        live = self.dull if self.inside else self.live  # of a second survey: what is left
        if still and self._add(self.look(still, f"still{self._again}")):
            return self.looks[-1]
        most = MOST_DIRECTIONS if len(live) == 1 else WORTH_TOGETHER
        if live and self._along_enough(live, "all", most):
            return self.looks[-1]
        return self.looks[-1] if live and self._alone(live) else None

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

    @property
    def count(self) -> int:
        """Number of inputs under test."""
        return len(self.plan.probe.scales)

    @property
    def live(self) -> list[int]:
        """The inputs with a gradient that is not zero."""
        return [i for i in range(self.count) if self.gradient_size(i) > 0]

    def dismiss(self, look: Look) -> None:
        """Forget a look that did not hold, and take other directions from now on."""
        self.looks.remove(look)
        self._again += "'"

    def _add(self, look: Look) -> bool:
        self.looks.append(look)
        return look.off is not None

    def _along_enough(self, inputs: Sequence[int], label: str, most: int) -> bool:
        """Look until the inputs are resolved or more directions would not do; True when off."""
        if not self.looks or self.looks[-1].inputs != tuple(inputs):
            self._last, self._bounds = None, []  # other inputs, other steps
        for k in range(most):
            if self._add(self.look(inputs, f"{label} {k}{self._again}")):
                return True
            if not self._worth_another(inputs, most):
                return False
            if self.plan.probe.cost.is_spent:
                return False
        return False

    def _worth_another(self, inputs: Sequence[int], most: int) -> bool:
        # Some number of them suffices with the best bound; the first look may have been unlucky.
        miss = self.demand.miss_probability
        looks = [look for look in self.looks if look.inputs == tuple(inputs)]
        return any(
            len(looks) == 1
            or visible_error([min(look.hidden(i) for look in looks)] * most, miss)
            <= self.goal(i) * self.gradient_size(i)
            for i in inputs
            if not self.resolution(i) <= self.goal(i)
        )

    def _alone(self, live: Sequence[int]) -> bool:
        pending = [i for i in live if not self.resolution(i) <= self.goal(i)]
        before: list[int] = []
        for round_ in range(OWN_ROUNDS):
            if not pending or pending == before or self.plan.probe.cost.is_spent:
                break
            if self._along_enough(pending, f"own {round_}", MOST_DIRECTIONS):
                return True
            before = pending
            pending = [i for i in pending if not self.resolution(i) <= self.goal(i)]
        return bool(pending) and self._coarsely([i for i in pending if self.is_small(i)])

    def _coarsely(self, small: Sequence[int]) -> bool:
        """Look along many directions in inputs that are too small to be seen as finely as asked."""
        blurred = [i for i in small if not self.resolution(i) <= COARSE_RESOLUTION]
        if not blurred or self.plan.probe.cost.is_spent:
            return False
        self._goal, self._few = COARSE_RESOLUTION, MOST_DIRECTIONS
        return self._along_enough(blurred, "coarse", MOST_DIRECTIONS)
