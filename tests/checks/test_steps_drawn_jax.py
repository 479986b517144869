"""Functional steps that draw, and states of optax that a step sets itself."""

import numpy as np
import pytest

from pytest_gradcheck import Training, check_step

jax = pytest.importorskip("jax")
optax = pytest.importorskip("optax")
contrib = pytest.importorskip("optax.contrib")
jnp = jax.numpy


def loss_of(params, batch):
    return jnp.mean((jnp.tanh(batch[0] @ params["w"] + params["b"]) - batch[1]) ** 2)


def made(step_of, tx, state_of=lambda tx, params: tx.init(params)):
    rng = np.random.default_rng(0)
    params = {"w": jnp.asarray(rng.normal(size=(4, 3)), jnp.float32), "b": jnp.ones(3)}
    batches = [tuple(np.float32(rng.normal(size=(8, n))) for n in (4, 3)) for _ in range(3)]
    return Training(
        step=step_of(tx),
        loss=loss_of,
        batches=batches,
        params=params,
        opt_state=state_of(tx, params),
        optimizer=tx,
    )


def moved(tx, grads, state, params):
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state


@pytest.mark.parametrize("key", [jax.random.key, jax.random.PRNGKey])
def test_a_key_in_the_state(key):
    def step_of(tx, factor=1.0, noise=0.1):
        def step(params, state, batch):
            new, own = jax.random.split(state[1])
            noisy = batch[0] + noise * jax.random.normal(own, batch[0].shape), batch[1]
            grads = jax.tree.map(lambda g: factor * g, jax.grad(loss_of)(params, noisy))
            params, inner = moved(tx, grads, state[0], params)
            return params, (inner, new)

        return step

    def state_of(tx, params):
        return tx.init(params), key(0)

    result = check_step(lambda: made(step_of, optax.adam(1e-2), state_of))
    assert result.verdict == "undecided", result.headline
    assert "random numbers that the loss does not draw" in result.headline
    for factor, verdict in ((1.0, "pass"), (2.0, "fail")):
        whole = made(lambda tx, f=factor: step_of(tx, f, 0.0), optax.adam(1e-2), state_of)
        assert check_step(whole).verdict == verdict


def test_a_rate_that_the_step_sets():
    def step_of(tx, factor=1.0):
        def step(params, state, batch):
            rate = state.hyperparams["learning_rate"]
            state.hyperparams["learning_rate"] = 0.8 * rate
            params_, state = moved(tx, jax.grad(loss_of)(params, batch), state, params)
            return jax.tree.map(lambda a, b: b + factor * (a - b), params_, params), state

        return step

    tx = optax.inject_hyperparams(optax.adam)(learning_rate=1e-2)
    assert check_step(lambda: made(step_of, tx)).verdict == "pass"
    wrong = check_step(lambda: made(lambda tx: step_of(tx, 2.0), tx))
    assert "by 2 times what the optimizer says" in wrong.headline


def test_gradients_of_single_examples():
    def step_of(tx, factor=1.0):
        def of_one(params, x, y):
            return factor * loss_of(params, (x[None], y[None]))

        def step(params, state, batch):
            grads = jax.vmap(jax.grad(of_one), in_axes=(None, 0, 0))(params, *batch)
            return moved(tx, grads, state, params)

        return step

    tx = optax.chain(contrib.differentially_private_aggregate(1.0, 0.0, key=0), optax.sgd(0.1))
    assert check_step(lambda: made(step_of, tx)).verdict == "pass"
    wrong = check_step(lambda: made(lambda tx: step_of(tx, 2.0), tx))
    assert "2 times the right gradient" in wrong.headline


def test_noise_of_a_global_generator():
    def training(noise, factor=1.0):
        rng = np.random.default_rng(0)
        batches = [(rng.normal(size=(8, 4)), rng.normal(size=(8, 3))) for _ in range(3)]

        def loss(params, batch):
            return np.mean((batch[0] @ params["w"] - batch[1]) ** 2)

        def step(params, state, batch):
            x, y = batch
            g = factor * 2 * x.T @ (x @ params["w"] - y) / y.size
            g = g + noise * np.random.normal(size=g.shape)
            return {"w": params["w"] - 0.1 * g}, state

        return Training(
            step=step, loss=loss, batches=batches, params={"w": rng.normal(size=(4, 3))}
        )

    claims = {"optimizer": "sgd", "lr": 0.1}
    assert check_step(lambda: training(0.0), **claims).verdict == "pass"
    assert check_step(lambda: training(0.0, 2.0), **claims).verdict == "fail"
    result = check_step(lambda: training(0.1), **claims)
    assert result.verdict == "undecided", result.headline
