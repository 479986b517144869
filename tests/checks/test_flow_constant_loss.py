"""A loss that is the same for every parameter is told so, and nothing is said about layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

from pytest_gradcheck import check_flow

X = np.random.default_rng(0).normal(size=(32, 16)).astype(np.float32)


def model(*last):
    return nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 10), *last)


def summed(model, x):
    return model(x).sum(1).mean()


LOSSES = {
    "sum of a softmax": (nn.Softmax(1), summed),
    "mean of what is centred": (
        nn.LayerNorm(10, elementwise_affine=False),
        lambda m, x: m(x).mean(),
    ),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("is_single", [False, True])
def test_a_loss_that_nothing_moves(name, dtype, is_single):
    last, loss = LOSSES[name]
    make = lambda: model(last).to(dtype)  # noqa: E731
    x = torch.tensor(X).to(dtype)
    torch.manual_seed(0)
    result = (
        check_flow(make(), loss, x, seeds=1) if is_single else check_flow(None, loss, x, make=make)
    )
    assert (result.verdict, [f.code for f in result.findings]) == ("fail", ["flow-constant-loss"])


def test_in_jax():
    def make(seed):
        rng = np.random.default_rng(seed)
        shapes = {"a": (16, 32), "b": (32, 10)}
        return {k: jnp.asarray(rng.normal(size=s) * 0.3, jnp.float32) for k, s in shapes.items()}

    def loss(p, x):
        return jnp.mean(jax.nn.softmax(jax.nn.relu(x @ p["a"]) @ p["b"]).sum(1))

    result = check_flow(None, loss, jnp.asarray(X), make=make)
    assert [f.code for f in result.findings] == ["flow-constant-loss"]


def test_a_loss_that_is_the_same_by_a_zero_layer_is_none():
    def make():
        made = model()
        nn.init.zeros_(made[2].weight)
        nn.init.zeros_(made[2].bias)
        return made

    labels = torch.arange(32) % 10
    loss = lambda m, x: nn.functional.cross_entropy(m(x), labels)  # noqa: E731
    assert check_flow(None, loss, torch.tensor(X), make=make).verdict == "pass"


def test_a_small_gradient_is_none():
    labels = torch.arange(32) % 10
    loss = lambda m, x: 5 + 1e-6 * nn.functional.cross_entropy(m(x), labels)  # noqa: E731
    assert check_flow(None, loss, torch.tensor(X), make=model).verdict == "pass"


def test_a_bias_after_the_normalisation_moves_it_alone():
    make = lambda: nn.Sequential(nn.Linear(16, 64), nn.LayerNorm(64))  # noqa: E731
    result = check_flow(None, lambda m, x: m(x).mean(), torch.tensor(X), make=make)
    assert [f.code for f in result.findings] == ["flow-constant-loss"]
    assert "whatever the weights are" in result.findings[0].message
