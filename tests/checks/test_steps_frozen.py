"""Functional steps that differentiate a part of the parameters, and leave the rest as it is."""

import numpy as np
import pytest

from pytest_gradcheck import Training, check_step

jax = pytest.importorskip("jax")
optax = pytest.importorskip("optax")
jnp = jax.numpy


def batches(dtype):
    rng = np.random.default_rng(0)
    return [tuple(rng.normal(size=(n, k)).astype(dtype) for k in (4, 3)) for n in (8, 5, 8)]


def start(dtype):
    rng = np.random.default_rng(1)
    return {name: rng.normal(size=(4, k)).astype(dtype) for name, k in (("body", 4), ("head", 3))}


def loss_of(params, batch):
    return ((batch[0] @ params["body"] @ params["head"] - batch[1]) ** 2).mean()


def of_jax(factor=1.0, limit=None, moved=0.0):
    tx = optax.adam(1e-2)

    def step(params, state, batch):
        grads = jax.tree.map(lambda g: factor * g, jax.grad(loss_of)(params, batch))
        grads = {**grads, "body": jnp.zeros((4, 4))}
        if limit:
            size = optax.global_norm(grads)
            grads = jax.tree.map(lambda g: g * jnp.minimum(1.0, limit / size), grads)
        updates, state = tx.update(grads, state, params)
        new = optax.apply_updates(params, updates)
        return {**new, "body": new["body"] + moved}, state

    params = jax.tree.map(jnp.asarray, start(np.float32))
    return Training(
        step=step,
        loss=loss_of,
        batches=batches(np.float32),
        params=params,
        opt_state=tx.init(params),
        optimizer=tx,
    )


def of_numpy(factor=1.0, limit=None, moved=0.0):
    def step(params, state, batch):
        inner = batch[0] @ params["body"]
        grad = factor * 2 * inner.T @ (inner @ params["head"] - batch[1]) / batch[1].size
        if limit:
            grad = grad * min(1.0, limit / np.linalg.norm(grad))
        return {"body": params["body"] + moved, "head": params["head"] - 0.1 * grad}, state

    return Training(step=step, loss=loss_of, batches=batches(np.float64), params=start(np.float64))


MADE = {"jax": (of_jax, {}), "numpy": (of_numpy, {"optimizer": "sgd", "lr": 0.1})}


@pytest.mark.parametrize("limit", [None, 0.1])
@pytest.mark.parametrize("name", MADE)
def test_what_is_frozen_needs_no_gradient(name, limit):
    make, claims = MADE[name]
    claims = {"frozen": "body", **({"max_norm": limit} if limit else {}), **claims}
    result = check_step(lambda: make(limit=limit), **claims)
    assert result.verdict == "pass", result.headline
    if limit is None:
        assert check_step(lambda: make(2.0), **claims).verdict == "fail"
    moving = check_step(lambda: make(limit=limit, moved=1e-3), **claims)
    assert "step-frozen-moved" in [f.code for f in moving.findings if f.severity == "fail"]


@pytest.mark.parametrize("name", MADE)
def test_what_nobody_claims_to_be_frozen_is_missed(name):
    make, claims = MADE[name]
    result = check_step(make, **claims)
    assert result.findings[0].code == "step-missing-gradient"
    assert any("claim frozen=" in line for line in result.advice)


def test_a_transformation_of_a_part_of_a_module():
    eqx = pytest.importorskip("equinox")

    def training(factor):
        model = eqx.nn.MLP(4, 3, 8, 1, key=jax.random.key(0))
        trained = jax.tree.map(eqx.is_inexact_array, model)
        trained = eqx.tree_at(lambda m: m.layers[0].weight, trained, replace=False)
        tx = optax.adam(1e-2)

        def loss(model, batch):
            return jnp.mean((jax.vmap(model)(batch[0]) - batch[1]) ** 2)

        def of_parts(some, rest, batch):
            return factor * loss(eqx.combine(some, rest), batch)

        @eqx.filter_jit
        def step(model, state, batch):
            some, rest = eqx.partition(model, trained)
            updates, state = tx.update(jax.grad(of_parts)(some, rest, batch), state, some)
            return eqx.apply_updates(model, updates), state

        return Training(
            step=step,
            loss=loss,
            batches=batches(np.float32),
            params=model,
            opt_state=tx.init(eqx.filter(model, trained)),
            optimizer=tx,
        )

    for claims in ({"frozen": "layers.0.weight"}, {}):
        result = check_step(lambda: training(1.0), **claims)
        assert result.verdict == "pass", result.headline
        told = {f.code: f.severity for f in result.findings}
        assert told.get("step-not-registered") == (None if claims else "warn")
        wrong = check_step(lambda: training(2.0), **claims)
        assert "2 times the right gradient" in wrong.headline
