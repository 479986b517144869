"""JAX on a GPU, where float32 products are rounded to TF32; skipped with a reason elsewhere."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pytest_gradcheck import Training, check_clipping, check_flow, check_gradient, check_step

GPU = pytest.mark.skipif(jax.default_backend() != "gpu", reason="JAX has no GPU here")


def weights(width=128, depth=8, seed=0):
    rng = np.random.default_rng(seed)
    shape = (width, width)
    return [jnp.asarray(rng.normal(size=shape) / width**0.5, jnp.float32) for _ in range(depth)]


def loss(params, x):
    for w in params:
        x = jnp.tanh(x @ w)
    return jnp.mean(x**2)


@pytest.mark.gpu
@GPU
@pytest.mark.parametrize("precision", ["default", "highest"])
def test_products_on_a_gpu_are_no_false_alarm(precision):
    x = jnp.asarray(np.random.default_rng(1).normal(size=(32, 128)), jnp.float32)
    with jax.default_matmul_precision(precision):
        result = check_gradient(loss, weights(), x)
    assert (result.verdict, result.headline) == ("pass", result.headline)


@jax.custom_vjp
def scaled(x):
    return x


scaled.defvjp(lambda x: (x, None), lambda _, w: (1.02 * w,))


@pytest.mark.gpu
@GPU
def test_a_wrong_gradient_on_a_gpu_fails():
    x = jnp.asarray(np.random.default_rng(1).normal(size=(32, 128)), jnp.float32)
    result = check_gradient(lambda params, x: scaled(loss(params, x)), weights(), x)
    assert result.verdict == "fail"


@pytest.mark.gpu
@GPU
def test_flow_on_a_gpu():
    x = jnp.asarray(np.random.default_rng(1).normal(size=(64, 128)), jnp.float32)
    result = check_flow(None, loss, x, make=lambda seed: weights(seed=seed))
    assert (result.verdict, result.headline) == ("pass", result.headline)


@pytest.mark.gpu
@GPU
def test_a_step_and_a_clip_on_a_gpu():
    def training():
        tx = optax.adam(1e-2)
        rng = np.random.default_rng(0)
        batches = [jnp.asarray(rng.normal(size=(16, 128)), jnp.float32) for _ in range(3)]

        @jax.jit
        def step(params, state, batch):
            grads = jax.grad(loss)(params, batch)
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        params = weights(depth=3)
        return Training(
            step=step,
            loss=loss,
            batches=batches,
            params=params,
            opt_state=tx.init(params),
            optimizer=tx,
        )

    result = check_step(training)
    assert (result.verdict, result.headline) == ("pass", result.headline)
    clip = optax.clip_by_global_norm(1.0)
    assert check_clipping(clip, max_norm=1.0, dtypes=["float32"]).verdict == "pass"


def gathered(factor=1.0, is_claimed=False):
    """Three batches for each update of a network of which every product is rounded."""

    def training():
        tx = optax.MultiSteps(optax.adamw(1e-2, weight_decay=0.1), 3)
        rng = np.random.default_rng(0)
        sizes = (5, 3, 8)
        batches = [jnp.asarray(rng.normal(size=(n, 128)), jnp.float32) for n in sizes]

        @jax.jit
        def step(params, state, batch):
            grads = jax.grad(lambda p: 3 * loss(p, batch))(params)
            grads = jax.tree.map(lambda g: factor * g / 3, grads)
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        params = weights(depth=6)
        return Training(
            step=step,
            loss=loss,
            batches=batches,
            params=params,
            opt_state=tx.init(params),
            optimizer=None if is_claimed else tx,
        )

    return training


CLAIMED = {"optimizer": "adamw", "lr": 1e-2, "weight_decay": 0.1}


@pytest.mark.gpu
@GPU
@pytest.mark.parametrize("claims", [{}, CLAIMED], ids=["seen", "claimed"])
def test_steps_that_gather_rounded_products(claims):
    claims = {"accumulate": 3, "weights": "batches", **claims}
    result = check_step(gathered(is_claimed="lr" in claims), **claims)
    assert (result.verdict, result.headline) == ("pass", result.headline)
    assert check_step(gathered(1.05), **claims).verdict == "fail"
