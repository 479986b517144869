"""The largest eigenvalue from a few products."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_gradcheck.numerics.curvature import largest


def symmetric(seed, size=6):
    rng = np.random.default_rng(seed)
    half = rng.normal(size=(size, size))
    return half + half.T, rng.normal(size=size)


@given(seed=st.integers(0, 10_000), count=st.integers(1, 5))
def test_it_is_a_lower_bound_that_more_products_raise(seed, count):
    matrix, start = symmetric(seed)
    most = np.max(np.abs(np.linalg.eigvalsh(matrix)))
    fewer, more = (abs(largest(lambda v: matrix @ v, start, k)) for k in (count, 6))
    assert fewer <= most * (1 + 1e-9)
    assert more == pytest.approx(most, rel=1e-6)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_sign_is_that_of_the_eigenvalue(sign):
    matrix = sign * np.diag([5.0, 1.0, 0.1])
    assert largest(lambda v: matrix @ v, np.ones(3), 3) == pytest.approx(5 * sign)


def test_a_start_that_is_an_eigenvector_needs_one_product():
    calls = []
    found = largest(lambda v: calls.append(v) or 3.0 * v, np.array([0.0, 2.0]), 4)
    assert (found, len(calls)) == (pytest.approx(3.0), 1)


@pytest.mark.parametrize("start", [np.zeros(3), np.full(3, np.nan)])
def test_what_cannot_be_had(start):
    assert math.isnan(largest(lambda v: v, start, 2))
    assert math.isnan(largest(lambda v: v * np.inf, np.ones(3), 2))
