"""Differences at the edge of a domain, along directions that lead inside."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from pytest_gradcheck.backends import Array
from pytest_gradcheck.checks.probe import OUTSIDE_DOMAIN, Line, Probe
from pytest_gradcheck.checks.projection import Cotangents, projected
from pytest_gradcheck.numerics import precision
from pytest_gradcheck.numerics.differences import central_exponent, estimate
from pytest_gradcheck.numerics.ladder import RATIO_EXPONENT, Floats, Ladder

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

# Absolute values of normal numbers have a variance of 1 - 2/pi: an error shows so much less.
HALF_NORMAL = 1 / math.sqrt(1 - 2 / math.pi)

Direction = Sequence[Array | None]


def one_sided(
    probe: Probe, direction: Direction, cotangents: Sequence[Cotangents], floor: Floats
) -> Line | None:
    """Differences from the point on, along the first inward turn of a direction.

    For a function that ends at its point: a bound, a probability of zero. None where no turn
    leads inside.
    """
    unit = precision.epsilon(probe.precision)
    exponents = tuple(central_exponent(unit) - RATIO_EXPONENT * k for k in range(-1, 6))
    for turned in turns(direction, probe.problem.point):
        ahead = [_ahead(probe, turned, cotangents, exponents[-1])]
        if not np.isfinite(ahead[0]).all():
            continue
        ahead[:0] = [_ahead(probe, turned, cotangents, e) for e in exponents[:-1]]
        ladder = Ladder.one_sided(exponents, np.array(ahead), floor)
        found = estimate(ladder)
        if not (found.bound < np.abs(found.value)).any() and found.value.any():
            return None  # the slope grows without end towards the edge
        return Line(turned, ladder, replace(found, bound=found.bound * HALF_NORMAL))
    return None


def _ahead(
    probe: Probe, direction: Direction, cotangents: Sequence[Cotangents], exponent: int
) -> Floats:
    missing = np.full(len(cotangents), np.nan)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            moved = probe.rerun(probe.shifted(direction, 2.0**exponent))
    except OUTSIDE_DOMAIN:
        return missing
    outputs = moved, probe.outputs, probe.outputs
    return np.array(projected(probe.problem.backend, outputs, cotangents)[0])


def turns(direction: Direction, point: Sequence[Array]) -> Iterator[Direction]:
    """A direction and its mirror image, all upwards, all downwards, towards zero, away from it."""
    yield direction
    yield _times(direction, -1.0)
    if any("complex" in str(x.dtype) for x in point):
        return
    upwards = [None if v is None else abs(v) for v in direction]
    yield upwards
    yield _times(upwards, -1.0)
    outwards = [None if v is None else v * _sign(x) for v, x in zip(upwards, point, strict=True)]
    yield _times(outwards, -1.0)
    yield outwards


def _times(direction: Direction, factor: float) -> Direction:
    return [None if v is None else v * factor for v in direction]


def _sign(x: Array) -> Array:
    return (x >= 0) * 2 - 1
