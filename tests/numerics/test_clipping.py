"""Norms and groups: laws that hold for all gradients."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pytest_gradcheck.numerics import clipping

NUMBERS = st.floats(-1e100, 1e100)
TENSORS = st.lists(arrays.arrays(np.float64, st.integers(1, 5), elements=NUMBERS), min_size=1)
ORDERS = st.sampled_from([1.0, 2.0, 3.0, np.inf])


@given(TENSORS, ORDERS)
def test_the_norm_is_homogeneous(values, p):
    size = clipping.norm(values, p)
    assert clipping.norm([2.0 * v for v in values], p) == pytest.approx(2 * size, rel=1e-12)


@given(TENSORS, ORDERS, st.floats(1e-3, 1e3))
def test_clipping_keeps_the_threshold_and_what_is_below(values, p, threshold):
    row = clipping.flat(values)
    groups = clipping.grouped(values, threshold)
    out = clipping.clipped(row, groups, p)
    assert clipping.norm([out], p) <= threshold * (1 + 1e-9)
    if clipping.norm([row], p) <= threshold:
        assert np.array_equal(out, row)
    assert np.array_equal(clipping.clipped(out, groups, p) == 0, out == 0)


def test_squares_do_not_overflow():
    assert clipping.norm([np.array([3e200, 4e200])], 2) == pytest.approx(5e200)
    assert clipping.norm([np.zeros(3)], 2) == 0
    assert clipping.norm([], 2) == 0
    assert clipping.norm([np.array([3.0, 4.0])], "rms") == pytest.approx(np.sqrt(12.5))


@given(TENSORS, st.floats(-3, 3))
def test_apart_and_inner_are_those_of_rows(values, factor):
    others = [factor * v for v in values]
    distance = clipping.norm([a - b for a, b in zip(values, others, strict=True)], 2)
    sizes = [clipping.apart(a, b) for a, b in zip(values, others, strict=True)]
    assert clipping.norm([np.array(sizes)], 2) == pytest.approx(distance, rel=1e-12)
    row, other = clipping.flat(values), clipping.flat(others)
    size = clipping.norm([row], 2) * clipping.norm([other], 2)
    assert clipping.inner(values, others) == pytest.approx(np.vdot(row, other), abs=1e-12 * size)


def test_apart_sees_the_last_element_of_many():
    one = np.zeros((3, clipping.PART))
    other = one.copy()
    other[-1, -1] = 1e-3
    assert clipping.apart(one, other) == pytest.approx(1e-3, rel=1e-12)
    assert np.isnan(clipping.apart(one, np.full_like(one, np.nan)))
    assert clipping.apart(one.T, other.T) == clipping.apart(one, other)


def test_rows_and_tensors():
    values = [np.ones((2, 3)), np.zeros(()), np.arange(4.0)]
    back = clipping.split(clipping.flat(values), values)
    assert all(np.array_equal(a, b) for a, b in zip(values, back, strict=True))


def test_units_are_columns_filters_and_vectors():
    values = [np.ones((4, 3)), np.ones(5), np.ones((3, 3, 2, 7))]
    groups = clipping.by_unit(values, values, 0.5)
    assert len(groups.thresholds) == 3 + 1 + 7
    assert groups.thresholds[0] == pytest.approx(0.5 * 2.0)
    assert len(np.unique(groups.labels)) == len(groups.thresholds)


def test_a_ratio_and_a_cosine():
    x = np.array([3.0, 4.0])
    assert clipping.ratio(-2 * x, x) == (pytest.approx(-2), pytest.approx(-1))
    assert np.isnan(clipping.ratio(np.zeros(2), x)[0])
