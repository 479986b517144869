"""A wrong gradient that fades on its way back, and right ones that are small, or rounding alone."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from torch import nn

from pytest_gradcheck import Training, check_step

F = nn.functional
WIDTH, DEPTH = 16, 9


class Scaled(nn.Module):
    """So many times what comes in."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return self.factor * x


def faded(activation):
    parts = [part for _ in range(DEPTH) for part in (nn.Linear(WIDTH, WIDTH), activation())]
    return nn.Sequential(*parts, nn.Linear(WIDTH, 4))


def training(make, seed, factor=1.0, dtype=torch.float32):
    """The gradient of the first matrix is so many times the right one."""

    def build():
        torch.manual_seed(seed)
        model = make().to(dtype)
        next(model.parameters()).register_hook(lambda g: factor * g)
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
        batches = [
            (torch.randn(12, WIDTH, dtype=dtype), torch.randint(0, 4, (12,))) for _ in range(3)
        ]

        def loss(batch):
            return F.cross_entropy(model(batch[0]), batch[1])

        def step(batch):
            optimizer.zero_grad()
            loss(batch).backward()
            optimizer.step()

        return Training(step=step, loss=loss, batches=batches, model=model, optimizer=optimizer)

    return build


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("activation", [nn.ReLU6, nn.Tanh])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_wrong_tensor_is_found(activation, seed, dtype):
    result = check_step(training(lambda: faded(activation), seed, 1.1, dtype))
    assert (result.verdict, result.findings[0].code) == ("fail", "step-slope"), result.headline
    assert result.findings[0].where == "0.weight"


RIGHT = {
    "rectified": lambda: faded(nn.ReLU6),
    "saturating": lambda: faded(nn.Tanh),
    "fading to nothing": lambda: faded(nn.Sigmoid),
    "biases before batch norm, whose gradient is rounding": lambda: nn.Sequential(
        nn.Linear(WIDTH, 32), nn.BatchNorm1d(32), nn.Tanh(),
        nn.Linear(32, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 4),
    ),
    "small inside": lambda: nn.Sequential(
        nn.Linear(WIDTH, 32), nn.Tanh(), Scaled(1e-3),
        nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 4),
    ),
    "saturated at the end": lambda: nn.Sequential(faded(nn.ReLU), Scaled(300.0)),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", RIGHT)
def test_a_right_one_is_not_accused(name, dtype):
    for seed in range(3):
        result = check_step(training(RIGHT[name], seed, dtype=dtype))
        assert result.verdict == "pass", result.headline


@jax.custom_vjp
def longer(x):
    return x


longer.defvjp(lambda x: (x, None), lambda _, g: (1.1 * g,))


def jax_training(seed, params_of, predicted, count):
    """AdamW on the mean square of what is predicted from a list of parameters."""

    def build():
        rng = np.random.default_rng(seed)
        params, tx = params_of(rng), optax.adamw(1e-3)
        shapes = ((count, WIDTH), (count, 4))
        batches = [
            tuple(jnp.asarray(rng.normal(size=s), jnp.float32) for s in shapes) for _ in range(3)
        ]

        def loss(params, batch):
            return jnp.mean((predicted(params, batch[0]) - batch[1]) ** 2)

        @jax.jit
        def step(params, state, batch):
            updates, state = tx.update(jax.grad(loss)(params, batch), state, params)
            return optax.apply_updates(params, updates), state

        return Training(
            step=step, loss=loss, batches=batches, params=params, opt_state=tx.init(params),
            optimizer=tx,
        )  # fmt: skip

    return build


def matrices(rng):
    sizes = [(WIDTH, WIDTH)] * DEPTH + [(WIDTH, 4)]
    return [jnp.asarray(rng.normal(size=s) * 0.15, jnp.float32) for s in sizes]


def layers(rng):
    sizes = [(WIDTH, WIDTH)] * 3 + [(WIDTH, 4)]
    return [(jnp.asarray(rng.normal(size=s) / 4, jnp.float32), jnp.zeros(s[1])) for s in sizes]


@pytest.mark.parametrize("is_wrong", [True, False])
def test_jax(is_wrong):
    def predicted(params, x):
        first, *others = params
        x = jnp.tanh(x @ (longer(first) if is_wrong else first))
        for w in others[:-1]:
            x = jnp.tanh(x @ w)
        return x @ others[-1]

    result = check_step(jax_training(0, matrices, predicted, 12), optimizer="adamw", lr=1e-3)
    assert result.verdict == ("fail" if is_wrong else "pass"), result.headline


@pytest.mark.parametrize("is_wrong", [True, False])
@pytest.mark.parametrize("seed", [0, 2])
def test_a_bend_does_not_make_up_for_what_is_missing(seed, is_wrong):
    """The longest step is off by as much as the gradient is, of outputs that are far too large."""

    def predicted(params, x):
        ((first, bias), *others), (last, end) = params[:-1], params[-1]
        x = jax.nn.gelu(x @ (longer(first) if is_wrong else first) + bias)
        for w, b in others:
            x = jax.nn.gelu(x @ w + b)
        return 100 * (x @ last + end)

    result = check_step(jax_training(seed, layers, predicted, 16), optimizer="adamw", lr=1e-3)
    assert result.verdict == ("fail" if is_wrong else "pass"), result.headline
