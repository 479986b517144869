"""Forward mode alone: for functions that have no reverse mode (loops of unknown length).

The gradient is put together from one tangent for each element. A large problem is checked in a
random subspace: x + V t with a few numbers t for each input, whose gradient is V' g.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from pytest_gradcheck.backends import Array, Flat, Function, Leaf
from pytest_gradcheck.checks.derivative import Cotangents
from pytest_gradcheck.checks.problem import Call, Problem
from pytest_gradcheck.errors import UsageError
from pytest_gradcheck.numerics.seeds import derive

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

MOST_ELEMENTS = 64  # that get a tangent of their own
DIMENSIONS = 6  # of the subspace, for each input: an error is missed with probability zero


@dataclass(frozen=True)
class ByTangents:
    """Forward mode of the framework, one tangent for each element."""

    _moved: dict[int, list[list[Array | None]]] = field(default_factory=dict)

    def function(self, problem: Problem) -> Function:
        """The function itself, of the inputs under test."""
        return problem.run

    def gradient(
        self, problem: Problem, outputs: Flat, cotangents: Cotangents
    ) -> list[Array | None]:
        """Each element: the cotangents times the derivative along it."""
        inner, backend = problem.backend.inner, problem.backend
        columns = self._moved.setdefault(id(problem), []) or self._moved[id(problem)]
        if not columns:
            columns += [
                backend.jvp(problem.run, problem.point, tangents) for tangents in _basis(problem)
            ]
        values = [
            sum(inner(w, t) for w, t in zip(cotangents, column, strict=True) if _both(w, t))
            for column in columns
        ]
        gradient, start = [], 0
        for leaf in problem.inputs:
            part = np.array(values[start : start + leaf.size]).reshape(leaf.shape)
            gradient.append(backend.convert(part, leaf.dtype, leaf.device))
            start += leaf.size
        return list(gradient)


def _both(w: Array | None, t: Array | None) -> bool:
    return w is not None and t is not None


def _basis(problem: Problem) -> list[list[Array]]:
    """Tangents that move one element each."""
    backend, tangents = problem.backend, []
    zeros = [backend.convert(x) * 0 for x in problem.point]
    for index, leaf in enumerate(problem.inputs):
        for k in range(leaf.size):
            unit = np.zeros(leaf.size)
            unit[k] = 1.0
            one = backend.convert(unit.reshape(leaf.shape), leaf.dtype, leaf.device)
            tangents.append([one if i == index else zero for i, zero in enumerate(zeros)])
    return tangents


def restricted(problem: Problem, seed: int) -> Problem:
    """The problem itself if it is small, else the same in a random subspace.

    Raises:
        UsageError: Complex inputs, whose tangents are not of one kind.
    """
    if any(leaf.dtype.startswith("complex") for leaf in problem.inputs):
        raise UsageError(
            "modes=('forward',) alone takes real inputs; add 'reverse' for complex ones"
        )
    if sum(leaf.size for leaf in problem.inputs) <= MOST_ELEMENTS:
        return problem
    frames = [_frame(problem, i, seed) for i in range(len(problem.selected))]
    return _in_subspace(problem, problem.point, frames)


def _frame(problem: Problem, index: int, seed: int) -> list[Array]:
    backend, leaf = problem.backend, problem.inputs[index]
    seeds = (derive(seed, "subspace", problem.names[index], k) for k in range(DIMENSIONS))
    size = float(np.sqrt(np.mean(np.square(backend.to_numpy(leaf.value))))) or 1.0
    return [backend.normal(leaf.value, s) * size for s in seeds]


def _in_subspace(
    problem: Problem, origin: Sequence[Array], frames: Sequence[Sequence[Array]]
) -> Problem:
    backend = problem.backend
    leaves = list(problem.leaves)
    for index, leaf in zip(problem.selected, problem.inputs, strict=True):
        zero = backend.convert(np.zeros(DIMENSIONS), leaf.dtype, leaf.device)
        leaves[index] = Leaf(leaf.path, zero, leaf.dtype, (DIMENSIONS,), leaf.device)

    def rebuild(values: Sequence[Any]) -> Call:
        filled = list(values)
        for spot, index in enumerate(problem.selected):
            x, t = origin[spot], values[index]
            start = backend.convert(x, str(t.dtype).removeprefix("torch."))
            filled[index] = sum((v * t[k] for k, v in enumerate(frames[spot])), start)
        return problem.rebuild(filled)

    return replace(problem, leaves=tuple(leaves), rebuild=rebuild)
