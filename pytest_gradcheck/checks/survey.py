"""Random directions until every input's gradient would have shown an error of the asked size.

All inputs move together first. One whose gradient is too small to be seen beside the others gets
directions of its own; those whose gradient is zero are moved alone, to see that nothing happens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pytest_gradcheck.backends import Array
from pytest_gradcheck.checks import edges
from pytest_gradcheck.checks.compare import compare
from pytest_gradcheck.checks.look import Look
from pytest_gradcheck.checks.probe import Shares
from pytest_gradcheck.checks.sight import COARSE_RESOLUTION, Sight
from pytest_gradcheck.numerics import growth, precision
from pytest_gradcheck.numerics.growth import Served
from pytest_gradcheck.numerics.power import visible_error
from pytest_gradcheck.numerics.seeds import derive

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

JOINT_DIRECTIONS = (
    4  # in so many, inputs that move together are to be seen; others move by themselves
)
MOST_JOINT = 6  # where some more do, as they are cheaper than others of their own
MOST_DIRECTIONS = 8
FEWEST = 3  # steps that tell of a direction
OWN_ROUNDS = 4  # each covers about five decades of gradient size in float64
ENOUGH = 4.0  # a bound so much wider than before will do: the limit is the function's own
EASY = 2.0  # a bound so much wider is no reason to take other steps than the quick ones
ROUNDED = 2**0.5  # that a share may lose when it is rounded to a power of two
FADED_RESOLUTION = 0.1  # an input whose gradient has faded need not be seen more finely


@dataclass(slots=True, eq=False)
class Survey(Sight):
    """The looks of one point, filled while it runs.

    Args:
        seed: Seed of the directions.
        inside: The precision of a function that computes in a lower one than its own.
        steps: The precision whose steps are taken, where quick ones have misled.
    """

    seed: int = 0
    inside: str = ""
    steps: str = ""
    _again: str = ""
    _goal: float = 1.0  # resolution that is looked for now
    _few: int = JOINT_DIRECTIONS  # in so many directions

    def look(self, inputs: Sequence[int], label: str) -> Look:
        """Measure and compare along the direction of a label, in some of the inputs."""
        before = [k for k in self.looks if k.inputs == tuple(inputs) and k.bound < math.inf]
        shares = self.shares(inputs, [k.obscure for k in before])
        direction = self.plan.probe.direction(derive(self.seed, "direction", label), shares)
        telling = [k for k in before if k.tells]  # steps of those that tell nothing would not do
        whole = [k for k in telling if len(k.line.ladder.exponents) >= FEWEST] or telling[:1]
        first = self._served(whole[-1]) if whole else growth.ANYWHERE
        enough = ENOUGH * _mean([k.bound for k in telling])
        expected = math.hypot(*(share * self.gradient_size(i) for i, share in shares.items()))
        return self.measured(shares, direction, first=first, enough=enough, expected=expected)

    def _served(self, look: Look) -> Served:
        """Steps that will do for another direction in the same inputs."""
        line = look.line
        found = line.estimate
        if found.exponent is None:
            return growth.ANYWHERE
        if look.bends:  # far from the point, other directions may not show it
            return Served(line.ladder.exponents[-FEWEST:])
        unit = precision.epsilon(self.plan.probe.precision)
        near = growth.served(line.ladder, found, unit, EASY * look.bound)
        return near or growth.about(found.exponent, line.ladder, found)

    def shares(self, inputs: Sequence[int], obscure: Sequence[float] = ()) -> dict[int, float]:
        """Shares of their own sizes by which inputs move together, so that each is seen alike.

        One whose gradient is large beside the others moves less. Only the claimed sizes decide on
        that: a claim too large still shows, as far off as it is; one too small lets its input
        move most.

        Args:
            inputs: What moves.
            obscure: What could hide along earlier directions in the same inputs.
        """
        sizes = {i: self.gradient_size(i) for i in inputs}
        # What a few directions like those resolve; less than that would not be seen.
        usual = _mean(obscure) or 2 * self.plan.first_bound
        visible = visible_error([usual] * self._few, self.demand.miss_probability)
        least = min(sizes.values())
        wanted = {i: max(least, ROUNDED * visible / self.goal(i)) for i in inputs}
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
        first: Served = growth.ANYWHERE,
        enough: float = 0.0,
        expected: float = 0.0,
        steps: str = "",
        known: dict[int, growth.Differences] | None = None,
    ) -> Look:
        """Measure and compare along a direction, with the options of ``Probe.along``.

        What one step seems to contradict is measured with more of them.
        """
        plan, known = self.plan, {} if known is None else known
        line = plan.probe.along(
            direction,
            plan.cotangents,
            plan.floor,
            rungs=rungs,
            first=first,
            enough=enough,
            expected=expected,
            steps=steps or self.steps,
            known=known,
        )
        if line.estimate.exponent is None:
            line = edges.one_sided(plan.probe, direction, plan.cotangents, plan.floor) or line
        look = Look(shares, line, compare(self.plan, line, shares, self.demand))
        if look.off is not None and len(line.ladder.exponents) == 1:
            more = replace(first, second=None)
            return self.again(look, rungs=rungs, first=more, enough=enough, steps=steps)
        return look

    def again(
        self,
        look: Look,
        *,
        rungs: int = 3,
        first: Served = growth.ANYWHERE,
        enough: float = 0.0,
        steps: str = "",
    ) -> Look:
        """Measure along the direction of a look with other steps, none of them twice."""
        line = look.line
        return self.measured(
            look.shares,
            line.direction,
            rungs=rungs,
            first=first,
            enough=enough,
            steps=steps,
            known=line.known,
        )

    def relax(self, resolution: float, arithmetic: str) -> None:
        """Ask for less from now on, along other directions, since the function rounds so much."""
        within = max(self.demand.within, resolution)
        self.demand = replace(self.demand, resolution=resolution, within=within)
        self.inside = arithmetic
        self._again += "'"

    def goal(self, index: int) -> float:
        """Relative error of an input's gradient that is looked for now."""
        return max(self._goal, FADED_RESOLUTION) if self.is_faded(index) else self._goal

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
        most = MOST_DIRECTIONS if len(live) == 1 else MOST_JOINT
        if live and self._along_enough(live, "all", most):
            return self.looks[-1]
        return self.looks[-1] if live and self._alone(live) else None

    def dismiss(self, look: Look) -> None:
        """Forget a look that did not hold, and take other directions from now on."""
        if look in self.looks:
            self.looks.remove(look)
        self._again += "'"

    def restart(self, steps: str) -> None:
        """Forget all looks, and take the steps of a precision from now on."""
        self.looks.clear()
        self.steps = steps

    def _add(self, look: Look) -> bool:
        self.looks.append(look)
        return look.off is not None

    def _along_enough(self, inputs: Sequence[int], label: str, most: int) -> bool:
        """Look until the inputs are resolved or more directions would not do; True when off."""
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
        late = len(looks) >= JOINT_DIRECTIONS  # too late to go on for what may stay coarse
        asked = {i: self._least(i) if late else self.goal(i) for i in inputs}
        return any(
            (len(looks) == 1 and self._may_show(i))
            or visible_error([min(look.obscure / look.shares[i] for look in looks)] * most, miss)
            <= goal * self.gradient_size(i)
            for i, goal in asked.items()
            if not self.sees(i, goal, COARSE_RESOLUTION)
        )

    def _may_show(self, index: int) -> bool:
        """Whether rounding would leave enough of an input's gradient at some step."""
        least = [2 * self.plan.lowest_bound] * MOST_DIRECTIONS
        visible = visible_error(least, self.demand.miss_probability)
        return visible <= self.goal(index) * self.gradient_size(index)

    def _alone(self, live: Sequence[int]) -> bool:
        pending = self._open(live)
        before: list[int] = []
        for round_ in range(OWN_ROUNDS):
            if not pending or pending == before or self.plan.probe.cost.is_spent:
                break
            if self._along_enough(pending, f"own {round_}", MOST_DIRECTIONS):
                return True
            pending, before = self._open(pending), pending
        return bool(pending) and self._coarsely([i for i in pending if self.is_small(i)])

    def _open(self, inputs: Sequence[int]) -> list[int]:
        """Those of the inputs that are worth directions of their own."""
        return [i for i in inputs if not self.sees(i, self._least(i))]

    def _least(self, index: int) -> float:
        """Relative error of an input's gradient that is worth more than a few directions."""
        return max(self._goal, COARSE_RESOLUTION) if self.is_faded(index) else self._goal

    def _coarsely(self, small: Sequence[int]) -> bool:
        """Look along many directions in inputs that are too small to be seen as finely as asked."""
        blurred = [i for i in small if not self.sees(i, COARSE_RESOLUTION)]
        if not blurred or self.plan.probe.cost.is_spent:
            return False
        self._goal, self._few = COARSE_RESOLUTION, MOST_DIRECTIONS
        if not any(map(self._may_show, blurred)):
            return False
        return self._along_enough(blurred, "coarse", MOST_DIRECTIONS)


def _mean(sizes: Sequence[float]) -> float:
    """Geometric mean; 0 of nothing, and where one of them is 0."""
    if not sizes or min(sizes) == 0:
        return 0.0
    return math.exp(math.fsum(map(math.log, sizes)) / len(sizes))
