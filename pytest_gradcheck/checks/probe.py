"""Evaluations of a function around its point: the ladder of differences along a direction.

The only file that runs the user's function; it counts, sets random state back before every run,
and turns outputs into numbers by inner products with the cotangents.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pytest_gradcheck.backends import Array, Flat, Guard
from pytest_gradcheck.checks.derivative import Cotangents, Derivative
from pytest_gradcheck.checks.problem import Problem
from pytest_gradcheck.errors import UsageError
from pytest_gradcheck.numerics import precision
from pytest_gradcheck.numerics.differences import (
    RATIO_EXPONENT,
    Estimate,
    Floats,
    Ladder,
    estimate,
    first_exponents,
)
from pytest_gradcheck.numerics.seeds import derive

# A step of 2**HIGHEST moves an input by several times its own size; more says nothing about here.
HIGHEST = 4
MAX_RUNGS = 14
# What a probe outside the domain raises (log, sqrt, cholesky, a solver); anything else is a bug.
OUTSIDE_DOMAIN = (ArithmeticError, ValueError, RuntimeError)


@dataclass(slots=True)
class Cost:
    """Runs so far."""

    evaluations: int = 0
    derivatives: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Line:
    """What was measured along one direction.

    Args:
        direction: One array for each input, None where the input stays.
        ladder: The differences.
        estimate: Derivative and bound, one for each set of cotangents.
    """

    direction: Sequence[Array | None]
    ladder: Ladder
    estimate: Estimate


@dataclass(frozen=True, slots=True, eq=False)
class Probe:
    """A function at a point, with its output there.

    Args:
        problem: Function and point.
        derivative: How the function gives its value.
        guard: The state to set back before every run.
        cost: Counter, shared by the probes of a check.
        outputs: Output at the point.
        rounding: (outputs,) difference between two equal calls, norm-wise; zero when deterministic.
    """

    problem: Problem
    derivative: Derivative
    guard: Guard
    cost: Cost
    outputs: Flat
    rounding: tuple[float, ...]
    scales: tuple[float, ...] = field(default=())

    @property
    def precision(self) -> str:
        """The coarsest real precision of inputs and outputs: what the differences are made of."""
        dtypes = [leaf.dtype for leaf in self.outputs.leaves if leaf.dtype]
        return precision.coarsest([self.problem.dtype, *dtypes])

    def rerun(self, point: Sequence[Array]) -> Flat:
        """The output at another point, from the same random state."""
        self.guard.rewind()
        self.cost.evaluations += 1
        return self.problem.backend.evaluate(
            lambda x: self.derivative.value(self.problem, x), point
        )

    def gradient(self, cotangents: Cotangents) -> list[Array | None]:
        """The derivative under test, from the same random state."""
        self.guard.rewind()
        self.cost.derivatives += 1
        return self.derivative.gradient(self.problem, self.outputs, cotangents)

    def direction(self, seed: int, inputs: Sequence[int]) -> list[Array | None]:
        """A random direction in some of the inputs, as it will be realised in their precision.

        Each input is scaled by a power of two near its root mean square, and rounded so that x + h v
        differs from x by a multiple of h v at the smallest first step.
        """
        problem = self.problem
        direction: list[Array | None] = [None] * len(problem.selected)
        for index in inputs:
            x = problem.point[index]
            v = problem.backend.normal(x, derive(seed, problem.names[index])) * self.scales[index]
            step = 2.0 ** first_exponents(precision.epsilon(self.precision))[-1]
            direction[index] = ((x + v * step) - x) * (1 / step)
        return direction

    def along(
        self,
        direction: Sequence[Array | None],
        cotangents: Sequence[Cotangents],
        *,
        rungs: int = 4,
    ) -> Line:
        """Differences along a direction; the ladder grows where its own bound asks for it.

        Args:
            direction: One array for each input, None where the input stays.
            cotangents: Sets of cotangents to project on.
            rungs: Least number of rungs.
        """
        unit = precision.epsilon(self.precision)
        measured = {e: self._rung(direction, cotangents, e) for e in first_exponents(unit)}
        floor = self._floor(cotangents)
        turned, best = False, math.inf
        while True:
            ladder = _ladder(measured, floor)
            found = estimate(ladder)
            if len(measured) >= rungs and _good(found, ladder, unit):
                return Line(direction, ladder, found)
            # A way that did not help is left for the other one; the ladder's own trend comes first.
            bound = float(np.max(found.bound))
            heading = found.extend if best == math.inf else heading
            if best < math.inf and bound > best / 2:
                heading, turned = -heading, not turned or heading
            best = min(best, bound)
            extension = _extension(sorted(measured), heading, unit) or _extension(
                sorted(measured), -heading, unit
            )
            if not extension:
                return Line(direction, ladder, found)
            for e in extension:
                measured[e] = self._rung(direction, cotangents, e)

    def is_finite_around(self, index: int) -> bool:
        """Whether the function is finite on both sides of the point, along one input."""
        direction = self.direction(0, [index])
        ones = [
            tuple(abs(leaf.value) * 0 + 1 if leaf.dtype else None for leaf in self.outputs.leaves)
        ]
        smallest = first_exponents(precision.epsilon(self.precision))[-1]
        return bool(np.isfinite(self._rung(direction, ones, smallest)[0]).all())

    def _rung(
        self,
        direction: Sequence[Array | None],
        cotangents: Sequence[Cotangents],
        exponent: int,
    ) -> tuple[Floats, Floats]:
        step = 2.0**exponent
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what a probe off the point warns is not news
                plus = self.rerun(self._shifted(direction, step))
                minus = self.rerun(self._shifted(direction, -step))
        except OUTSIDE_DOMAIN:
            missing = np.full(len(cotangents), np.nan)
            return missing, missing
        self._same_shapes(plus)
        self._same_shapes(minus)
        return self._project(plus, minus, cotangents)

    def _shifted(self, direction: Sequence[Array | None], step: float) -> list[Array]:
        return [
            self.problem.backend.convert(x) if v is None else x + v * step
            for x, v in zip(self.problem.point, direction, strict=True)
        ]

    def _project(
        self, plus: Flat, minus: Flat, cotangents: Sequence[Cotangents]
    ) -> tuple[Floats, Floats]:
        inner = self.problem.backend.inner
        first, second = np.zeros(len(cotangents)), np.zeros(len(cotangents))
        for m, (up, centre, down) in enumerate(
            zip(plus.leaves, self.outputs.leaves, minus.leaves, strict=True)
        ):
            if not centre.dtype:
                continue
            above, below = up.value - centre.value, centre.value - down.value
            whole, bend = up.value - down.value, above - below
            for j, weights in enumerate(cotangents):
                if weights[m] is not None:
                    first[j] += inner(weights[m], whole)
                    second[j] += inner(weights[m], bend)
        return first, second

    def _floor(self, cotangents: Sequence[Cotangents]) -> Floats:
        # Independent rounding of each output element, added in quadrature over the projection.
        backend, floor = self.problem.backend, np.zeros(len(cotangents))
        for m, leaf in enumerate(self.outputs.leaves):
            for j, weights in enumerate(cotangents):
                if leaf.dtype and weights[m] is not None:
                    rounding = precision.epsilon(leaf.dtype) * norm(
                        backend, weights[m] * leaf.value
                    )
                    floor[j] += rounding + self.rounding[m] * norm(backend, weights[m])
        return floor

    def _same_shapes(self, outputs: Flat) -> None:
        before = [(leaf.path, leaf.shape) for leaf in self.outputs.leaves]
        after = [(leaf.path, leaf.shape) for leaf in outputs.leaves]
        if before != after:
            raise UsageError(
                f"{self.problem.label} returned outputs of different shapes on two calls: "
                f"{_shapes(self.outputs)} at the point, {_shapes(outputs)} beside it"
            )


def norm(backend: Any, x: Array) -> float:
    """Euclidean norm of an array, real or complex."""
    size = abs(x)
    return math.sqrt(backend.inner(size, size))


def start(problem: Problem, derivative: Derivative, guard: Guard, cost: Cost) -> Probe:
    """Evaluate at the point, twice, and check that the output can be differentiated at all.

    Raises:
        UsageError: The function raises, returns nothing differentiable or non-finite numbers, or
            the inputs hold non-finite numbers.
    """
    _require_finite_inputs(problem)
    scales = tuple(_scale(problem, leaf.value, leaf.size) for leaf in problem.inputs)
    blank = Probe(problem, derivative, guard, cost, Flat((), list), (), scales)
    first = _first_run(blank)
    _require_differentiable(problem, first)
    second = blank.rerun(problem.fresh())
    probe = Probe(problem, derivative, guard, cost, first, (), scales)
    probe._same_shapes(second)
    return Probe(
        problem, derivative, guard, cost, first, _differences(problem, first, second), scales
    )


def _first_run(blank: Probe) -> Flat:
    problem = blank.problem
    if blank.cost.evaluations:  # the guard learns from the first run of all
        blank.guard.rewind()
    try:
        blank.cost.evaluations += 1
        return problem.backend.forward(
            lambda x: blank.derivative.value(problem, x), problem.fresh()
        )
    except UsageError:
        raise
    except Exception as error:  # the user's own code; chained, so that its traceback is shown
        raise UsageError(
            f"{problem.label} raised {type(error).__name__} at the given inputs: {error}"
        ) from error


def _scale(problem: Problem, x: Array, size: int) -> float:
    return precision.power_of_two(norm(problem.backend, x) / math.sqrt(size))


def _differences(problem: Problem, first: Flat, second: Flat) -> tuple[float, ...]:
    return tuple(
        norm(problem.backend, a.value - b.value) / math.sqrt(a.size) if a.dtype and a.size else 0.0
        for a, b in zip(first.leaves, second.leaves, strict=True)
    )


def _require_finite_inputs(problem: Problem) -> None:
    for name, leaf in zip(problem.names, problem.inputs, strict=True):
        if not math.isfinite(norm(problem.backend, leaf.value * 0.0)):
            raise UsageError(
                f"input {name} holds NaN or infinite numbers; a derivative needs a finite point "
                f"(leave a mask or a constant out with wrt=)"
            )


def _require_differentiable(problem: Problem, outputs: Flat) -> None:
    real = [leaf for leaf in outputs.leaves if leaf.dtype and leaf.size]
    if not real:
        got = ", ".join(_kind(leaf.value) for leaf in outputs.leaves) or "nothing"
        if any(leaf.dtype for leaf in outputs.leaves):
            raise UsageError(f"{problem.label} returned arrays without elements: {got}")
        raise UsageError(
            f"{problem.label} returned {got}; it must return floating-point arrays or numbers "
            f"(forgot a return?)"
        )
    for leaf in real:
        if not math.isfinite(norm(problem.backend, leaf.value * 0.0)):
            raise UsageError(
                f"{problem.label} returned NaN or infinite numbers at the given inputs"
                f"{f' (output {leaf.path})' if leaf.path else ''}; give a point inside its domain"
            )


def _kind(value: Any) -> str:
    dtype = getattr(value, "dtype", None)
    return type(value).__name__ + (f" of {dtype}" if dtype is not None else "")


def _shapes(outputs: Flat) -> str:
    return ", ".join(str(leaf.shape) for leaf in outputs.leaves)


def _ladder(measured: dict[int, tuple[Floats, Floats]], floor: Floats) -> Ladder:
    exponents = tuple(sorted(measured, reverse=True))
    first = np.array([measured[e][0] for e in exponents])
    second = np.array([measured[e][1] for e in exponents])
    return Ladder(exponents, first, second, floor)


def _good(found: Estimate, ladder: Ladder, unit: float) -> bool:
    # eps**0.4 (5e-7 in float64) leaves two directions enough for an error of 1 %.
    if not np.isfinite(found.bound).all() or not ladder.moved().any():
        return False
    size = float(np.abs(found.value).max())
    return bool((found.bound <= unit**0.4 * size).all())


def _extension(exponents: list[int], extend: int, unit: float) -> list[int]:
    lowest = round(math.log2(unit))
    if len(exponents) >= MAX_RUNGS:
        return []
    if extend > 0:
        wanted = [exponents[-1] + RATIO_EXPONENT * i for i in (1, 2)]
    else:
        wanted = [exponents[0] - RATIO_EXPONENT * i for i in (1, 2)]
    return [e for e in wanted if lowest <= e <= HIGHEST]
