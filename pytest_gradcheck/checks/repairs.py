"""What could make a wrong gradient right: each repair undoes one mistake that people make.

A repair has no free number: it gives the gradient that would be right if its mistake was made. A
term has one: the right gradient would be the claimed one and some multiple of the term.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_gradcheck.backends import Array
from pytest_gradcheck.checks.plan import Plan

Numbers = NDArray[Any]  # float64 or complex128
MOST_AXES = 4  # whose permutations are tried: 23 of them


@dataclass(frozen=True, slots=True)
class Repair:
    """A mistake and its undoing.

    Args:
        pattern: Name of the mistake.
        detail: What belongs to it in words: an axis, another input.
        right: The gradient that would be right, for a set of cotangents.
    """

    pattern: str
    detail: str
    right: Callable[[int], Numbers]


@dataclass(frozen=True, eq=False)
class Case:
    """The claimed gradient of an input, and what it may have been confused with, in NumPy.

    Complex gradients are brought to the convention in which ``Re(sum(conj(g) * v))`` is the
    derivative along ``v``.
    """

    plan: Plan
    index: int

    @functools.cached_property
    def x(self) -> Numbers:
        """The input."""
        return self.value(self.index)

    @functools.cached_property
    def gradients(self) -> tuple[Numbers, ...]:
        """The claimed gradient for each set of cotangents."""
        return tuple(self.claimed(self.index, j) for j in range(len(self.plan.cotangents)))

    def value(self, i: int) -> Numbers:
        """Value of an input."""
        return self.plain(self.plan.probe.problem.point[i])

    def claimed(self, i: int, j: int) -> Numbers:
        """Gradient claimed for an input, zero where there is none."""
        gradient = self.plan.claim.gradients[j][i]
        if gradient is None:
            return np.zeros(self.shape(i))
        plain = self.plain(gradient).reshape(self.shape(i))
        return plain.conj() if self._is_bilinear else plain

    def weights(self, j: int) -> list[Numbers]:
        """A set of cotangents."""
        return [self.plain(w) for w in self.plan.cotangents[j] if w is not None]

    def shape(self, i: int) -> tuple[int, ...]:
        """Shape of an input."""
        return self.plan.probe.problem.inputs[i].shape

    @property
    def others(self) -> list[int]:
        """The other inputs."""
        return [i for i in range(len(self.plan.probe.problem.inputs)) if i != self.index]

    @property
    def twins(self) -> list[int]:
        """The other inputs of the same shape."""
        return [i for i in self.others if self.shape(i) == self.shape(self.index)]

    def name(self, i: int) -> str:
        """Path of an input."""
        return self.plan.probe.problem.names[i]

    def plain(self, x: Array) -> Numbers:
        """Any array as NumPy numbers in double precision."""
        host = np.asarray(self.plan.probe.problem.backend.to_numpy(x))
        return host.astype(np.complex128 if np.iscomplexobj(host) else np.float64)

    @functools.cached_property
    def _is_bilinear(self) -> bool:
        backend = self.plan.probe.problem.backend
        unit = backend.convert(np.array([1j]), "complex128")
        return backend.inner(unit, unit) < 0


def repairs(case: Case) -> Iterator[Repair]:
    """All that can be tried, the likeliest first."""
    for of_kind in _KINDS:
        yield from of_kind(case)


def terms(case: Case) -> Iterator[Repair]:
    """Terms of which some multiple may be missing or too much."""
    yield Repair("offset", "", lambda j: np.ones(case.x.shape))
    yield Repair("term", "x", lambda j: case.x)
    if not np.iscomplexobj(case.x):
        yield Repair("term", "sign(x)", lambda j: np.sign(case.x))
    for i in case.twins:
        yield Repair("term", f"the gradient of {case.name(i)}", lambda j, i=i: case.claimed(i, j))


def _conjugated(case: Case) -> Iterator[Repair]:
    if np.iscomplexobj(case.x):
        yield Repair("conjugate", "", lambda j: case.gradients[j].conj())


def _swapped(case: Case) -> Iterator[Repair]:
    for i in case.twins:
        yield Repair("swapped", case.name(i), lambda j, i=i: case.claimed(i, j))


def _transposed(case: Case) -> Iterator[Repair]:
    shape = case.x.shape
    if len(shape) <= MOST_AXES:
        for axes in itertools.permutations(range(len(shape))):
            if axes != tuple(range(len(shape))) and tuple(shape[a] for a in axes) == shape:
                yield Repair("transposed", "", lambda j, a=axes: case.gradients[j].transpose(a))
    if len(shape) > 1:
        told = "read in column order"
        yield Repair("transposed", told, lambda j: case.gradients[j].reshape(shape, order="F"))
        yield Repair("transposed", told, lambda j: case.gradients[j].ravel("F").reshape(shape))


def _rolled(case: Case) -> Iterator[Repair]:
    axes: list[int | None] = [*range(case.x.ndim)]
    for axis in axes + ([None] if len(axes) > 1 else []):
        for step in (-1, 1):
            yield Repair(
                "rolled",
                f"axis {axis}" if len(axes) > 1 and axis is not None else "",
                lambda j, s=step, a=axis: np.roll(case.gradients[j], s, a),
            )


def _flipped(case: Case) -> Iterator[Repair]:
    axes: list[int | None] = [*range(case.x.ndim)]
    for axis in axes + ([None] if len(axes) > 1 else []):
        yield Repair(
            "flipped",
            f"axis {axis}" if len(axes) > 1 and axis is not None else "",
            lambda j, a=axis: np.flip(case.gradients[j], a),
        )


def _centred(case: Case) -> Iterator[Repair]:
    """What normalisations subtract: a mean, the part along the input, or both."""
    for axis in [None, *range(case.x.ndim)] if case.x.ndim > 1 else [None]:
        told = "all elements" if axis is None else f"axis {axis}"
        hat = _standardised(case.x, axis)

        def less(g: Numbers, *parts: Numbers, axis: int | None = axis) -> Numbers:
            return g - sum(_part(g, p, axis) for p in parts)

        one = np.ones(case.x.shape)
        for parts in ((one,), (hat,), (one, hat), (case.x,)):
            yield Repair("mean", told, lambda j, p=parts, less=less: less(case.gradients[j], *p))


def _standardised(x: Numbers, axis: int | None) -> Numbers:
    centred = x - x.mean(axis=axis, keepdims=True)
    return centred


def _part(g: Numbers, along: Numbers, axis: int | None) -> Numbers:
    """The part of a gradient along a direction, of unit length or not, over an axis."""
    length = (along.conj() * along).sum(axis=axis, keepdims=True).real
    inner = (along.conj() * g).sum(axis=axis, keepdims=True)
    part: Numbers = along * (inner / np.where(length > 0, length, 1.0))
    return part


def _summed(case: Case) -> Iterator[Repair]:
    """One slice of what should have been summed over the axes that were broadcast."""
    for source in _broadcast(case):
        first = source(0)
        axes = _axes(first.shape, case.x.shape)
        for which in (0, -1):
            kept = np.stack([first]) if not axes else first
            for axis in sorted(axes, reverse=True):
                kept = kept.take(which, axis)
            for sign in (1.0, -1.0):
                if np.allclose(sign * kept.reshape(case.x.shape), case.gradients[0], rtol=1e-6):
                    yield Repair(
                        "broadcast",
                        "the first" if which == 0 else "the last",
                        lambda j, s=source, a=axes, c=sign: (
                            c * s(j).sum(axis=a).reshape(case.x.shape)
                        ),
                    )


def _broadcast(case: Case) -> Iterator[Callable[[int], Numbers]]:
    """Arrays to which the input may have been broadcast: gradients before they were summed."""
    for m, weight in enumerate(case.weights(0)):
        if _axes(weight.shape, case.x.shape):
            yield lambda j, m=m: case.weights(j)[m]
            for i in case.others:
                if case.shape(i) == weight.shape:
                    yield lambda j, m=m, i=i: case.weights(j)[m] * case.value(i).conj()
    for i in case.others:
        if _axes(case.shape(i), case.x.shape):
            yield lambda j, i=i: case.claimed(i, j)


def _axes(wide: tuple[int, ...], narrow: tuple[int, ...]) -> tuple[int, ...]:
    """Axes along which a shape grows by broadcasting; none where it does not become the other."""
    lead = len(wide) - len(narrow)
    if lead < 0 or any(n not in (1, w) for n, w in zip(narrow, wide[lead:], strict=True)):
        return ()
    ones = (k for k, (n, w) in enumerate(zip(narrow, wide[lead:], strict=True)) if n < w)
    return (*range(lead), *(lead + k for k in ones))


_KINDS = (
    _conjugated,
    _swapped,
    _transposed,
    _rolled,
    _flipped,
    _summed,
    _centred,
)
