"""What could make a wrong gradient right: each repair undoes one mistake that people make.

A repair has no free number: it gives the gradient that would be right if its mistake was made. A
term has one: the right gradient would be the claimed one and some multiple of the term.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from pytest_gradcheck.backends import Leaf
from pytest_gradcheck.checks.case import Case, Numbers

Source = Callable[[int], Numbers]  # set of cotangents -> an array
SAME = 1e-6  # relative; far above the rounding of equal numbers
MOST_RUNS = 32  # of the derivative, to know it whole
MOST_PAIRS = 6  # of outputs of one shape: those of four
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
    right: Source


def repairs(case: Case) -> Iterator[Repair]:
    """All that can be tried, the likeliest first."""
    for of_kind in _KINDS:
        yield from of_kind(case)


def terms(case: Case) -> Iterator[Repair]:
    """Terms of which some multiple may be missing or too much; any would explain one number."""
    if case.x.size < 2:
        return
    yield from constants(case)
    for i in case.twins:
        yield Repair("term", f"the gradient of {case.name(i)}", partial(case.claimed, i))


def constants(case: Case) -> Iterator[Repair]:
    """Those of the terms that are the same for every cotangent."""
    yield Repair("offset", "", lambda j: np.ones(case.x.shape))
    yield Repair("term", case.name(case.index), lambda j: case.x)
    if not np.iscomplexobj(case.x):
        yield Repair("term", f"sign({case.name(case.index)})", lambda j: np.sign(case.x))


def _conjugated(case: Case) -> Iterator[Repair]:
    if np.iscomplexobj(case.x):
        yield Repair("conjugate", "", _each(case, np.conj))
        if any(np.iscomplexobj(weight) for weight in case.weights(0)):
            yield Repair("conjugate", "", functools.cache(partial(_mirrored, case)))


def _mirrored(case: Case, j: int) -> Numbers:
    """The gradient that is right where the derivative lacks a conjugate, by one more run of it."""
    convert = case.plan.probe.problem.backend.convert
    mirror = [None if w is None else convert(w.conj()) for w in case.plan.cotangents[j]]
    gradient = case.again(mirror)
    return case.gradients[j] if gradient is None else gradient.conj()


def _exchanged(case: Case) -> Iterator[Repair]:
    """The cotangents of two outputs of one shape, taken for each other."""
    leaves, drawn = case.plan.probe.outputs.leaves, case.plan.cotangents[0]
    spots = [m for m, weight in enumerate(drawn) if weight is not None]
    pairs = itertools.combinations(spots, 2)
    alike = ((a, b) for a, b in pairs if _form(leaves[a]) == _form(leaves[b]))
    for a, b in itertools.islice(alike, MOST_PAIRS):
        told = f"outputs {leaves[a].path} and {leaves[b].path}"
        yield Repair("exchanged", told, functools.cache(partial(_with_exchanged, case, a, b)))


def _form(leaf: Leaf) -> tuple[str, tuple[int, ...]]:
    return leaf.dtype, leaf.shape


def _with_exchanged(case: Case, a: int, b: int, j: int) -> Numbers:
    """The gradient that is right where two cotangents are exchanged, by one more run of it."""
    weights = list(case.plan.cotangents[j])
    weights[a], weights[b] = weights[b], weights[a]
    gradient = case.again(weights)
    return case.gradients[j] if gradient is None else gradient


def _swapped(case: Case) -> Iterator[Repair]:
    for i in case.twins:
        yield Repair("swapped", case.name(i), partial(case.claimed, i))


def _transposed(case: Case) -> Iterator[Repair]:
    shape = case.x.shape
    same = tuple(range(len(shape)))
    if len(shape) <= MOST_AXES:
        for axes in itertools.permutations(same):
            if axes != same and tuple(shape[a] for a in axes) == shape:
                yield Repair("transposed", "", _each(case, np.transpose, axes))
    if len(shape) > 1:
        yield Repair("transposed", "", _each(case, _to_columns))
        yield Repair("transposed", "", _each(case, _from_columns))


def _to_columns(g: Numbers) -> Numbers:
    """The numbers in their order, written column by column."""
    return g.reshape(g.shape[::-1]).T


def _from_columns(g: Numbers) -> Numbers:
    """The numbers read column by column, in their order."""
    return g.T.reshape(g.shape)


def _folded(case: Case) -> Iterator[Repair]:
    """What is right for symmetric changes, of a function that reads one triangle alone."""
    x = case.x
    if x.ndim < 2 or x.shape[-1] != x.shape[-2] or not np.allclose(x, _adjoint(x), rtol=SAME):
        return
    for told, cut in (("lower", np.tril), ("upper", np.triu)):
        yield Repair("triangle", told, _each(case, _onto, cut))


def _adjoint(x: Numbers) -> Numbers:
    return np.swapaxes(x, -1, -2).conj()


def _onto(g: Numbers, cut: Callable[[Numbers], Numbers]) -> Numbers:
    """Both halves of a gradient added up in one triangle."""
    diagonal = np.einsum("...ii->...i", g)
    folded = cut(g + _adjoint(g))
    np.einsum("...ii->...i", folded)[...] = diagonal
    return folded


def _rolled(case: Case) -> Iterator[Repair]:
    for axis, told in _axes_and_all(case.x):
        for step in (-1, 1):
            yield Repair("rolled", told, _each(case, np.roll, step, axis))


def _flipped(case: Case) -> Iterator[Repair]:
    for axis, told in _axes_and_all(case.x):
        yield Repair("flipped", told, _each(case, np.flip, axis))


def _axes_and_all(x: Numbers) -> list[tuple[int | None, str]]:
    """Each axis with its name, and all elements in a row, which needs none."""
    axes: list[tuple[int | None, str]] = [(axis, f"axis {axis}") for axis in range(x.ndim)]
    return [*axes, (None, "")] if x.ndim > 1 else [(None, "")]


def _centred(case: Case) -> Iterator[Repair]:
    """What normalisations subtract: a mean, the part along the input, or both."""
    one = np.ones(case.x.shape)
    for axis in [None, *range(case.x.ndim)] if case.x.ndim > 1 else [None]:
        told = "all elements" if axis is None else f"axis {axis}"
        hat = case.x - case.x.mean(axis=axis, keepdims=True)
        for parts in ((one,), (hat,), (one, hat), (case.x,)):
            yield Repair("mean", told, _each(case, _without, parts, axis))


def _without(g: Numbers, parts: Sequence[Numbers], axis: int | None) -> Numbers:
    """A gradient without what lies along the parts, which are orthogonal, over an axis."""
    left = g
    for along in parts:
        length = (along.conj() * along).real.sum(axis=axis, keepdims=True)
        inner = (along.conj() * g).sum(axis=axis, keepdims=True)
        left = left - along * (inner / np.where(length > 0, length, 1.0))
    return left


def _summed(case: Case) -> Iterator[Repair]:
    """One slice of what should have been summed over the axes that were broadcast."""
    for source in _broadcast(case):
        wide = source(0)
        axes = _broadcast_axes(wide.shape, case.x.shape)
        for which, told in ((0, "the first slice"), (-1, "the last slice")):
            kept = wide
            for axis in sorted(axes, reverse=True):
                kept = kept.take(which, axis)
            for sign in (1.0, -1.0):
                if np.allclose(sign * kept.reshape(case.x.shape), case.gradients[0], rtol=SAME):
                    right = partial(_sum, case, source, axes, sign)
                    yield Repair("broadcast", f"{told} of the sum over axis {axes[0]} only", right)


def _sum(case: Case, source: Source, axes: tuple[int, ...], sign: float, j: int) -> Numbers:
    summed: Numbers = sign * source(j).sum(axis=axes).reshape(case.x.shape)
    return summed


def _broadcast(case: Case) -> Iterator[Source]:
    """Arrays to which the input may have been broadcast: gradients before they were summed."""
    for m, weight in enumerate(case.weights(0)):
        if _broadcast_axes(weight.shape, case.x.shape):
            yield partial(_weighted, case, m, None)
            for i in case.others:
                if case.shape(i) == weight.shape:
                    yield partial(_weighted, case, m, i)
    for i in case.others:
        if _broadcast_axes(case.shape(i), case.x.shape):
            yield partial(case.claimed, i)


def _weighted(case: Case, m: int, i: int | None, j: int) -> Numbers:
    """An output's cotangent, times another input if one is given."""
    weight = case.weights(j)[m]
    return weight if i is None else weight * case.value(i).conj()


def _broadcast_axes(wide: tuple[int, ...], narrow: tuple[int, ...]) -> tuple[int, ...]:
    """Axes along which a shape grows by broadcasting; none where it does not become the other."""
    lead = len(wide) - len(narrow)
    if lead < 0 or any(n not in (1, w) for n, w in zip(narrow, wide[lead:], strict=True)):
        return ()
    ones = (k for k, (n, w) in enumerate(zip(narrow, wide[lead:], strict=True)) if n < w)
    return (*range(lead), *(lead + k for k in ones))


def _adjoined(case: Case) -> Iterator[Repair]:
    """The other product with the Jacobian: J w in place of J^T w, a cumsum not run backwards."""
    leaves = [leaf for leaf in case.plan.probe.outputs.leaves if leaf.dtype]
    size = case.x.size
    is_square = len(leaves) == 1 and leaves[0].size == size
    if is_square and 1 < size <= MOST_RUNS and not np.iscomplexobj(case.x):
        products = functools.cache(partial(_products, case))
        yield Repair("adjoint", "", lambda j: _transposed_product(case, products(), j))


def _products(case: Case) -> Numbers:
    """(n, n) what the derivative makes of each unit cotangent; zeros where it refuses."""
    leaves, convert = case.plan.probe.outputs.leaves, case.plan.probe.problem.backend.convert
    rows = []
    for unit in np.eye(case.x.size):
        weights = [
            convert(unit.reshape(leaf.shape), leaf.dtype, leaf.device) if leaf.dtype else None
            for leaf in leaves
        ]
        gradient = case.again(weights)
        rows.append(np.zeros(case.x.size) if gradient is None else gradient.ravel())
    return np.stack(rows)


def _transposed_product(case: Case, products: Numbers, j: int) -> Numbers:
    (weight,) = case.weights(j)
    product: Numbers = (products @ weight.ravel()).reshape(case.x.shape)
    return product


def _each(case: Case, change: Callable[..., Numbers], *args: Any) -> Source:
    """The same change of the claimed gradient for each set of cotangents."""
    return lambda j: change(case.gradients[j], *args)


_KINDS = (
    *(_conjugated, _swapped, _transposed, _folded, _rolled, _flipped, _summed, _centred),
    *(_exchanged, _adjoined),
)
