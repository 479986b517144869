"""Ends, growth and break points of a profile along the depth."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_gradcheck.numerics import depth


def test_a_steady_decay_is_measured_from_end_to_end():
    flows = [0.5 ** (9 - k) for k in range(10)]
    assert depth.profile(flows).attenuation == pytest.approx(9 * math.log10(0.5))
    assert depth.growth(depth.profile(flows).attenuation, 10) == pytest.approx(0.5)


def test_side_branches_do_not_hide_the_trunk():
    flows = [1.0, 0.01, 0.02] * 8
    assert depth.profile(flows).attenuation == pytest.approx(0.0)


def test_nothing_that_arrives_is_minus_infinity():
    assert depth.profile([0.0, 0.0, 1.0]).attenuation == -math.inf
    assert math.isnan(depth.profile([math.nan]).attenuation)
    assert math.isnan(depth.profile([0.0, 0.0]).attenuation)


@given(st.lists(st.floats(1e-8, 1e8), min_size=2, max_size=20), st.floats(1e-6, 1e6))
def test_the_scale_does_not_matter(flows, factor):
    plain = depth.profile(flows).attenuation
    assert depth.profile([factor * f for f in flows]).attenuation == pytest.approx(plain, abs=1e-9)


def test_the_predicted_spread_covers_that_of_networks():
    """Critical rectifier networks, 10 layers of 8: the spread of the log10 of the gradient."""
    rng = np.random.default_rng(0)
    logs = []
    for _ in range(200):
        g = rng.normal(size=8)
        for _ in range(10):
            g = (rng.normal(0, 0.5, (8, 8)) @ g) * (rng.random(8) < 0.5)
        if np.any(g):
            logs.append(np.log10(np.linalg.norm(g)))
    assert np.std(logs) < depth.spread([8] * 10) < 4 * np.std(logs)


def test_a_dead_network_has_the_probability_of_a_dead_layer():
    assert depth.dead_network([[0.5, 0.5]], [2, 2]) == pytest.approx(1 - 0.75**2)
    assert depth.dead_network([], []) == 0.0
    assert depth.dead_network([[0.0]], [4]) == 0.0


def test_gains_are_those_of_products_alone():
    layers = [(True, 2.0, math.nan), (False, 1.0, math.nan), (True, 3.0, math.nan)]
    assert depth.gains(layers, 4.0) == {0: 0.5, 2: 3.0}
    assert depth.gains(layers, math.nan) == {2: 3.0}
    assert depth.gains([*layers, (True, 3.0, 6.0)], math.nan) == {2: 3.0, 3: 0.5}
