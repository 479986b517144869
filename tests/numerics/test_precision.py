"""Precisions by name, held against NumPy's own numbers."""

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

POSITIVE = st.floats(min_value=0, exclude_min=True, allow_infinity=False)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "complex64", "complex128"])
def test_epsilon_is_that_of_numpy(dtype):
    assert epsilon(dtype) == np.finfo(dtype).eps


def test_the_long_double_is_not_finer_than_stated():
    assert epsilon("longdouble") >= np.finfo(np.longdouble).eps or np.longdouble is np.float64


def test_bfloat16_keeps_eight_bits():
    numbers = np.array([1.0, 1.0 + epsilon("bfloat16"), 1.0 + epsilon("bfloat16") / 2], np.float32)
    kept = (numbers.view(np.uint32) & 0xFFFF0000) == numbers.view(np.uint32)
    assert kept.tolist() == [True, True, False]


def test_an_unknown_precision_counts_as_the_coarsest():
    assert epsilon("float8_e4m3") == max(EPSILON.values())


@pytest.mark.parametrize(
    ("dtype", "part"),
    [
        ("complex64", "float32"),
        ("complex128", "float64"),
        ("complex32", "float16"),
        ("complex256", "longdouble"),
        ("clongdouble", "longdouble"),
        ("bfloat16", "bfloat16"),
    ],
)
def test_real_part(dtype, part):
    assert real_part(dtype) == part


@pytest.mark.parametrize(
    ("dtype", "wide"),
    [
        ("float16", "float64"),
        ("bfloat16", "float64"),
        ("float32", "float64"),
        ("float64", "float64"),
        ("longdouble", "longdouble"),
        ("complex32", "complex128"),
        ("complex64", "complex128"),
        ("complex128", "complex128"),
    ],
)
def test_promoted(dtype, wide):
    assert promoted(dtype) == wide
    assert promoted(wide) == wide
    assert epsilon(wide) <= epsilon(dtype)


def test_coarsest():
    assert coarsest(["float64", "complex64", "float64"]) == "float32"
    assert coarsest(["float16", "bfloat16"]) == "bfloat16"
    assert coarsest(["float64"]) == "float64"


# --- power of two -----------------------------------------------------------------------------


@given(POSITIVE)
def test_it_is_the_power_of_two_nearest_in_ratio(value):
    power = power_of_two(value)
    assert math.frexp(power)[0] == 0.5
    if value < 2.0**1023:
        assert math.sqrt(0.5) * (1 - 1e-15) <= value / power <= math.sqrt(2) * (1 + 1e-15)


@given(st.floats(1e-200, 1e200), st.integers(-300, 300))
def test_it_scales_with_its_argument_exactly(value, exponent):
    scaled = power_of_two(math.ldexp(value, exponent))
    assert scaled == math.ldexp(power_of_two(value), exponent)


@given(st.integers(-1074, 1023))
def test_a_power_of_two_is_its_own(exponent):
    assert power_of_two(math.ldexp(1.0, exponent)) == math.ldexp(1.0, exponent)


@pytest.mark.parametrize("root", [math.sqrt(2), math.sqrt(2) / 2, 8 * math.sqrt(2)])
def test_it_scales_at_the_border_of_two_powers(root):
    assert power_of_two(4 * root) == 4 * power_of_two(root)


@pytest.mark.parametrize("value", [0.0, -0.0, -1.0, math.inf, -math.inf, math.nan])
def test_one_for_what_has_no_size(value):
    assert power_of_two(value) == 1.0


def test_the_largest_number_does_not_overflow():
    assert power_of_two(np.finfo(np.float64).max) == 2.0**1023
