"""Central differences with known answers: is the true error inside the stated bound?"""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

from pytest_gradcheck.numerics.differences import (
    RATIO_EXPONENT,
    Ladder,
    central_exponent,
    estimate,
    first_exponents,
    is_jump,
)
from pytest_gradcheck.numerics.precision import EPSILON, power_of_two

HIGHEST, MAX_RUNGS = 4, 14  # as in checks/probe.py


def logsumexp(x):
    return np.log(np.exp(x) + np.exp(x.dtype.type(1) - x))


def cancelling(x):
    return (((x - 7) * x + 21) * x - 35) * x + x


# name: (function, derivative, smallest |x|, largest |x|, whether x may be negative)
CORPUS = {
    "exp": (np.exp, np.exp, 0.01, 20, True),
    "log": (np.log, lambda x: 1 / x, 0.01, 100, False),
    "sin": (np.sin, np.cos, 0.01, 50, True),
    "fast sine": (
        lambda x: np.sin(x.dtype.type(100) * x),
        lambda x: 100 * np.cos(100 * x),
        0.01,
        3,
        True,
    ),
    "fifth power": (lambda x: x**5, lambda x: 5 * x**4, 0.01, 10, True),
    "inverse": (lambda x: 1 / x, lambda x: -1 / x**2, 0.01, 100, True),
    "tanh": (np.tanh, lambda x: 1 / np.cosh(x) ** 2, 0.01, 8, True),
    "erf": (special.erf, lambda x: 2 / math.sqrt(math.pi) * np.exp(-(x**2)), 0.01, 3, True),
    "sqrt": (np.sqrt, lambda x: 0.5 / np.sqrt(x), 0.01, 100, False),
    "logsumexp": (
        logsumexp,
        lambda x: np.tanh(x - 0.5),
        0.01,
        20,
        True,
    ),
    "atan": (np.arctan, lambda x: 1 / (1 + x**2), 0.01, 50, True),
    "x exp(-x)": (lambda x: x * np.exp(-x), lambda x: (1 - x) * np.exp(-x), 0.01, 10, True),
    "cosh": (np.cosh, np.sinh, 0.01, 10, True),
    "offset sine": (lambda x: x.dtype.type(1e6) + np.sin(x), np.cos, 0.01, 10, True),
    "cancelling polynomial": (
        cancelling,
        lambda x: ((4 * x - 21) * x + 42) * x - 34,
        0.01,
        10,
        True,
    ),
    "gamma": (special.gamma, lambda x: special.gamma(x) * special.digamma(x), 0.1, 12, False),
}
POINTS = 64


def points(low, high, is_signed):
    sizes = np.geomspace(low, high, POINTS)
    return np.where(np.arange(POINTS) % 2, -sizes, sizes) if is_signed else sizes


def ladder(f, x, dtype=np.float64, floor_factor=1.0, exponents=None):
    """The differences of a scalar function, measured and extended as checks/probe.py does it."""
    x = dtype(x)
    unit = EPSILON[np.dtype(dtype).name]
    step = dtype(2.0 ** first_exponents(unit)[-1])
    v = ((x + dtype(power_of_two(float(abs(x)))) * step) - x) / step
    centre = f(x)
    floor = np.array([floor_factor * unit * abs(float(centre))])

    def rung(exponent):
        h = dtype(2.0**exponent)
        with np.errstate(all="ignore"):
            up, down = f(x + v * h), f(x - v * h)
            return float(up - down), float((up - centre) - (centre - down))

    def built(measured):
        present = sorted(measured, reverse=True)
        first = np.array([[measured[e][0]] for e in present])
        second = np.array([[measured[e][1]] for e in present])
        return Ladder(tuple(present), first, second, floor)

    measured = {e: rung(e) for e in exponents or first_exponents(unit)}
    heading, best = 0, math.inf
    while not exponents:
        found = estimate(built(measured))
        bound, size = float(found.bound[0]), float(abs(found.value[0]))
        if bound <= unit**0.4 * size and built(measured).moved().any():
            break
        heading = found.extend if not heading else heading if bound < best / 2 else -heading
        best = min(best, bound)
        extension = further(measured, heading, unit) or further(measured, -heading, unit)
        if not extension:
            break
        measured |= {e: rung(e) for e in extension}
    return built(measured), float(v)


def further(measured, heading, unit):
    if len(measured) >= MAX_RUNGS:
        return []
    end = max(measured) if heading > 0 else min(measured)
    wanted = [end + heading * RATIO_EXPONENT * i for i in (1, 2)]
    return [e for e in wanted if round(math.log2(unit)) <= e <= HIGHEST]


def misses(name, dtype):
    """The points of the corpus at which the true error exceeds the bound, with both."""
    f, derivative, *where = CORPUS[name]
    missed = []
    for x in points(*where):
        measured, v = ladder(f, x, dtype)
        found = estimate(measured)
        error = abs(found.value[0] - v * derivative(np.float64(dtype(x))))
        if not error <= found.bound[0]:
            missed.append((name, float(x), float(error), float(found.bound[0])))
    return missed
