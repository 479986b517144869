"""Wrong gradients that a hasty choice of steps would let through."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from identities import scaled

from pytest_gradcheck import check_gradient

SEEDS = range(4)


FORGOTTEN = {
    "a sharp tanh": lambda x: float(np.sum(np.sin(x) + np.tanh((x - 0.3) * 1e3) / 1e3)),
    "a ripple": lambda x: float(np.sum(np.sin(x) + 1e-3 * np.sin(x / 1e-3))),
    "a finer ripple": lambda x: float(np.sum(np.sin(x) + 1e-4 * np.sin(x / 1e-4))),
}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", FORGOTTEN)
def test_a_fast_part_that_is_forgotten(name, seed):
    x = 0.3 + 1e-4 * np.random.default_rng(seed).normal(size=5)
    result = check_gradient(FORGOTTEN[name], x, grad=np.cos, seed=seed)
    assert result.verdict in ("fail", "undecided"), result.headline


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    "f",
    [
        lambda x: torch.sin(x.float()).double().sum(),
        lambda x: (torch.softmax(x.float(), -1).double() * torch.arange(1, 7)).sum(),
    ],
    ids=["sine", "softmax"],
)
def test_a_zero_gradient_of_a_part_in_float32(f, seed):
    torch.manual_seed(seed)
    x, cut = torch.randn(6).double(), scaled(0.0)
    assert check_gradient(lambda x: f(cut(x)), x, seed=seed).verdict == "fail"


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("factor", [1.01, 2.0, -1.0, 0.0])
def test_a_mask_in_16_bits_blinds_nothing(factor, seed):
    torch.manual_seed(seed)
    x, w, wrong = torch.randn(8, 4).double(), torch.randn(4, 3).double(), scaled(factor)

    def f(x, w):
        mask = (x.bfloat16() > -3).detach().double()
        return (torch.relu(wrong(x) @ w) ** 2).sum() + 0 * (mask * x.detach()).sum()

    assert check_gradient(f, x, w, seed=seed).verdict == "fail"


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("share", [1e-6, 1e-8])
def test_a_small_input_without_its_gradient(share, seed):
    def f(x, y):
        return float(np.sum(np.sin(x)) + share * np.sum(np.sin(y)))

    draw = np.random.default_rng(seed)
    x, y = draw.normal(size=5), draw.normal(size=4)
    result = check_gradient(f, x, y, grad=lambda x, y: (np.cos(x), 0 * y), seed=seed)
    assert result.verdict == "fail", result.headline


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("factor", [1.01, -1.0, 0.0])
def test_beside_the_edge_of_a_domain(factor, seed):
    x = np.append(np.abs(np.random.default_rng(seed).normal(size=4)) + 0.5, 1e-9)
    result = check_gradient(
        lambda x: float(np.sum(np.sqrt(x))), x, grad=lambda x: factor * 0.5 / np.sqrt(x), seed=seed
    )
    assert result.verdict != "pass", result.headline


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_wrong_derivative_of_the_smallest_of_some_parameters(seed, dtype):
    """In proportion to its size it hardly moves, so that such directions know nothing of it."""
    rays = np.random.default_rng(10).normal(size=(5, 2)) + 0.1
    camera = np.array([500.0, 480.0, 320.0, 240.0, 0.1, -0.05], dtype)
    squares = (rays**2).sum(1)

    def pixels(k):
        return k[:2] * rays * (1 + k[4] * squares + k[5] * squares**2)[:, None] + k[2:4]

    def jac(k):
        found = np.zeros((5, 2, 6))
        for axis in (0, 1):
            column = rays[:, axis]
            found[:, axis, axis] = column * (1 + k[4] * squares + k[5] * squares**2)
            found[:, axis, 2 + axis] = 1
            found[:, axis, 4] = k[axis] * column * squares
            found[:, axis, 5] = k[axis] * column * squares  # squares**2
        return found.astype(dtype)

    result = check_gradient(pixels, camera, jac=jac, seed=seed)
    assert result.verdict == "fail"
    assert result.findings[0].where == "k[5]"
