"""How small an error random directions miss: formulas against simulation, and their laws."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_gradcheck.numerics.power import DENSITY, miss_probability, visible_error

DRAWS = 1_000_000
SIZES = st.floats(1e-6, 1e6)
HIDDEN = st.lists(SIZES, min_size=1, max_size=8)
POWERS = st.integers(-40, 40).map(lambda exponent: 2.0**exponent)


def simulated(hidden, error, dimension=3):
    """The share of draws in which an error vector hides along every direction."""
    rng = np.random.default_rng(11)
    vector = np.zeros(dimension)
    vector[: dimension - 1] = error / math.sqrt(dimension - 1)
    missed = np.ones(DRAWS, dtype=bool)
    for most in hidden:
        missed &= np.abs(rng.standard_normal((DRAWS, dimension)) @ vector) <= most
    return missed.mean()


@pytest.mark.parametrize("hidden", [[1.0], [1.0, 1.0], [0.5, 2.0], [1.0, 1.0, 1.0]])
def test_an_error_of_the_visible_size_is_missed_with_the_stated_probability(hidden):
    error = visible_error(hidden, 1e-2)
    share = simulated(hidden, error)
    assert share == pytest.approx(1e-2, rel=0.1)
    assert miss_probability(hidden, error) == pytest.approx(share, rel=0.1)


@pytest.mark.parametrize("error", [0.3, 1.0, 3.0, 30.0])
def test_miss_probability_is_exact_at_every_size(error):
    hidden = [1.0, 0.5]
    assert miss_probability(hidden, error) == pytest.approx(simulated(hidden, error), rel=0.1)


def test_known_values():
    assert miss_probability([1.0], 1.0) == pytest.approx(0.6826894921370859)  # one sigma
    assert miss_probability([1.96], 1.0) == pytest.approx(0.95, abs=1e-4)
    assert visible_error([1.0], 1e-6) == pytest.approx(DENSITY * 1e6)
    assert visible_error([1.0, 1.0], 1e-6) == pytest.approx(DENSITY * 1e3)


def test_the_edges():
    assert miss_probability([1.0], 0.0) == 1.0
    assert miss_probability([], 1.0) == 1.0
    assert miss_probability([0.0, 1.0], 1.0) == 0.0
    assert miss_probability([math.inf], 1.0) == 1.0
    assert visible_error([], 1e-6) == math.inf
    assert visible_error([math.inf], 1e-6) == math.inf
    assert visible_error([1.0, math.inf], 1e-6) == visible_error([1.0], 1e-6)
    assert visible_error([1.0, 0.0], 1e-6) == 0.0


@given(HIDDEN, st.floats(1e-12, 0.5))
def test_the_visible_error_is_never_stated_too_small(hidden, probability):
    error = visible_error(hidden, probability)
    assert miss_probability(hidden, error) <= probability * (1 + 1e-9)


@given(HIDDEN, SIZES, POWERS)
def test_the_miss_probability_does_not_change_with_the_scale(hidden, error, power):
    scaled = miss_probability([power * t for t in hidden], power * error)
    assert scaled == miss_probability(hidden, error)


@given(HIDDEN, st.floats(1e-12, 0.5), POWERS)
def test_the_visible_error_grows_with_the_scale(hidden, probability, power):
    scaled = visible_error([power * t for t in hidden], probability)
    assert scaled == pytest.approx(power * visible_error(hidden, probability), rel=1e-9)


@given(HIDDEN, st.floats(1e-12, 0.5), st.randoms(use_true_random=False))
def test_the_order_of_directions_does_not_matter(hidden, probability, random):
    shuffled = random.sample(hidden, len(hidden))
    assert visible_error(shuffled, probability) == visible_error(hidden, probability)


@given(HIDDEN, SIZES, SIZES)
def test_a_larger_error_and_another_direction_are_missed_less(hidden, one, other):
    small, large = sorted([one, other])
    assert miss_probability(hidden, large) <= miss_probability(hidden, small)
    assert miss_probability([*hidden, one], large) <= miss_probability(hidden, large)
