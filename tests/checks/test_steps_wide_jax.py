"""Slopes of losses of JAX in float64: curved ones hide no wrong backward, and nobody is accused."""

import numpy as np
import pytest

from pytest_gradcheck import Training, check_step

jax = pytest.importorskip("jax")
optax = pytest.importorskip("optax")
jnp = jax.numpy


@jax.custom_vjp
def wrongly(x):
    return jnp.sin(x)


wrongly.defvjp(lambda x: (jnp.sin(x), x), lambda x, w: (0.9 * w * jnp.cos(x),))


def usual(params, batch):
    x = jnp.sin(3 * batch[0] @ params["v"])
    return jnp.mean((x @ params["w"] - batch[1]) ** 2)


def wrong(params, batch):
    return usual({**params, "w": wrongly(params["w"])}, batch)


def kinked(params, batch):
    return jnp.mean((jax.nn.relu(batch[0] @ params["v"]) @ params["w"] - batch[1]) ** 2)


def rounded(params, batch):
    """What float64 does not reach."""
    x = jnp.sin(3 * batch[0] @ params["v"]).astype(jnp.bfloat16).astype(jnp.float32)
    return jnp.mean((x @ params["w"] - batch[1]) ** 2)


def noisy(params, batch, noise):
    x = jnp.sin(batch[0] @ params["v"]) * noise
    return jnp.mean((x @ params["w"] - batch[1]) ** 2)


def dropped(params, batch):
    return noisy(params, batch, jax.random.bernoulli(batch[2], 0.8, (8, 6)))


def disturbed(params, batch):
    return noisy(params, batch, 1 + 0.3 * jax.random.normal(batch[2], (8, 6)))


def drawn_otherwise(params, batch):
    """Other numbers in 64-bit mode."""
    return noisy(params, batch, jax.random.gamma(batch[2], 2.0, (8, 6)))


def looked_at(params, batch):
    """Not to be traced."""
    scale = 1.0 if float(jax.lax.stop_gradient(params["w"]).sum()) > -1e9 else 2.0
    return scale * usual(params, batch)


def training(loss, seed=0, scale=3.0):
    def build():
        rng = np.random.default_rng(seed)
        tx = optax.adam(1e-2)
        params = {
            "v": jnp.asarray(scale * rng.normal(size=(4, 6)), jnp.float32),
            "w": jnp.asarray(scale * rng.normal(size=(6, 2)), jnp.float32),
        }
        batches = [
            (*(np.float32(rng.normal(size=(8, n))) for n in (4, 2)), jax.random.key(k))
            for k in range(3)
        ]

        def step(params, state, batch):
            grads = jax.grad(loss)(params, batch)
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        return Training(
            step=step,
            loss=loss,
            batches=batches,
            params=params,
            opt_state=tx.init(params),
            optimizer=tx,
        )

    return build


@pytest.mark.parametrize("seed", range(6))
def test_a_wrong_backward_under_a_curved_loss(seed):
    result = check_step(training(wrong, seed))
    assert (result.verdict, result.findings[0].code) == ("fail", "step-slope")
    assert " in w" in result.headline


@pytest.mark.parametrize("loss", [dropped, disturbed])
@pytest.mark.parametrize("seed", range(2))
def test_a_wrong_backward_beside_what_is_drawn(loss, seed):
    def wrong(params, batch):
        return loss({**params, "w": wrongly(params["w"])}, batch)

    assert check_step(training(wrong, seed)).verdict == "fail"


RIGHT = [usual, kinked, dropped, disturbed, drawn_otherwise, rounded, looked_at]


@pytest.mark.parametrize("loss", RIGHT)
def test_right_losses(loss):
    result = check_step(training(loss, 1))
    assert result.verdict == "pass", result.headline
    assert not jax.config.jax_enable_x64
