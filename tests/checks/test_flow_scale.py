"""Neither an offset of the loss nor the scale of the targets decides about the flow."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

from pytest_gradcheck import check_flow

RNG = np.random.default_rng(0)
X = RNG.normal(size=(64, 8)).astype(np.float32)
T = RNG.normal(size=64).astype(np.float32)
BATCH = (torch.tensor(X), torch.tensor(RNG.integers(0, 4, 64)))
SMALL = 0.05


def net(depth=6, act=nn.ReLU, gain=1.0):
    def make():
        parts = []
        for a, b in itertools.pairwise([8, *[32] * (depth - 1)]):
            parts += [layer(a, b, gain), act()]
        return nn.Sequential(*parts, layer(32, 4, gain))

    return make


def layer(a, b, gain):
    made = nn.Linear(a, b)
    nn.init.normal_(made.weight, std=gain * (2 / a) ** 0.5)
    nn.init.zeros_(made.bias)
    return made


def classified(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def regressed(model, batch):
    return (model(batch[0])[:, 0] - batch[1]).square().mean()


def check(make, loss=classified, batch=BATCH):
    return check_flow(None, loss, batch, make=make, seed=1)


def fails(result):
    return [f.code.removeprefix("flow-") for f in result.findings if f.severity == "fail"]


class Rescaled(nn.Module):
    """Every other layer times a factor and the next one over it: the same function."""

    def __init__(self, model, factor):
        super().__init__()
        self.model = model
        layers = [part for part in model if isinstance(part, nn.Linear)]
        with torch.no_grad():
            for one, other in zip(layers[:-1:2], layers[1::2], strict=False):
                one.weight.mul_(factor)
                one.bias.mul_(factor)
                other.weight.div_(factor)

    def forward(self, x):
        return self.model(x)


@pytest.mark.parametrize("factor", [30.0, 1 / 30])
@pytest.mark.parametrize("act", [nn.ReLU, nn.LeakyReLU])
def test_a_last_layer_that_is_small_by_scale_alone_excuses_nothing(act, factor):
    make = net(10, act, 0.3)
    plain, result = check(make), check(lambda: Rescaled(make(), factor))
    assert fails(result)[:1] == fails(plain)[:1] == ["vanishing"]


@pytest.mark.parametrize("offset", [-1e5, -3.0, 3.0, 1e5])
def test_an_offset_of_the_loss_changes_nothing(offset):
    for make in (net(), net(10, gain=SMALL), net(10, nn.Sigmoid)):
        plain, result = check(make), check(make, lambda m, b: classified(m, b) + offset)
        assert (result.verdict, fails(result)) == (plain.verdict, fails(plain))


@pytest.mark.parametrize(("shift", "scale"), [(0, 1), (1e4, 1e3), (-1e6, 1), (0, 1e6)])
def test_the_scale_of_the_targets_changes_nothing(shift, scale):
    batch = (BATCH[0], shift + scale * torch.tensor(T))
    assert check(net(), regressed, batch).verdict == "pass"
    result = check(net(10, gain=SMALL), regressed, batch)
    assert fails(result) == ["vanishing"]
    assert "activations fade by" in result.findings[0].message
    assert result.findings[0].number("growth") == pytest.approx(SMALL, abs=0.02)
    assert "flow-cause-init" in [f.code for f in result.findings]


def test_small_targets_do_not_make_the_activations_fade():
    result = check(net(), regressed, (BATCH[0], 1e-3 * torch.tensor(T)))
    assert "vanishing" not in fails(result)


def test_an_answer_that_the_loss_feels_may_be_small():
    def tiny():
        model = net()()
        with torch.no_grad():
            model[-1].weight.mul_(1e-6)
        return model

    assert check(tiny, lambda m, b: classified(lambda x: 1e6 * m(x), b)).verdict == "pass"


def test_large_inputs_that_are_normalised_do_not_fade():
    def normed():
        return nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 4))

    result = check(normed, batch=(1e6 * BATCH[0], BATCH[1]))
    assert result.verdict == "pass", result.headline


def draws(depth, gain):
    def make(seed):
        rng = np.random.default_rng(seed)
        sizes = [8, *[32] * (depth - 1), 1]
        return [
            jnp.asarray(rng.normal(0, gain * (2 / a) ** 0.5, (a, b)), jnp.float32)
            for a, b in itertools.pairwise(sizes)
        ]

    return make


@pytest.mark.parametrize("offset", [0.0, 1e5])
def test_jax_functions_whatever_the_offset_and_the_targets(offset):
    def loss(params, batch):
        h, y = batch
        for w in params[:-1]:
            h = jax.nn.relu(h @ w)
        return jnp.mean(((h @ params[-1])[:, 0] - y) ** 2) + offset

    batch = (jnp.asarray(X), jnp.asarray(1e4 + 1e3 * T))
    assert check(draws(6, 1.0), loss, batch).verdict == "pass"
    result = check(draws(10, SMALL), loss, batch)
    assert fails(result) == ["vanishing"]
    assert result.findings[0].number("growth") < 0.1
