"""Parts of one input, looked at along a direction in which the gradient of the whole is wrong.

The error along a direction is the sum of the errors along its parts. So one look at a part also
tells about the rest of it.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pytest_gradcheck.checks.case import Case, Numbers
from pytest_gradcheck.checks.compare import Comparison, strongest
from pytest_gradcheck.checks.look import Look
from pytest_gradcheck.checks.patterns import Place
from pytest_gradcheck.checks.survey import Survey
from pytest_gradcheck.numerics import growth, precision
from pytest_gradcheck.numerics.differences import first_exponents
from pytest_gradcheck.numerics.growth import Served

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

Chosen = NDArray[np.intp]  # flat indices of elements

CLEAR = 16.0  # a bound so much smaller than the error in question is not worth improving


@dataclass(frozen=True, eq=False)
class Parts:
    """What is needed to look at parts of an input.

    Args:
        survey: Plan and demand.
        case: The input.
        anchor: The look in which its error shows best.
    """

    survey: Survey
    case: Case
    anchor: Look

    @functools.cached_property
    def column(self) -> int:
        """The set of cotangents in which the error shows best."""
        return self.anchor.comparisons.index(self.whole)

    @functools.cached_property
    def whole(self) -> Comparison:
        """The comparison along the whole direction."""
        return strongest(self.anchor.comparisons)

    @functools.cached_property
    def direction(self) -> Numbers:
        """(elements,) the direction."""
        return self.case.plain(self.anchor.line.direction[self.case.index]).ravel()

    @functools.cached_property
    def gradient(self) -> Numbers:
        """(elements,) the claimed gradient."""
        return self.case.gradients[self.column].ravel()

    @property
    def clarity(self) -> float:
        """The error beside what is allowed."""
        return abs(self.whole.difference) / (self.whole.bound + self.whole.slack or 5e-324)

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(self.direction.size)

    def look(self, chosen: Chosen, error: float) -> Look:
        """Move some of the elements only, finely enough to see an error of the given size."""
        direction = np.zeros_like(self.direction)
        direction[chosen] = self.direction[chosen]
        return self.along(direction, error)

    def at(self, chosen: Chosen, error: float) -> Comparison:
        """The comparison in which the error of the whole shows best, for some of the elements."""
        return self.look(chosen, error).comparisons[self.column]

    def along(self, direction: Numbers, error: float) -> Look:
        """Look along another direction in this input."""
        plan, index = self.survey.plan, self.case.index
        leaf = plan.probe.problem.inputs[index]
        array = plan.probe.problem.backend.convert(
            direction.reshape(leaf.shape), leaf.dtype, leaf.device
        )
        whole = [array if i == index else None for i in range(len(plan.probe.problem.inputs))]
        # What rounding is accepted goes with the gradient of the part, not of the whole.
        shares = {index: self.anchor.shares[index] * self._share(direction)}
        return self.survey.measured(shares, whole, first=self.steps, enough=abs(error) / CLEAR)

    def averaged(self, axes: tuple[int, ...]) -> Numbers:
        """A direction that is constant along some axes, as the precision of the input has it."""
        shape = self.case.x.shape
        mean = self.direction.reshape(shape).mean(axis=axes, keepdims=True)
        unit = precision.epsilon(self.survey.plan.probe.precision)
        step = 2.0 ** first_exponents(unit)[-1]
        constant = np.broadcast_to(mean, shape) * step
        return (((constant + self.case.x) - self.case.x) / step).ravel()

    def place(self, element: int, seen: Comparison) -> Place:
        """An element with its own derivative."""
        size = float(abs(self.direction[element])) or 1.0
        sign = -1.0 if self.direction[element].real < 0 else 1.0
        own = replace(
            seen,
            claimed=sign * seen.claimed / size + 0.0,  # no negative zero
            reference=sign * seen.reference / size + 0.0,
            bound=seen.bound / size,
            slack=seen.slack / size,
        )
        return Place(tuple(int(i) for i in np.unravel_index(element, self.case.x.shape)), own)

    @functools.cached_property
    def steps(self) -> Served:
        """Steps that served for the whole."""
        unit = precision.epsilon(self.survey.plan.probe.precision)
        ladder, found = self.anchor.line.ladder, self.anchor.line.estimate
        if found.exponent is None:
            return growth.ANYWHERE
        return growth.served(ladder, found, unit) or growth.about(found.exponent, ladder, found)

    def _share(self, direction: Numbers) -> float:
        size = np.linalg.norm(self.gradient)
        moved = np.linalg.norm(self.gradient[direction != 0])
        return max(float(moved / size), math.sqrt(1 / self.size)) if size else 1.0
