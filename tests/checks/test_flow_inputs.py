"""Inputs out of proportion, told by what standardised ones change."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

from pytest_gradcheck import check_flow
from pytest_gradcheck.backends import layers, torch_sizes

RNG = np.random.default_rng(0)
X, TARGETS = RNG.normal(size=(64, 16)), RNG.normal(size=(64, 1))
LABELS = torch.tensor(RNG.integers(0, 10, size=64))


def of_torch(x, has_bias=True):
    def make():
        model = nn.Sequential(
            nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)
        )
        for layer in () if has_bias else model[::2]:
            nn.init.kaiming_normal_(layer.weight)
            nn.init.zeros_(layer.bias)
        return model

    def loss(model, batch):
        return nn.functional.cross_entropy(model(batch), LABELS)

    return check_flow(None, loss, torch.tensor(x, dtype=torch.float32), make=make)


def made(seed):
    rng = np.random.default_rng(seed)
    sizes = {"w1": (16, 64), "b1": (64,), "w2": (64, 1), "b2": (1,)}
    factors = {"w1": 0.35, "b1": 0.1, "w2": 0.125, "b2": 0.1}
    return {k: factors[k] * rng.normal(size=s) for k, s in sizes.items()}


def of_numpy(x, targets=TARGETS):
    def loss(p, batch):
        x, targets = batch
        z = x @ p["w1"] + p["b1"]
        a = np.maximum(z, 0)
        out = a @ p["w2"] + p["b2"]
        g = 2 * (out - targets) / len(out)
        layers = [("in", z, g @ p["w2"].T * (z > 0)), ("in.relu", a, g @ p["w2"].T)]
        return np.mean((out - targets) ** 2), [*layers, ("out", out, g)]

    return check_flow(None, loss, (x, targets), make=made)


def of_jax(x):
    def loss(p, x):
        return jnp.mean((jax.nn.relu(x @ p["w1"] + p["b1"]) @ p["w2"] + p["b2"] - TARGETS) ** 2)

    make = lambda seed: {k: jnp.asarray(v, jnp.float32) for k, v in made(seed).items()}  # noqa: E731
    return check_flow(None, loss, jnp.asarray(x, jnp.float32), make=make)


WAYS = {"torch": of_torch, "jax": of_jax, "numpy": of_numpy}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("x", [1e-4 * X, X + 1000], ids=["small", "far"])
def test_inputs_by_which_every_sample_looks_the_same(way, x):
    result = WAYS[way](x)
    codes = [f.code for f in result.findings if f.severity == "fail"]
    assert result.verdict == "fail"
    assert "flow-inputs" in codes or (way == "numpy" and "flow-constant" in codes)
    assert "flow-cause-input" in [f.code for f in result.findings]
    assert "standardise" in result.advice[0]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("x", [X, 0.1 * X, X + 1], ids=["plain", "tenth", "shifted"])
def test_other_inputs_pass(way, x):
    assert WAYS[way](x).verdict == "pass"


def test_small_inputs_without_biases_are_not_felt():
    assert of_torch(1e-8 * X, has_bias=False).findings[0].code == "flow-inputs"
    assert of_torch(1e-2 * X, has_bias=False).verdict == "pass"


def test_samples_that_are_the_same_are_no_fault_of_their_size():
    assert of_torch(np.repeat(X[:1], 64, 0)).verdict == "pass"


def test_large_inputs_of_a_record_are_found():
    result = of_numpy(1e4 * X)
    codes = [f.code for f in result.findings[:2]]
    assert (result.verdict, codes) == ("fail", ["flow-constant", "flow-cause-input"])


def test_far_targets_of_a_record_are_a_warning():
    result = of_numpy(X, TARGETS + 100)
    assert (result.verdict, result.findings[0].code) == ("pass", "flow-constant")


def test_contrast_is_the_same_for_tensors_and_arrays():
    x = RNG.normal(size=(4, 5, 6)) + 3
    by_hand = np.sqrt(x.reshape(-1, 6).var(0).mean()) / np.sqrt(np.mean(x**2))
    assert layers.contrast(x) == pytest.approx(by_hand)
    assert torch_sizes.contrast(torch.tensor(x), 2) == pytest.approx(by_hand)
    assert np.isnan(layers.contrast(x[0, :3]))


def test_tiny_inputs_of_a_default_start_without_biases_are_not_felt():
    make = lambda: nn.Sequential(  # noqa: E731
        nn.Linear(16, 64, bias=False), nn.ReLU(), nn.Linear(64, 10, bias=False)
    )
    loss = lambda m, x: nn.functional.cross_entropy(m(x), LABELS)  # noqa: E731
    x = torch.tensor(X, dtype=torch.float32)
    assert check_flow(None, loss, 1e-5 * x, make=make, seed=0).findings[0].code == "flow-inputs"
    assert check_flow(None, loss, 1e-3 * x, make=make, seed=0).verdict == "pass"


@pytest.mark.parametrize("seed", range(4))
def test_how_far_one_answer_moves_the_loss_is_chance(seed):
    """Inputs of 1e-4 before He's weights: whether they are felt must not hang on one draw."""

    def make():
        parts = [(8, 32), (32, 32), (32, 32)]
        layers = [m for a, b in parts for m in (nn.Linear(a, b, bias=False), nn.ReLU())]
        for layer in layers[::2]:
            nn.init.kaiming_normal_(layer.weight)
        return nn.Sequential(*layers, nn.Linear(32, 3, bias=False))

    x = torch.tensor(X[:, :8], dtype=torch.float32)
    labels = (x[:, 0] > 0).long() + (x[:, 1] > 0).long()
    loss = lambda m, x: nn.functional.cross_entropy(m(x), labels)  # noqa: E731
    assert check_flow(None, loss, 1e-4 * x, make=make, seed=seed).verdict == "fail"
    assert check_flow(None, loss, x, make=make, seed=seed).verdict == "pass"
