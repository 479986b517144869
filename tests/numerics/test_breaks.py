"""One culprit or a uniform decay: known tables, known breaks, and how often chance is accused."""

import math

import numpy as np
import pytest

from pytest_gradcheck.numerics import breaks


def profile(steps):
    """Flows with these decades from each layer to the next."""
    return [10.0 ** -sum(steps[k:]) for k in range(len(steps) + 1)]


@pytest.mark.parametrize(
    ("t", "freedom", "p"),
    # Student's t: any table of upper tails
    [(6.314, 1, 0.05), (2.920, 2, 0.05), (4.541, 3, 0.01), (2.015, 5, 0.05), (2.764, 10, 0.01)],
)
def test_tails_are_those_of_the_tables(t, freedom, p):
    assert breaks.tail(t, freedom) == pytest.approx(p, rel=2e-3)
    assert breaks.tail(-t, freedom) == pytest.approx(1 - p, rel=2e-3)
    assert breaks.tail(0.0, freedom) == pytest.approx(0.5)


def test_one_break_is_found_with_its_share():
    found = breaks.largest([profile([0.1, 0.0, 0.1, 5.0, 0.1, 0.0, 0.1])], -1)
    assert found.layer == 4
    assert found.share == pytest.approx(5 / 5.4)
    assert found.p < 1e-6
    assert found.is_single


def test_a_uniform_decay_has_none():
    rng = np.random.default_rng(0)
    found = breaks.largest([profile(rng.normal(0.6, 0.1, 10)) for _ in range(5)], -1)
    assert found.p > breaks.ALPHA
    assert not found.is_single


def test_the_other_direction_is_the_other_sign():
    rows = [profile([0.0, 0.0, -4.0, 0.0, 0.0])]
    assert breaks.largest(rows, 1).is_single
    assert not breaks.largest(rows, -1).is_single


def test_few_layers_are_judged_by_shares_alone():
    found = breaks.largest([[1e4, 1.0, 1.0]], 1)
    assert math.isnan(found.p)
    assert found.is_single
    assert breaks.largest([[1.0]], -1) is None


def test_chance_is_accused_as_seldom_as_stated():
    rng = np.random.default_rng(1)
    count = 2000
    hits = 0
    for _ in range(count):
        steps = rng.normal(0.5, 0.3, 12)
        best = int(np.argmax(steps))
        hits += breaks.outlier(steps[best], np.delete(steps, best)) < breaks.ALPHA
    assert hits / count < 2 * breaks.ALPHA


def test_differences_too_small_to_matter_are_none():
    assert breaks.outlier(0.06, np.zeros(10)) > breaks.ALPHA
