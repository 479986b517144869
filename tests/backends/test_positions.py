"""The flow position by position against the whole."""

import numpy as np
import pytest
import torch
from torch import nn

from pytest_gradcheck.backends import layers, torch_flow
from pytest_gradcheck.backends.positions import match
from pytest_gradcheck.checks.flow.flows import log_flow, power

RNG = np.random.default_rng(0)
X, G = RNG.normal(size=(2, 5, 3, 4))


def by_hand(x, g):
    """Norm over positions of the size of each times its gradient's norm, over the whole."""
    each = [np.linalg.norm(a) * np.linalg.norm(b) / 2 for a, b in zip(x, g, strict=True)]
    return np.linalg.norm(each) / (np.linalg.norm(g) * np.sqrt(np.mean(x**2)))


def test_the_match_is_that_by_hand():
    flat, other = X.reshape(-1, 4), G.reshape(-1, 4)
    assert match(X, G) == pytest.approx(by_hand(flat, other))
    assert match(np.ones((3, 4)), np.ones((3, 4))) == pytest.approx(1.0)
    assert match(1e-200 * X, 1e200 * G) == pytest.approx(by_hand(flat, other))


def test_what_is_zero_takes_no_part():
    x, g = np.ones((8, 4)), np.ones((8, 4))
    x[:4], g[:4] = 0.0, 1e6
    one = layers.of_arrays("a", "linear", "linear", x, g)
    assert power(log_flow(one)) == pytest.approx(np.sqrt(16))


def test_nothing_to_compare_is_one():
    assert match(X, None) == 1.0
    assert match(np.zeros((3, 2)), np.ones((3, 2))) == 1.0
    assert match(np.full((3, 2), np.inf), np.ones((3, 2))) == 1.0
    assert match(np.float64(2.0), np.float64(3.0)) == 1.0


def test_torch_measures_the_same():
    torch.manual_seed(0)
    model, x = nn.Linear(3, 4), torch.tensor(X[:, :, :3])
    seen, _ = torch_flow.measure(model.double(), lambda m, b: m(b).pow(3).sum(), x)
    out = model(x).detach().numpy()
    assert seen.layers[0].match == pytest.approx(match(out, 3 * out**2))
