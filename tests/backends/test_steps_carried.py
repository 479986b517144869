"""Losses that take the state that a functional step carries along: keys, targets, statistics."""

from __future__ import annotations

import numpy as np
import pytest

from pytest_gradcheck import Training, check_step


def by_hand(lr=0.01, is_late=False):
    """A target that grows from step to step, in NumPy."""
    rng = np.random.default_rng(0)
    batches = [(rng.normal(size=(n, 3)), rng.normal(size=n)) for n in (8, 8, 3)]

    def residual(params, batch, state):
        return batch[0] @ params["w"] - batch[1] * state["scale"]

    def loss(params, batch, state):
        return np.mean(residual(params, batch, state) ** 2)

    def step(params, state, batch):
        later = {"scale": state["scale"] * 1.5}
        r = residual(params, batch, later if is_late else state)
        return {"w": params["w"] - lr * 2 * batch[0].T @ r / len(r)}, later

    return Training(
        step=step, loss=loss, batches=batches, params={"w": rng.normal(size=3)},
        opt_state={"scale": 1.0},
    )  # fmt: skip


def test_a_target_in_the_state_of_numpy():
    claims = {"optimizer": "sgd", "lr": 0.01}
    right = check_step(by_hand, **claims)
    assert right.verdict == "pass", right.headline
    assert check_step(lambda: by_hand(lr=0.02), **claims).verdict == "fail"
    assert check_step(lambda: by_hand(is_late=True), **claims).verdict == "fail"


@pytest.mark.parametrize("wrong", ["", "key", "target"], ids=["right", "key", "target"])
def test_keys_and_targets_in_the_state_of_jax(wrong):
    jax, optax = pytest.importorskip("jax"), pytest.importorskip("optax")
    jnp = jax.numpy

    def training():
        rng, tx = np.random.default_rng(0), optax.adam(1e-2)
        params = {k: jnp.float32(rng.normal(size=s)) for k, s in (("w", (4, 6)), ("v", (6, 1)))}
        batches = [tuple(np.float32(rng.normal(size=(8, n))) for n in (4, 1)) for _ in range(3)]

        def computed(p, batch, key, target):
            h = jnp.tanh(batch[0] @ p["w"])
            h = h * jax.random.bernoulli(key, 0.7, h.shape) / 0.7
            # Temporal differences: the target is another network, which follows.
            y = batch[1] + 0.9 * jnp.tanh(batch[0] @ target["w"]) @ target["v"]
            return jnp.mean((h @ p["v"] - y) ** 2)

        def loss(p, batch, state):
            _, key, n, target = state
            return computed(p, batch, jax.random.fold_in(key, n), target)

        @jax.jit
        def step(p, state, batch):
            opt, key, n, target = state
            drawn = jax.random.fold_in(key, n + (wrong == "key"))
            used = jax.lax.stop_gradient(p) if wrong == "target" else target
            updates, opt = tx.update(jax.grad(computed)(p, batch, drawn, used), opt, p)
            p = optax.apply_updates(p, updates)
            target = jax.tree.map(lambda a, b: 0.9 * a + 0.1 * b, target, p)
            return p, (opt, key, n + 1, target)

        state = tx.init(params), jax.random.key(3), 0, jax.tree.map(lambda x: x / 2, params)
        return Training(
            step=step, loss=loss, batches=batches, params=params, opt_state=state, optimizer=tx
        )

    result = check_step(training)
    assert result.verdict == ("fail" if wrong else "pass"), result.headline
