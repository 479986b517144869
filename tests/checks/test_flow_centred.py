"""A last bias at the targets hides nothing, and accuses nobody."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

from pytest_gradcheck import check_flow

RNG = np.random.default_rng(0)
X = RNG.normal(size=(64, 16)).astype(np.float32)
NOISE = RNG.normal(size=(64, 1)).astype(np.float32)


def of_torch(bias, mean, gain=1.0):
    def make():
        sizes = (16, 64, 64, 64, 1)
        layers = []
        for a, b in itertools.pairwise(sizes):
            layers += [nn.Linear(a, b), nn.ReLU()]
            nn.init.kaiming_normal_(layers[-2].weight)
            nn.init.zeros_(layers[-2].bias)
        with torch.no_grad():
            for layer in layers[::2]:
                layer.weight.mul_(gain)
        nn.init.constant_(layers[-2].bias, bias)
        return nn.Sequential(*layers[:-1])

    def loss(model, batch):
        return nn.functional.mse_loss(model(batch[0]), batch[1])

    return check_flow(None, loss, (torch.tensor(X), torch.tensor(mean + NOISE)), make=make)


def of_jax(bias, mean, gain=1.0):
    def make(seed):
        rng = np.random.default_rng(seed)
        sizes = {"a": (16, 64), "b": (64, 64), "c": (64, 64), "d": (64, 1)}
        drawn = {k: gain * rng.normal(size=s) * (2 / s[0]) ** 0.5 for k, s in sizes.items()}
        made = {k: jnp.asarray(w, jnp.float32) for k, w in drawn.items()}
        return made | {"bias": jnp.full(1, bias)}

    def loss(p, batch):
        h = batch[0]
        for name in "abc":
            h = jax.nn.relu(h @ p[name])
        return jnp.mean((h @ p["d"] + p["bias"] - batch[1]) ** 2)

    return check_flow(None, loss, (jnp.asarray(X), jnp.asarray(mean + NOISE)), make=make)


WAYS = {"torch": of_torch, "jax": of_jax}


@pytest.mark.parametrize("way", WAYS)
def test_a_bias_at_far_targets_is_a_note(way):
    result = WAYS[way](1000.0, 1000.0)
    assert (result.verdict, [f.code for f in result.findings]) == ("pass", ["flow-centred"])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("bias", "mean", "gain"), [(1000.0, 1000.0, 0.05), (0.1, 0.0, 0.05)])
def test_weights_that_are_too_small_are_found_beside_any_bias(way, bias, mean, gain):
    result = WAYS[way](bias, mean, gain)
    assert (result.verdict, result.findings[0].code) == ("fail", "flow-vanishing")


@pytest.mark.parametrize("way", WAYS)
def test_a_bias_where_no_targets_are_is_told_by_the_loss(way):
    codes = [f.code for f in WAYS[way](1000.0, 0.0).findings]
    assert "flow-first-loss" in codes
    assert "flow-centred" not in codes


def test_a_bias_at_rare_targets_is_meant_beside_other_parts_of_a_loss():
    """The heads of a detector: focal loss at a start of 1 %, and a loss of boxes as large."""

    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.kinds = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 5))
            self.boxes = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 4))
            for head in (self.kinds, self.boxes):
                for layer in head[::2]:
                    nn.init.normal_(layer.weight, std=0.01)
                    nn.init.zeros_(layer.bias)
            nn.init.constant_(self.kinds[-1].bias, -4.6)

        def forward(self, x):
            return self.kinds(x), self.boxes(x)

    torch.manual_seed(0)
    x, boxes = torch.randn(256, 16), torch.rand(256, 4) + 1.0
    rare = (torch.rand(256, 5) < 0.01).float()

    def loss(model, batch):
        z, told = model(batch[0])
        each = nn.functional.binary_cross_entropy_with_logits(z, batch[1], reduction="none")
        focal = (each * (batch[1] - z.sigmoid()).square()).sum() / batch[1].sum()
        return focal + 0.3 * (told - batch[2]).abs().sum(1).mean()

    result = check_flow(None, loss, (x, rare, boxes), make=Heads, seed=0)
    assert result.verdict == "pass"
