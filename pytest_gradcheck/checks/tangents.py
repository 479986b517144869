"""Forward mode alone: for functions that have no reverse mode (loops of unknown length).

The gradient is put together from one tangent for each element. A large problem is checked in a
random subspace: x + V t with a few real numbers t for each input, whose gradient is V' g. So is a
complex one, whose gradient is then real.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from pytest_gradcheck.backends import Array, Flat, Function, Leaf
from pytest_gradcheck.checks.problem import Call, Problem
from pytest_gradcheck.checks.projection import Cotangents, norm
from pytest_gradcheck.numerics import precision
from pytest_gradcheck.numerics.seeds import derive

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

MOST_ELEMENTS = 64  # that get a tangent of their own
# Of the subspace, for each input: an error is missed with probability zero. A prime, which no
# length in the user's own code is taken for.
DIMENSIONS = 7

Moved = list[Array | None]


@dataclass(frozen=True)
class ByTangents:
    """Forward mode of the framework, one tangent for each element."""

    takes_cotangent: ClassVar[bool] = False
    _columns: dict[Problem, list[Moved]] = field(default_factory=dict)

    def function(self, problem: Problem) -> Function:
        """The function itself, of the inputs under test."""
        return problem.run

    def gradient(
        self, problem: Problem, outputs: Flat, cotangents: Cotangents
    ) -> list[Array | None]:
        """Each element: the cotangents times the derivative along it."""
        values = [_projected(problem, cotangents, column) for column in self._moved(problem)]
        gradient: list[Array | None] = []
        start = 0
        for leaf in problem.inputs:
            part = np.array(values[start : start + leaf.size]).reshape(leaf.shape)
            gradient.append(problem.backend.convert(part, leaf.dtype, leaf.device))
            start += leaf.size
        return gradient

    def _moved(self, problem: Problem) -> list[Moved]:
        """The derivative along each element; it serves every set of cotangents."""
        if problem not in self._columns:
            self._columns[problem] = [
                problem.backend.jvp(problem.run, problem.point, tangents)
                for tangents in _basis(problem)
            ]
        return self._columns[problem]


def _projected(problem: Problem, cotangents: Cotangents, column: Moved) -> float:
    inner = problem.backend.inner
    pairs = zip(cotangents, column, strict=True)
    return math.fsum(inner(w, t) for w, t in pairs if w is not None and t is not None)


def _basis(problem: Problem) -> Iterator[list[Array]]:
    """Tangents that move one element each."""
    zeros = [problem.backend.convert(x) * 0 for x in problem.point]
    for index, leaf in enumerate(problem.inputs):
        for k in range(leaf.size):
            unit = np.zeros(leaf.size)
            unit[k] = 1.0
            one = problem.backend.convert(unit.reshape(leaf.shape), leaf.dtype, leaf.device)
            yield [one if i == index else zero for i, zero in enumerate(zeros)]


def restricted(problem: Problem, seed: int) -> Problem:
    """The problem itself if it is small and real, else the same in a random subspace."""
    is_real = not any(leaf.dtype.startswith("complex") for leaf in problem.inputs)
    if is_real and sum(leaf.size for leaf in problem.inputs) <= MOST_ELEMENTS:
        return problem
    return _Subspace(problem, seed).problem()


class _Subspace:
    """A problem in a few random directions for each of its inputs."""

    def __init__(self, whole: Problem, seed: int) -> None:
        self.whole = whole
        self.frames = [self._frame(i, seed) for i in range(len(whole.selected))]
        # The same in each precision that is asked for.
        self.converted: dict[tuple[int, str], tuple[Array, list[Array]]] = {}

    def problem(self) -> Problem:
        """The problem in the coordinates of the subspace, at zero."""
        leaves, convert = list(self.whole.leaves), self.whole.backend.convert
        for index, leaf in zip(self.whole.selected, self.whole.inputs, strict=True):
            dtype = precision.real_part(leaf.dtype)
            zero = convert(np.zeros(DIMENSIONS), dtype, leaf.device)
            leaves[index] = Leaf(leaf.path, zero, dtype, (DIMENSIONS,), leaf.device)
        return replace(self.whole, leaves=tuple(leaves), rebuild=self.rebuild)

    def rebuild(self, values: Sequence[Any]) -> Call:
        """The call at the point that belongs to some coordinates."""
        filled = list(values)
        for spot, index in enumerate(self.whole.selected):
            t = values[index]
            start, frame = self._in_precision_of(spot, t)
            filled[index] = sum((v * t[k] for k, v in enumerate(frame)), start)
        return self.whole.rebuild(filled)

    def _frame(self, spot: int, seed: int) -> list[Array]:
        backend, leaf = self.whole.backend, self.whole.inputs[spot]
        size = norm(backend, leaf.value) / math.sqrt(leaf.size) or 1.0
        seeds = (derive(seed, "subspace", leaf.path, k) for k in range(DIMENSIONS))
        return [backend.normal(leaf.value, own) * size for own in seeds]

    def _in_precision_of(self, spot: int, t: Any) -> tuple[Array, list[Array]]:
        """Origin and directions of an input, so that nothing is rounded to less than ``t``."""
        leaf, convert = self.whole.inputs[spot], self.whole.backend.convert
        is_wide = str(t.dtype).removeprefix("torch.") != precision.real_part(leaf.dtype)
        dtype = precision.promoted(leaf.dtype) if is_wide else leaf.dtype
        if (spot, dtype) not in self.converted:
            frame = [convert(v, dtype) for v in self.frames[spot]]
            self.converted[spot, dtype] = convert(leaf.value, dtype), frame
        return self.converted[spot, dtype]
