"""Points at the edge of a domain: differences from the inside, never an error."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pytest_gradcheck import check_gradient


def beyond_zero_it_raises(x):
    if np.any(x < 0):
        raise ValueError("negative")
    return float(np.sum(x**2.5 + 3 * x))


def gradient(x):
    return 2.5 * x**1.5 + 3


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("x", [[0.0, 0.0, 0.0], [0.0, 1.0, 2.0], [0.0, 1e-9, 2.0]])
def test_on_the_edge_the_inside_decides(x, seed):
    x = np.array(x)
    right = check_gradient(beyond_zero_it_raises, x, grad=gradient, seed=seed)
    assert right.verdict == "pass", right.headline
    wrong = check_gradient(beyond_zero_it_raises, x, grad=lambda x: 1.02 * gradient(x), seed=seed)
    assert wrong.verdict == "fail"


def inside_the_cube(x):
    return float(np.sum(np.where(np.abs(x) > 1, np.nan, x**3)))


@pytest.mark.parametrize("x", [[1.0, 1.0, 1.0], [-1.0, -1.0, 0.5], [1.0, -1.0, 0.2]])
def test_on_a_corner_of_a_box(x):
    assert check_gradient(inside_the_cube, np.array(x), grad=lambda x: 3 * x**2).verdict == "pass"
    assert check_gradient(inside_the_cube, np.array(x), grad=lambda x: x**2).verdict == "fail"


@pytest.mark.parametrize(
    ("f", "x"),
    [
        (lambda x: torch.log(x).sum(), [1e-8, 0.3, 0.5]),
        (lambda x: torch.asin(x).sum(), [1 - 1e-7, 0.3, 0.5]),
        (lambda x: torch.linalg.cholesky(torch.diag(x)).sum(), [1e-6, 1.0, 2.0]),
        (lambda x: torch.sqrt(x).sum(), [1e-7, 1.0, 1.0]),
    ],
    ids=["log", "asin", "cholesky", "sqrt"],
)
def test_near_an_edge_the_steps_shrink(f, x):
    assert check_gradient(f, torch.tensor(x, dtype=torch.float64)).verdict == "pass"


def test_an_edge_on_every_side_is_told():
    def only_here(x):
        return float(x.sum()) if np.all(x == 1.0) else float("nan")

    result = check_gradient(only_here, np.ones(2), grad=np.ones_like)
    assert result.verdict == "undecided"
    assert result.findings[0].code == "domain-edge"
