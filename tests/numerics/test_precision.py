"""Precisions by name, against NumPy's own, and the exact power of two near a number."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_gradcheck.numerics.precision import (
    EPSILON,
    coarsest,
    epsilon,
    power_of_two,
    promoted,
    real_part,
)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "complex64", "complex128"])
def test_the_unit_in_the_last_place_is_that_of_numpy(dtype):
    assert epsilon(dtype) == np.finfo(dtype).eps


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3", "int32", ""])
def test_an_unknown_precision_is_taken_for_the_coarsest_known(dtype):
    assert epsilon(dtype) == 2.0**-7 == max(EPSILON.values())


@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
def test_the_real_part_is_that_of_numpy(dtype):
    assert real_part(dtype) == np.dtype(dtype).type(0).real.dtype.name


def test_a_real_precision_is_its_own_real_part():
    assert [real_part(dtype) for dtype in EPSILON] == list(EPSILON)


@pytest.mark.parametrize(
    ("dtype", "wider"),
    [
        ("bfloat16", "float64"),
        ("float16", "float64"),
        ("float32", "float64"),
        ("float64", "float64"),
        ("longdouble", "longdouble"),
        ("complex64", "complex128"),
        ("complex128", "complex128"),
    ],
)
def test_promotion_ends_at_float64_or_stays(dtype, wider):
    assert promoted(dtype) == wider
    assert promoted(wider) == wider
    assert epsilon(wider) <= epsilon(dtype)


def test_the_coarsest_precision_is_real_whatever_the_order():
    assert coarsest(["float64", "complex64", "longdouble"]) == "float32"
    assert coarsest(["complex64", "float64"]) == "float32"
    assert coarsest(["float16", "bfloat16", "float64"]) == "bfloat16"
    assert coarsest(["complex128"]) == "float64"


@given(st.floats(5e-324, 1.7e308))
def test_the_power_of_two_is_exact_and_the_nearest_in_ratio(value):
    power = power_of_two(value)
    assert math.frexp(power)[0] == 0.5
    # Halved, so that the ratio of the largest number to the largest power of two is one as well.
    assert value / 2 <= power * math.sqrt(0.5) * (1 + 1e-15) or power == 2.0**1023
    assert power / 2 <= value * math.sqrt(0.5) * (1 + 1e-15)


@given(st.floats(1e-100, 1e100), st.integers(-300, 300))
def test_the_power_of_two_scales_exactly(value, exponent):
    assert power_of_two(value * 2.0**exponent) == power_of_two(value) * 2.0**exponent


@pytest.mark.parametrize("exponent", [-1074, -1022, -1, 0, 1, 1023])
def test_a_power_of_two_is_its_own(exponent):
    assert power_of_two(2.0**exponent) == 2.0**exponent


@pytest.mark.parametrize("value", [0.0, -3.0, math.inf, -math.inf, math.nan])
def test_one_stands_for_what_is_no_size(value):
    assert power_of_two(value) == 1.0


def test_the_largest_numbers_keep_a_finite_power():
    assert power_of_two(1.7976931348623157e308) == 2.0**1023
