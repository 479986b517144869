"""Floating-point precisions by name: unit in the last place, and what each is promoted to."""

from __future__ import annotations

import math
from collections.abc import Iterable

# Distance from 1 to the next number (IEEE 754-2019, table 3.6; bfloat16: 8 significant bits).
EPSILON = {
    "float64": 2.0**-52,
    "float32": 2.0**-23,
    "tensorfloat32": 2.0**-10,  # of products only: 10 bits behind the point, as in float16
    "float16": 2.0**-10,
    "bfloat16": 2.0**-7,
    "longdouble": 2.0**-63,
    "float128": 2.0**-63,
    "float96": 2.0**-63,
}
# Smallest normal number (the same table): what is smaller loses digits, then everything.
SMALLEST = {
    "float64": 2.0**-1022,
    "float32": 2.0**-126,
    "float16": 2.0**-14,
    "bfloat16": 2.0**-126,
}
_REAL_PART = {
    "complex32": "float16",
    "complex64": "float32",
    "complex128": "float64",
    "clongdouble": "longdouble",
    "complex256": "longdouble",
}
_PROMOTED = {
    "float32": "float64",
    "float16": "float64",
    "bfloat16": "float64",
    "complex64": "complex128",
    "complex32": "complex128",
}


def real_part(dtype: str) -> str:
    """The real precision behind a real or complex one."""
    return _REAL_PART.get(dtype, dtype)


def epsilon(dtype: str) -> float:
    """Unit in the last place at 1; that of bfloat16 for a precision that is not known."""
    return EPSILON.get(real_part(dtype), EPSILON["bfloat16"])


def like(rounding: float) -> str:
    """The finest precision of arithmetic that rounds by so much, relative to its results."""
    finer = ("float64", "float32", "float16")
    return next((name for name in finer if rounding <= EPSILON[name]), "bfloat16")


def coarser(dtype: str) -> tuple[str, ...]:
    """The precisions of arithmetic below one, the finest first."""
    names = ("float32", "float16", "bfloat16")
    return tuple(name for name in names if EPSILON[name] > epsilon(dtype))


def smallest(dtype: str) -> float:
    """Smallest normal number of a precision; that of float64 for one that is not known."""
    return SMALLEST.get(real_part(dtype), SMALLEST["float64"])


def promoted(dtype: str) -> str:
    """The precision in which a reference is computed: float64, or the precision itself if wider."""
    return _PROMOTED.get(dtype, dtype)


def coarsest(dtypes: Iterable[str]) -> str:
    """The real precision with the largest unit in the last place."""
    return max((real_part(dtype) for dtype in dtypes), key=epsilon)


def power_of_two(value: float) -> float:
    """The power of two nearest to a positive finite value in ratio; 1 for anything else.

    Scaling by it is exact, so that rescaling an input by a power of two rescales every probe.
    """
    if not 0 < value < math.inf:
        return 1.0
    mantissa, exponent = math.frexp(value)  # the mantissa lies in [1/2, 1)
    return math.ldexp(1.0, min(exponent - (mantissa < math.sqrt(0.5)), 1023))
