"""Clipping as mathematics: norms, groups of elements with a threshold each, and what must come out.

Clipping by norm (Pascanu, Mikolov and Bengio 2013, algorithm 1): a gradient whose norm ``n`` is
above ``c`` becomes ``g c / n``. What counts as one gradient is a *group* of elements: all of them
(global), those of a tensor (per block), or those of a unit (Brock et al. 2021, equation 3, where
the threshold is ``c`` times the norm of the unit's parameters).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

UNIT_FLOOR = 1e-3  # least parameter norm of a unit (Brock et al. 2021, section 4)
PART = 1 << 14  # elements of which a difference stays in the cache
_LEAST, _MOST = 1e-200, 1e200  # squares between which none is lost


@dataclass(frozen=True, slots=True, eq=False)
class Groups:
    """The elements of several tensors in one row, each with the number of its group.

    Args:
        labels: Group of each element, counted from 0.
        thresholds: Threshold of each group.
    """

    labels: np.ndarray
    thresholds: np.ndarray


def norm(values: Sequence[np.ndarray], p: float | str) -> float:
    """The p-norm of all elements together; ``rms`` is the root of the mean square.

    Scaled by the largest element where a square might overflow.
    """
    if p == 2:
        squares = [float(np.vdot(v, v).real) for v in values]
        if _LEAST < (square := math.fsum(squares) if _are_finite(squares) else math.nan) < _MOST:
            return math.sqrt(square)
    row = flat(values)
    if not row.size:
        return 0.0
    largest = float(np.max(np.abs(row)))
    if largest == 0 or not np.isfinite(largest) or p == np.inf:
        return largest
    if p == "rms":
        return largest * float(np.sqrt(np.mean((row / largest) ** 2)))
    power = float(p)
    return largest * float(np.sum((np.abs(row) / largest) ** power) ** (1 / power))


def apart(one: np.ndarray, other: np.ndarray) -> float:
    """The 2-norm of the difference of two arrays of one shape, taken part by part.

    A difference of all of it would go through memory; a part stays in the cache. Elements that
    differ by less than 1e-162 count as the same.
    """
    a, b = one.reshape(-1), other.reshape(-1)
    square = 0.0
    for k in range(0, a.size, PART):
        row = a[k : k + PART] - b[k : k + PART]
        square += float(np.vdot(row, row).real)
    is_safe = square == 0 or _LEAST < square < _MOST
    return math.sqrt(square) if is_safe else norm([one - other], 2)


def distance(pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> float:
    """The 2-norm of the differences of some pairs of arrays together."""
    return math.hypot(*(apart(one, other) for one, other in pairs))


def inner(values: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> float:
    """The inner product of all elements together."""
    return math.fsum(float(np.vdot(v, w)) for v, w in zip(values, others, strict=True))


def _are_finite(squares: Sequence[float]) -> bool:
    return all(map(math.isfinite, squares))


def flat(values: Sequence[np.ndarray]) -> np.ndarray:
    """All elements in one row."""
    if not values:
        return np.zeros(0)
    return np.concatenate([np.ravel(v) for v in values])


def split(row: np.ndarray, like: Sequence[np.ndarray]) -> list[np.ndarray]:
    """A row as tensors again."""
    ends = np.cumsum([0, *(x.size for x in like)])
    return [row[a:b].reshape(x.shape) for a, b, x in zip(ends, ends[1:], like, strict=False)]


def grouped(values: Sequence[np.ndarray], threshold: float) -> Groups:
    """All elements as one group."""
    size = sum(v.size for v in values)
    return Groups(np.zeros(size, dtype=int), np.array([threshold]))


def by_tensor(values: Sequence[np.ndarray], threshold: float) -> Groups:
    """Each tensor a group of its own."""
    labels = [np.full(v.size, i, dtype=int) for i, v in enumerate(values)]
    return Groups(np.concatenate(labels), np.full(len(values), threshold))


def by_unit(
    values: Sequence[np.ndarray],
    parameters: Sequence[np.ndarray],
    threshold: float,
    outputs: str = "last",
    p: float | str = 2,
) -> Groups:
    """Each unit a group (Brock et al. 2021): what fans into one output, a whole vector.

    Args:
        values: Gradients.
        parameters: Of the same shapes.
        threshold: Relative to the norm of the unit's parameters.
        outputs: Where a weight has its axis of outputs: ``last`` (a column is a unit, as in JAX) or
            ``first`` (a row is one, as in torch).
        p: Order of the norm of the parameters, which is that of their gradients.
    """
    labels, thresholds = [], []
    start = 0
    for value, parameter in zip(values, parameters, strict=True):
        units = _UNITS[outputs](value)
        labels.append(units.ravel() + start)
        for unit in range(int(units.max(initial=0)) + 1):
            size = norm([parameter[units == unit]], p)
            thresholds.append(threshold * max(size, UNIT_FLOOR))
        start = len(thresholds)
    return Groups(np.concatenate(labels), np.array(thresholds))


def _rows(value: np.ndarray) -> np.ndarray:
    """The number of the unit of each element where outputs come first."""
    if value.ndim <= 1:
        return np.zeros(value.shape, dtype=int)
    first = np.arange(len(value)).reshape(-1, *(1 for _ in value.shape[1:]))
    return np.broadcast_to(first, value.shape)


def _units(value: np.ndarray) -> np.ndarray:
    """The number of the unit of each element: everything but the axes that fan in."""
    if np.squeeze(value).ndim <= 1:
        return np.zeros(value.shape, dtype=int)
    reduced = {2: 1, 3: 1, 4: 3, 5: 4}.get(value.ndim, value.ndim - 1)
    kept = value.shape[reduced:]
    return np.broadcast_to(np.arange(int(np.prod(kept))).reshape(kept), value.shape)


_UNITS = {"first": _rows, "last": _units}


def norms(row: np.ndarray, groups: Groups, p: float | str) -> np.ndarray:
    """The norm of each group."""
    count = len(groups.thresholds)
    if count == 1:  # the most frequent
        return np.array([norm([row], p)])
    return np.array([norm([row[groups.labels == k]], p) for k in range(count)])


def factors(sizes: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """``min(1, c / n)`` of each group; 1 where the norm is zero."""
    above = sizes > thresholds
    return np.where(above, thresholds / np.where(above, sizes, 1.0), 1.0)


def clipped(row: np.ndarray, groups: Groups, p: float | str) -> np.ndarray:
    """The row with every group scaled to its threshold where it is above."""
    scale = factors(norms(row, groups, p), groups.thresholds)
    result: np.ndarray = row * scale[groups.labels]
    return result


def ratio(after: np.ndarray, before: np.ndarray) -> tuple[float, float]:
    """``<after, before> / <before, before>`` and the cosine; NaN where one of them is zero."""
    size, other = norm([before], 2), norm([after], 2)
    if size == 0 or other == 0 or not np.isfinite(size * other):
        return (float("nan"), float("nan"))
    cosine = float(np.dot(after / other, before / size))
    return cosine * other / size, cosine
