"""Directions that lead inside from the edge of a domain."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from pytest_gradcheck.backends import Array

# Absolute values of normal numbers have a variance of 1 - 2/pi: an error shows so much less.
HALF_NORMAL = 1 / math.sqrt(1 - 2 / math.pi)

Direction = Sequence[Array | None]


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
