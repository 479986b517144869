"""The power of random directions: stated probabilities against simulated ones."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_gradcheck.numerics.power import miss_probability, visible_error

DRAWS = 400_000  # a rate of 1e-2 is then known to 1.6 %
RARE = 1e-2
HIDDEN = {"one": (0.02,), "equal": (0.1, 0.1), "unequal": (0.05, 0.3), "three": (0.2, 0.1, 0.4)}

sizes = st.floats(1e-6, 1e6)
thresholds = st.lists(sizes, min_size=1, max_size=5)
probabilities = st.floats(1e-9, 0.5)


def missed(hidden, error, seed=0):
    """The share of draws in which an error vector stays below every threshold."""
    rng = np.random.default_rng(seed)
    vector = error * np.array([3, -2, 6]) / 7  # its norm is the error
    hides = np.ones(DRAWS, dtype=bool)
    for t in hidden:
        hides &= np.abs(rng.standard_normal((DRAWS, 3)) @ vector) <= t
    return hides.mean()


@pytest.mark.parametrize("hidden", HIDDEN.values(), ids=HIDDEN)
def test_the_visible_error_is_missed_as_often_as_stated(hidden):
    error = visible_error(hidden, RARE)
    assert miss_probability(hidden, error) == pytest.approx(RARE, rel=0.1)
    assert missed(hidden, error) == pytest.approx(RARE, rel=0.1)


@pytest.mark.parametrize("error", [0.1, 0.5, 3.0])
def test_the_miss_probability_is_the_observed_rate_of_large_errors_too(error):
    hidden = HIDDEN["unequal"]
    assert missed(hidden, error) == pytest.approx(miss_probability(hidden, error), rel=0.1)


@given(thresholds, probabilities)
def test_the_visible_error_is_an_upper_bound(hidden, probability):
    error = visible_error(hidden, probability)
    assert miss_probability(hidden, error) <= probability * (1 + 1e-9)


@given(thresholds, sizes, st.floats(1.01, 100))
def test_a_larger_error_or_another_direction_is_missed_less_often(hidden, error, factor):
    rate = miss_probability(hidden, error)
    assert 0 < rate <= 1
    assert miss_probability(hidden, error * factor) <= rate
    assert miss_probability([*hidden, hidden[0]], error) <= rate
    assert miss_probability([t * factor for t in hidden], error) >= rate


@given(thresholds, probabilities, st.floats(1.01, 2))
def test_a_rarer_miss_or_a_wider_threshold_needs_a_larger_error(hidden, probability, factor):
    error = visible_error(hidden, probability)
    assert visible_error(hidden, probability / factor) > error
    assert visible_error([t * factor for t in hidden], probability) > error


@given(thresholds, probabilities, st.integers(-20, 20))
def test_the_visible_error_scales_with_the_thresholds(hidden, probability, exponent):
    scaled = [t * 2.0**exponent for t in hidden]
    expected = visible_error(hidden, probability) * 2.0**exponent
    assert visible_error(scaled, probability) == pytest.approx(expected, rel=1e-9)


def test_the_visible_error_of_one_direction_has_a_closed_form():
    assert visible_error([0.5], 1e-3) == pytest.approx(500 * math.sqrt(2 / math.pi), rel=1e-12)


def test_no_error_is_always_missed_and_an_infinite_one_never():
    assert miss_probability([0.1], 0.0) == 1.0
    assert miss_probability([], 1.0) == 1.0
    assert miss_probability([math.inf], 1.0) == 1.0
    assert miss_probability([0.0], 1.0) == 0.0
    assert miss_probability([0.1], math.inf) == 0.0


@pytest.mark.parametrize("hidden", [[], [math.inf], [1.0, math.nan], [0.0, math.inf]])
def test_without_a_finite_threshold_no_error_is_visible(hidden):
    assert visible_error(hidden, RARE) == math.inf


def test_a_direction_that_accepts_nothing_sees_everything():
    assert visible_error([0.0, 1.0], RARE) == 0.0


def test_a_visible_error_beyond_every_number_is_infinite():
    assert visible_error([1e308], 1e-6) == math.inf
