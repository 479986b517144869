"""Evaluations of a function around its point: the ladder of differences along a direction.

The only file that runs the user's function; it counts, sets random state back before every run,
and turns outputs into numbers by inner products with the cotangents.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pytest_gradcheck.backends import Array, Flat, Guard, RefusedRule
from pytest_gradcheck.checks.cost import Cost
from pytest_gradcheck.checks.derivative import Derivative, Uncast
from pytest_gradcheck.checks.form import WrongDerivative, of_form
from pytest_gradcheck.checks.problem import Problem, of_user
from pytest_gradcheck.checks.projection import Cotangents, norm, projected, rounding_of
from pytest_gradcheck.errors import UsageError
from pytest_gradcheck.numerics import precision
from pytest_gradcheck.numerics.differences import Estimate, careful_exponents, first_exponents
from pytest_gradcheck.numerics.growth import ANYWHERE, Differences, Served, grown
from pytest_gradcheck.numerics.ladder import Floats, Ladder
from pytest_gradcheck.numerics.seeds import derive

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

# Another kernel (with and without a graph) or another order of summation may cost so much.
WOBBLE_UNITS = 64.0
# What a probe outside the domain raises (log, sqrt, cholesky, a solver); anything else is a bug.
OUTSIDE_DOMAIN = (ArithmeticError, ValueError, RuntimeError)

Shares = Mapping[int, float]


@dataclass(frozen=True, slots=True, eq=False)
class Line:
    """What was measured along one direction.

    Args:
        direction: One array for each input, None where the input stays.
        ladder: The differences.
        estimate: Derivative and bound, one for each set of cotangents.
        known: Differences along the direction by the exponent of their step, those of other
            ladders too; filled as it is measured again.
    """

    direction: Sequence[Array | None]
    ladder: Ladder
    estimate: Estimate
    known: dict[int, Differences] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Probe:
    """A function at a point, with its output there.

    Args:
        problem: Function and point.
        derivative: How the function gives its value.
        guard: The state to set back before every run.
        cost: Counter, shared by the probes of a check.
        outputs: Output at the point.
        scales: (inputs,) power of two near the root mean square of each.
        inside: A precision that the function computes in, where that is lower than those of its
            inputs and outputs.
        rounding: (outputs,) difference between two equal calls, norm-wise; zero when deterministic.
    """

    problem: Problem
    derivative: Derivative
    guard: Guard
    cost: Cost
    outputs: Flat
    rounding: tuple[float, ...]
    scales: tuple[float, ...] = field(default=())
    inside: str = ""

    @functools.cached_property
    def precision(self) -> str:
        """The coarsest real precision of inputs and outputs: what the differences are made of."""
        dtypes = [leaf.dtype for leaf in self.outputs.leaves if leaf.dtype]
        return precision.coarsest(
            [self.problem.dtype, *dtypes, *([self.inside] * bool(self.inside))]
        )

    @property
    def is_repeatable(self) -> bool:
        """Whether equal calls give equal values, last bits apart."""
        return self.wobble <= WOBBLE_UNITS * precision.epsilon(self.precision)

    @property
    def wobble(self) -> float:
        """Largest difference between two equal calls, relative to the output."""
        backend, largest = self.problem.backend, 0.0
        for leaf, gap in zip(self.outputs.leaves, self.rounding, strict=True):
            if gap:
                size = norm(backend, leaf.value) / math.sqrt(leaf.size)
                largest = max(largest, gap / size if size else math.inf)
        return largest

    def lowest_inside(self) -> str:
        """The coarsest precision that the function is seen to compute in, its own one included."""
        return precision.coarsest([self.precision, *(self._lowered() or ())])

    def lower_inside(self) -> tuple[bool, tuple[str, ...]]:
        """Lower precisions that it computes in, finest first, and whether they were seen.

        All there are where the framework shows none.
        """
        coarser, seen = precision.coarser(self.precision), self._lowered()
        return seen is not None, tuple(n for n in coarser if seen is None or n in seen)

    def uncast(self) -> Probe | None:
        """The same function without its casts to lower precisions, where that can be had."""
        clean = self.problem.backend.uncast(self.problem.run)
        if clean is None:
            return None
        probe = replace(self, derivative=Uncast(clean))
        try:
            return replace(probe, outputs=probe.rerun(self.problem.fresh()))
        except Exception:  # precisions that do not go together without the casts
            return None

    def _lowered(self) -> tuple[str, ...] | None:
        self.guard.rewind()
        return self.problem.backend.lowered(self.problem.run, self.problem.fresh())

    def rerun(self, point: Sequence[Array]) -> Flat:
        """The output at another point, from the same random state."""
        self.guard.rewind()
        self.cost.evaluated()
        return self.problem.backend.evaluate(self.derivative.function(self.problem), point)

    def gradient(self, cotangents: Cotangents) -> list[Array | None]:
        """The derivative under test, from the same random state."""
        self.guard.rewind()
        self.cost.derivatives += 1
        try:
            return self.derivative.gradient(self.problem, self.outputs, cotangents)
        except (UsageError, WrongDerivative):
            raise
        except RefusedRule as refused:
            raise of_form(self.problem, refused) from refused.__cause__
        except Exception as error:  # the user's own code; chained, so that its traceback is shown
            told = f"the derivative of {self.problem.label} raised {type(error).__name__}: {error}"
            form = getattr(self.derivative, "form", "")
            if form and isinstance(error, TypeError) and "argument" in str(error):
                names = dict.fromkeys(self.problem.groups[i] for i in self.problem.selected)
                told += f"; it is called as {form.format(', '.join(names))}"
            raise UsageError(told) from of_user(error)

    def direction(self, seed: int, shares: Shares) -> list[Array | None]:
        """A random direction in some of the inputs, as it will be realised in their precision.

        Each input is scaled by a power of two near its root mean square, and rounded so that at
        the smallest first step x + h v differs from x by h v.

        Args:
            seed: Seed of the direction.
            shares: For each input that moves, the share of its own size by which it does.
        """
        return self._direction(seed, {i: self.scales[i] * share for i, share in shares.items()})

    def relative_direction(self, seed: int, shares: Shares) -> list[Array | None]:
        """A random direction in which each element moves in proportion to its own size.

        It stays on this side of a pole or an edge that only small elements are near.
        """
        point, scales = self.problem.point, self.scales
        sizes = {i: abs(point[i]) + (point[i] * 0 + scales[i]) * (point[i] == 0) for i in shares}
        return self._direction(seed, {i: size * shares[i] for i, size in sizes.items()})

    def _direction(self, seed: int, sizes: Mapping[int, Any]) -> list[Array | None]:
        problem = self.problem
        step = 2.0 ** first_exponents(precision.epsilon(self.precision))[-1]
        direction: list[Array | None] = [None] * len(problem.selected)
        for index, size in sizes.items():
            x = problem.point[index]
            v = problem.backend.normal(x, derive(seed, problem.names[index]))
            v *= size * step  # in place where the framework can: as large as the model
            v += x
            v -= x
            v *= 1 / step
            for row in problem.inputs[index].padding:
                v[row] = 0
            direction[index] = v
        return direction

    def along(
        self,
        direction: Sequence[Array | None],
        cotangents: Sequence[Cotangents],
        floor: Floats,
        *,
        rungs: int = 3,
        first: Served = ANYWHERE,
        enough: float = 0.0,
        expected: float = 0.0,
        steps: str = "",
        known: dict[int, Differences] | None = None,
    ) -> Line:
        """Differences along a direction; the ladder grows where its own bound asks for it.

        Args:
            direction: One array for each input, None where the input stays.
            cotangents: Sets of cotangents to project on.
            floor: Least rounding of one value, for each set.
            rungs: Least number of rungs.
            first: Rungs to begin with.
            enough: A bound that is not worth improving.
            expected: Size of the value along most directions.
            steps: A precision whose steps are taken, beginning with careful ones; by default those
                of the probe, beginning with quick ones.
            known: Differences along the same direction that were measured before; filled.
        """
        known = {} if known is None else known

        def rung(exponent: int) -> Differences:
            if exponent not in known:
                known[exponent] = self._rung(direction, cotangents, exponent)
            return known[exponent]

        unit = precision.epsilon(steps or self.precision)
        if steps and not first.exponents:
            first = Served(careful_exponents(unit))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what a probe off the point warns is not news
            ladder, found = grown(
                rung,
                floor,
                unit,
                rungs=rungs,
                first=first,
                enough=enough,
                expected=expected,
                is_spent=lambda: self.cost.is_spent,
            )
        return Line(direction, ladder, found, known)

    def pairing(self, gradient: Sequence[Array | None], direction: Sequence[Array | None]) -> float:
        """Inner product of a gradient with a direction, over all inputs that both have."""
        inner = self.problem.backend.inner
        pairs = zip(gradient, direction, strict=True)
        return math.fsum(inner(g, v) for g, v in pairs if g is not None and v is not None)

    def _rung(
        self,
        direction: Sequence[Array | None],
        cotangents: Sequence[Cotangents],
        exponent: int,
    ) -> Differences:
        step = 2.0**exponent
        try:
            plus = self.rerun(self.shifted(direction, step))
            minus = self.rerun(self.shifted(direction, -step))
            self.require_same_shapes(plus)
            self.require_same_shapes(minus)
        except (*OUTSIDE_DOMAIN, UsageError):
            missing = [math.nan] * len(cotangents)
            return missing, missing
        return projected(self.problem.backend, (plus, self.outputs, minus), cotangents)

    def shifted(self, direction: Sequence[Array | None], step: float) -> list[Array]:
        """The point moved along a direction."""
        backend = self.problem.backend
        return [
            backend.convert(x) if v is None else backend.moved(x, v, step)
            for x, v in zip(self.problem.point, direction, strict=True)
        ]

    def floor(self, cotangents: Sequence[Cotangents]) -> Floats:
        """(sets,) least rounding error of one value, projected on each set of cotangents."""
        backend = self.problem.backend
        return rounding_of(backend, self.outputs, self.rounding, self.inside, cotangents)

    def require_same_shapes(self, outputs: Flat) -> None:
        """Raise UsageError unless the outputs are shaped like those at the point."""
        before, after = self.outputs.leaves, outputs.leaves
        pairs = zip(before, after, strict=False)
        if len(before) != len(after) or any(
            a.shape != b.shape or a.path != b.path for a, b in pairs
        ):
            raise UsageError(
                f"{self.problem.label} returned outputs of different shapes on two calls: "
                f"{_shapes(self.outputs)} at the point, {_shapes(outputs)} beside it"
            )


def _shapes(outputs: Flat) -> str:
    return ", ".join(str(leaf.shape) for leaf in outputs.leaves)
