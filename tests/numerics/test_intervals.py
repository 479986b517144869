"""Intervals of means and rates: known values, and coverage by simulation."""

import math

import numpy as np
import pytest

from pytest_gradcheck.numerics.intervals import of_mean, of_rate, quantile


def test_the_quantile_is_students_and_then_the_normal_one():
    assert quantile(5) == pytest.approx(2.776)
    assert quantile(20) == pytest.approx(2.093)
    assert quantile(1000) == pytest.approx(1.96)


def test_the_interval_covers_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(2000):
        interval = of_mean(rng.normal(1.0, 2.0, 5))
        inside += interval.low <= 1.0 <= interval.high
    assert 0.93 < inside / 2000 < 0.97


def test_one_value_has_the_spread_it_is_given():
    interval = of_mean([2.0], 0.5)
    assert interval == pytest.approx((2.0, 2.0 - 0.98, 2.0 + 0.98))
    assert of_mean([2.0]).high == math.inf


def test_no_value_says_nothing():
    assert of_mean([]).side(0.0) == 0


def test_sides():
    assert of_mean([1.0, 1.1, 0.9]).side(0.0) == 1
    assert of_mean([1.0, 1.1, 0.9]).side(2.0) == -1
    assert of_mean([1.0, -1.0, 0.5]).side(0.0) == 0


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"),
    [(0, 5, 0.0, 0.4507), (2, 5, 0.0764, 0.8107), (5, 5, 0.5493, 1.0), (1, 20, 0.0026, 0.2161)],
)
def test_rates_are_those_of_the_table(hits, count, low, high):
    assert of_rate(hits, count) == pytest.approx((low, high), abs=2e-4)
