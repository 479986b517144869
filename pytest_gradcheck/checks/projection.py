"""From outputs to numbers: inner products with the cotangents."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from pytest_gradcheck.backends import Array, Backend, Flat
from pytest_gradcheck.numerics import precision
from pytest_gradcheck.numerics.ladder import Floats

Cotangents = Sequence[Array | None]  # one for each output


def projected(
    backend: Backend, outputs: tuple[Flat, Flat, Flat], cotangents: Sequence[Cotangents]
) -> tuple[list[float], list[float]]:
    """First and second differences of outputs around the point, one for each set of cotangents.

    Args:
        backend: Their framework.
        outputs: Those after the point, at it, and before it.
        cotangents: Sets of cotangents.
    """
    inner = backend.inner
    first, second = [0.0] * len(cotangents), [0.0] * len(cotangents)
    leaves = zip(*(flat.leaves for flat in outputs), strict=True)
    for m, (up, centre, down) in enumerate(leaves):
        if not centre.dtype:
            continue
        above, below = up.value - centre.value, centre.value - down.value
        for j, weights in enumerate(cotangents):
            if (weight := weights[m]) is not None:
                after, before = inner(weight, above), inner(weight, below)
                first[j] += after + before
                second[j] += after - before
    return first, second


def rounding_of(
    backend: Backend,
    outputs: Flat,
    differences: Sequence[float],
    inside: str,
    cotangents: Sequence[Cotangents],
) -> Floats:
    """(sets,) least rounding error of one value, projected on each set of cotangents.

    Args:
        backend: Their framework.
        outputs: Those at the point.
        differences: Of each between two equal calls.
        inside: A lower precision that the function computes in, if any.
        cotangents: Sets of cotangents.
    """
    # Independent rounding of each output element, added in quadrature over the projection.
    floor = np.zeros(len(cotangents))
    for m, leaf in enumerate(outputs.leaves):
        if not leaf.dtype:
            continue
        unit = max(map(precision.epsilon, (leaf.dtype, inside or leaf.dtype)))
        for j, weights in enumerate(cotangents):
            if (weight := weights[m]) is not None:
                floor[j] += unit * norm(backend, weight * leaf.value)
                floor[j] += differences[m] * norm(backend, weight) if differences[m] else 0.0
    return floor


def norm(backend: Backend, x: Array) -> float:
    """Euclidean norm of an array, real or complex."""
    size = abs(x) if "complex" in str(getattr(x, "dtype", "")) else x  # a pairing may be bilinear
    return math.sqrt(backend.inner(size, size))


def is_bilinear(backend: Backend) -> bool:
    """Whether the inner product of complex arrays conjugates neither of them."""
    unit = backend.convert(np.array([1j]), "complex128")
    return backend.inner(unit, unit) < 0
