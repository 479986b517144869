"""Optimizers of optax that are given another state, or other parameters, than those of the step."""

import numpy as np
import pytest

from pytest_gradcheck import Training, check_step

jax = pytest.importorskip("jax")
optax = pytest.importorskip("optax")
jnp = jax.numpy

STATES = {
    "that of the start": (lambda tx, first, state, params: first, lambda old, new: new),
    "a fresh one": (lambda tx, first, state, params: tx.init(params), lambda old, new: new),
    "the old one is returned": (lambda tx, first, state, params: state, lambda old, new: old),
}
ADAMW = {"optimizer": "adamw", "lr": 1e-2, "weight_decay": 0.1}


def loss_of(params, batch):
    return jnp.mean((jnp.tanh(batch[0] @ params["w"] + params["b"]) - batch[1]) ** 2)


def made(tx, given=lambda tx, first, state, params: state, kept=lambda old, new: new, at=None):
    rng = np.random.default_rng(0)
    start = {"w": jnp.asarray(rng.normal(size=(4, 3)), jnp.float32), "b": jnp.ones(3)}
    batches = [tuple(np.float32(rng.normal(size=(8, n))) for n in (4, 3)) for _ in range(3)]
    first = tx.init(start)

    @jax.jit
    def step(params, state, batch):
        grads = jax.grad(loss_of)(params, batch)
        there = params if at is None else at(start)
        updates, new = tx.update(grads, given(tx, first, state, params), there)
        return optax.apply_updates(params, updates), kept(state, new)

    return Training(
        step=step, loss=loss_of, batches=batches, params=start, opt_state=first, optimizer=tx
    )


@pytest.mark.parametrize(("given", "kept"), STATES.values(), ids=STATES)
@pytest.mark.parametrize("tx", [optax.adam(1e-2), optax.sgd(0.1, momentum=0.9)])
def test_a_state_that_is_not_carried_on(given, kept, tx):
    result = check_step(lambda: made(tx, given, kept))
    assert "the state of the optax transformation is not carried on" in result.headline
    assert result.findings[0].code == "step-optimizer"


@pytest.mark.parametrize(("given", "kept"), STATES.values(), ids=STATES)
def test_the_same_by_its_rule(given, kept):
    result = check_step(lambda: made(optax.adamw(1e-2, weight_decay=0.1), given, kept), **ADAMW)
    assert "with its state lost at every step" in result.headline


@pytest.mark.parametrize(("given", "kept"), STATES.values(), ids=STATES)
def test_momentum_that_is_lost_is_no_wrong_gradient(given, kept):
    def training():
        whole = made(optax.sgd(0.1, momentum=0.9), given, kept)
        return Training(
            step=whole.step,
            loss=whole.loss,
            batches=whole.batches,
            params=whole.params,
            opt_state=whole.opt_state,
        )

    result = check_step(training, optimizer="sgd", lr=0.1, momentum=0.9)
    assert "without momentum" in result.headline


@pytest.mark.parametrize("claims", [{}, ADAMW], ids=["tx", "claimed"])
def test_other_parameters_for_the_decay(claims):
    tx = optax.adamw(1e-2, weight_decay=0.1)
    result = check_step(lambda: made(tx, at=lambda start: start), **claims)
    assert "is given other parameters" in result.headline
    assert check_step(lambda: made(tx), **claims).verdict == "pass"


def test_a_decay_that_is_too_small_to_be_seen():
    def zeros(start):
        return jax.tree.map(jnp.zeros_like, start)

    for at in (None, zeros):
        result = check_step(lambda at=at: made(optax.adamw(1e-2), at=at))
        assert result.verdict == "pass"
        assert "weak-decay" in {f.code for f in result.findings}
    result = check_step(lambda: made(optax.adam(1e-2)))
    assert "weak-decay" not in {f.code for f in result.findings}


@pytest.mark.parametrize("tx", [optax.adam(1e-2), optax.sgd(0.1), optax.sgd(0.1, momentum=0.9)])
def test_parameters_and_state_in_the_wrong_order(tx):
    def training():
        whole = made(tx)
        return Training(
            step=lambda *given: whole.step(*given)[::-1],
            loss=whole.loss,
            batches=whole.batches,
            params=whole.params,
            opt_state=whole.opt_state,
            optimizer=tx,
        )

    result = check_step(training)
    assert "returns its parameters second, as in (opt_state, params)" in result.headline


def test_parameters_alone():
    def training():
        return Training(
            step=lambda params, state, batch: params,
            loss=lambda params, batch: jnp.sum(params[0] * params[1] * batch),
            batches=[jnp.ones(3)],
            params=(jnp.ones(3), jnp.ones(3)),
            opt_state=None,
        )

    assert "returns parameters alone" in check_step(training).headline
