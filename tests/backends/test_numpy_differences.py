"""Gradients by differences, and by how much they may be off at a kink."""

from __future__ import annotations

import numpy as np
import pytest

from pytest_gradcheck.backends.numpy_differences import central


@pytest.mark.parametrize("at", [0.7, -1e-3, 40.0])
def test_a_smooth_point_is_no_kink(at):
    x = np.array([at, 2.0])
    ((g, off),) = central(lambda: np.sin(x[0]) * x[1] ** 2, [x], np.sin(at) * 4.0)
    assert g == pytest.approx([4 * np.cos(at), 4 * np.sin(at)], abs=1e-6)
    assert off == 0.0
    assert x.tolist() == [at, 2.0]


def test_at_a_kink_each_side_has_a_slope():
    x = np.array([0.0, 1.0])
    ((g, off),) = central(lambda: max(0.0, 3.0 * x[0]) + x[1], [x], 1.0)
    assert g == pytest.approx([1.5, 1.0])
    assert off == pytest.approx(1.5)


def test_a_large_constant_makes_no_kinks():
    x = np.array([1.0])
    ((_, off),) = central(lambda: 1e9 + 1e-3 * x[0], [x], 1e9 + 1e-3)
    assert off == 0.0


def test_what_only_bends_is_no_kink():
    x = np.array([1e-3, 0.0])
    ((g, off),) = central(lambda: 0.5 * float(x @ x), [x], 5e-7)
    assert g == pytest.approx([1e-3, 0.0], abs=1e-9)
    assert off == 0.0
