"""Gradients that float16 cannot hold are told from those that vanish or are zero by fault."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

from pytest_gradcheck import check_flow

RNG = np.random.default_rng(0)
X = RNG.normal(size=(64, 16)).astype(np.float32)
Y = RNG.integers(0, 10, size=64)
BATCH = torch.tensor(X), torch.tensor(Y)


def plain():
    model = nn.Sequential(
        nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)
    )
    for layer in model[::2]:
        nn.init.kaiming_normal_(layer.weight)
        nn.init.zeros_(layer.bias)
    return model


def of_half(factor):
    def loss(model, batch):
        x, y = batch
        return factor * nn.functional.cross_entropy(model(x.half()).float(), y)

    return check_flow(None, loss, BATCH, make=lambda: plain().half())


def of_autocast(factor):
    def loss(model, batch):
        x, y = batch
        with torch.autocast("cpu", dtype=torch.float16):
            return factor * nn.functional.cross_entropy(model(x), y)

    return check_flow(None, loss, BATCH, make=plain)


def of_jax(factor):
    def make(seed):
        rng = np.random.default_rng(seed)
        shapes = {"a": (16, 64), "b": (64, 64), "c": (64, 10)}
        draws = {k: rng.normal(size=s) * (2 / s[0]) ** 0.5 for k, s in shapes.items()}
        return {k: jnp.asarray(w, jnp.float16) for k, w in draws.items()}

    def loss(params, batch):
        h = jax.nn.relu(batch @ params["a"])
        scores = (jax.nn.relu(h @ params["b"]) @ params["c"]).astype(jnp.float32)
        return -factor * jnp.mean(jax.nn.log_softmax(scores)[jnp.arange(64), Y])

    return check_flow(None, loss, jnp.asarray(X, jnp.float16), make=make)


WAYS = {"half": of_half, "autocast": of_autocast, "jax": of_jax}


@pytest.mark.parametrize("way", WAYS)
def test_a_loss_that_is_too_small_is_an_underflow(way):
    result = WAYS[way](1e-6)
    first, cause = result.findings[:2]
    assert (result.verdict, first.code, cause.code) == (
        "fail",
        "flow-underflow",
        "flow-cause-loss-scale",
    )
    assert "scale the loss" in result.advice[0]
    numbers = dict(first.numbers)
    assert numbers["gradient"] < numbers["due"]
    assert "flow-zero" not in [f.code for f in result.findings]


@pytest.mark.parametrize("way", WAYS)
def test_a_gradient_of_few_digits_is_a_warning(way):
    result = WAYS[way](1e-5)
    assert (result.verdict, result.findings[0].code) == ("pass", "flow-underflow")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("factor", [1.0, 1e-3])
def test_gradients_that_float16_holds_pass(way, factor):
    result = WAYS[way](factor)
    assert (result.verdict, result.findings) == ("pass", ())


def test_what_vanishes_for_another_reason_too_is_told_so():
    def make():
        layers = [part for _ in range(12) for part in (nn.Linear(16, 16), nn.Sigmoid())]
        return nn.Sequential(*layers, nn.Linear(16, 10)).half()

    def loss(model, batch):
        return nn.functional.cross_entropy(model(batch[0].half()).float(), batch[1])

    result = check_flow(None, loss, BATCH, make=make)
    assert result.findings[0].code == "flow-vanishing"
    assert "flow-underflow" in [f.code for f in result.findings if f.severity == "warn"]


def test_a_zero_that_no_factor_cures_stays_a_zero():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(16, 32), nn.Linear(32, 10)

        def forward(self, x):
            return self.two(self.one(x) * 0)

    result = check_flow(
        None,
        lambda m, b: nn.functional.cross_entropy(m(b[0].half()).float(), b[1]),
        BATCH,
        make=lambda: Masked().half(),
    )
    assert result.findings[0].code == "flow-zero"
