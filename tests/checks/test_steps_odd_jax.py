"""Transformations of optax that do odd things, and places where a step holds one."""

import functools
from typing import Any, NamedTuple

import numpy as np
import pytest

from pytest_gradcheck import Training, check_step

jax = pytest.importorskip("jax")
optax = pytest.importorskip("optax")
jnp = jax.numpy


def codes(result):
    return {f.code: f.severity for f in result.findings}


def loss_of(params, batch):
    hidden = jnp.tanh(batch[0] @ params["w"] + params["b"])
    return jnp.mean((hidden @ params["v"] - batch[1]) ** 2)


def made(tx, step_of=None, loss=loss_of, factor=1.0):
    rng = np.random.default_rng(0)
    shapes = {"w": (4, 8), "b": (8,), "v": (8, 1)}
    params = {k: jnp.asarray(rng.normal(size=s), jnp.float32) for k, s in shapes.items()}
    batches = [tuple(np.float32(rng.normal(size=(8, n))) for n in (4, 1)) for _ in range(3)]

    def plain(tx, params, state, batch):
        grads = jax.tree.map(lambda g: factor * g, jax.grad(loss)(params, batch))
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    step = functools.partial(plain, tx) if step_of is None else step_of(tx, plain)
    return Training(
        step=step,
        loss=loss,
        batches=batches,
        params=params,
        opt_state=tx.init(params),
        optimizer=tx,
    )


def sam():
    return optax.contrib.sam(
        optax.sgd(0.1), optax.chain(optax.contrib.normalize(), optax.sgd(0.05)), sync_period=2
    )


@pytest.mark.parametrize("kind", [optax.contrib.prodigy, sam])
def test_zero_over_zero_by_its_own_rule_is_told(kind):
    result = check_step(lambda: made(kind()))
    assert result.verdict == "pass", result.headline
    assert codes(result)["step-idle"] == "warn"
    assert "3 times the right gradient" in check_step(lambda: made(kind(), factor=3.0)).headline


def test_always_uphill_is_no_sam():
    tx = optax.chain(optax.scale_by_adam(), optax.scale(1e-2))
    assert codes(check_step(lambda: made(tx)))["step-uphill"] == "fail"


def test_a_tensor_that_the_transformation_lets_rest():
    """The mean over all but the first axis of a single column is the column."""
    result = check_step(lambda: made(optax.chain(optax.centralize(), optax.adam(1e-2))))
    assert result.verdict == "pass", result.headline
    assert codes(result)["step-unused"] == "warn"


class Parts(NamedTuple):
    tx: Any
    plain: Any


def _in_a_tuple(tx, plain):
    held = (plain, ("adam", tx))

    def step(params, state, batch):
        return held[0](held[1][1], params, state, batch)

    return step


def _in_a_named_tuple(tx, plain):
    held = Parts(tx, plain)

    def step(params, state, batch):
        return held.plain(held.tx, params, state, batch)

    return jax.jit(step)


def _in_a_tuple_of_a_partial(tx, plain):
    def step(held, params, state, batch):
        return held[1](held[0], params, state, batch)

    return functools.partial(step, (tx, plain))


@pytest.mark.parametrize("place", [_in_a_tuple, _in_a_named_tuple, _in_a_tuple_of_a_partial])
def test_a_transformation_inside_of_a_tuple_is_seen(place):
    result = check_step(lambda: made(optax.adam(1e-2), place))
    assert result.verdict == "pass", result.headline
    assert "step-not-seen" not in codes(result)
    result = check_step(lambda: made(optax.adam(1e-2), place, factor=3.0))
    assert "3 times the right gradient" in result.headline


def half_stopped(params, batch):
    hidden = jnp.tanh(batch[0] @ params["w"] + params["b"])
    weights = jax.nn.softmax(hidden)  # stops a gradient inside, which is no part of it
    hidden = jnp.concatenate([jax.lax.stop_gradient(hidden[:, :4]), weights[:, 4:]], axis=1)
    return jnp.mean((hidden @ params["v"] - batch[1]) ** 2)


@pytest.mark.parametrize("loss", [half_stopped, jax.jit(half_stopped)], ids=["plain", "jit"])
def test_what_stop_gradient_holds_back_is_named(loss):
    result = check_step(lambda: made(optax.adam(1e-2), loss=loss))
    assert result.findings[0].code == "step-stopped-gradient"
    assert result.headline.count("stop_gradient() at test_steps_odd_jax.py:") == 1
    result = check_step(lambda: made(optax.adam(1e-2), loss=loss), semi_gradient="why")
    assert result.verdict == "pass", result.headline
    assert codes(result)["step-semi-gradient"] == "note"


@jax.custom_vjp
def wrongly(x):
    return jnp.sin(x)


wrongly.defvjp(lambda x: (jnp.sin(x), x), lambda x, w: (0.9 * w * jnp.cos(x),))


def test_a_wrong_backward_is_nothing_that_is_held_back():
    def loss(params, batch):
        return loss_of({**params, "w": wrongly(params["w"])}, batch)

    result = check_step(lambda: made(optax.adam(1e-2), loss=loss))
    assert result.findings[0].code == "step-slope"
    assert "wrongly" in result.advice[0]


def test_a_loss_that_cannot_be_traced():
    def loss(params, batch):
        scale = 1.0 if float(jnp.sum(jax.lax.stop_gradient(params["b"]))) > -1e9 else 2.0
        return scale * loss_of(params, batch)

    result = check_step(lambda: made(optax.adam(1e-2), loss=loss))
    assert result.verdict == "pass", result.headline


def test_keys_in_another_order_are_the_same_parameters():
    def reordered(tx, plain):
        def step(params, state, batch):
            params, state = plain(tx, params, state, batch)
            return {k: params[k] for k in ("v", "w", "b")}, state

        return step

    result = check_step(lambda: made(optax.adam(1e-2), reordered))
    assert result.verdict == "pass", result.headline


@pytest.mark.parametrize("is_whole", [True, False])
def test_what_a_mask_leaves_out_is_added_as_it_is(is_whole):
    # optax.masked hands on the gradients that it does not mask: they are added, uphill.
    some = optax.masked(optax.adam(1e-2), {"b": True, "v": True, "w": False})
    rest = optax.masked(optax.set_to_zero(), {"b": False, "v": False, "w": True})
    result = check_step(lambda: made(optax.chain(some, rest) if is_whole else some))
    if is_whole:
        assert result.verdict == "pass", result.headline
    else:
        assert result.verdict == "fail", result.headline
        assert result.findings[0].where == "w"
        assert "adds to w the gradient as it is" in result.headline, result.headline
        assert "optax.masked" in result.headline + " ".join(result.advice)


@pytest.mark.parametrize(
    ("make", "factor", "verdict"),
    [(optax.adamw, 1.0, "pass"), (optax.adam, 2.0, "fail")],
    ids=["adamw", "wrong"],
)
def test_an_optimizer_of_nnx_holds_it(make, factor, verdict):
    nnx = pytest.importorskip("flax.nnx")
    rng = np.random.default_rng(0)
    batches = [tuple(np.float32(rng.normal(size=(8, n))) for n in (4, 3)) for _ in range(3)]
    module, tx = nnx.Linear(4, 3, rngs=nnx.Rngs(0)), make(1e-2)
    optimizer = nnx.Optimizer(module, tx, wrt=nnx.Param)

    def loss(module, batch):
        return jnp.mean((module(batch[0]) - batch[1]) ** 2)

    def step(module, optimizer, batch):
        grads = nnx.grad(loss)(module, batch)
        optimizer.update(module, jax.tree.map(lambda g: factor * g, grads))
        return module, optimizer

    training = Training(
        step=step, loss=loss, batches=batches, params=module, opt_state=optimizer, optimizer=tx
    )
    assert check_step(training).verdict == verdict
    assert optimizer.tx is tx


CLIP = optax.clip_by_global_norm(0.1)
INNER = {
    "in a chain": (optax.chain(CLIP, optax.adam(1e-2)), {}),
    "in windows": (optax.MultiSteps(optax.chain(CLIP, optax.adam(1e-2)), 2), {"accumulate": 2}),
    "of a part": (
        optax.multi_transform(
            {"a": optax.chain(CLIP, optax.adam(1e-2)), "b": optax.set_to_zero()},
            {"w": "a", "v": "a", "b": "b"},
        ),
        {"frozen": "b"},
    ),
}


@pytest.mark.parametrize(
    ("place", "factor", "told"),
    [
        *((place, 1, "") for place in INNER),
        ("in a chain", 2, "2 times the right gradient"),
    ],
)
def test_a_clip_inside_of_a_transformation_is_one(place, factor, told):
    tx, claims = INNER[place]
    result = check_step(lambda: made(tx, factor=factor), max_norm=0.1, **claims)
    assert result.verdict == ("fail" if told else "pass"), result.headline
    assert told in result.headline


def test_a_loss_may_be_computed_in_half_precision_and_cast_back():
    def loss(params, batch):
        both = (params, batch)
        p, (x, y) = (jax.tree.map(lambda a: jnp.asarray(a, jnp.bfloat16), t) for t in both)
        return jnp.mean((jnp.tanh(x @ p["w"] + p["b"]) - y) ** 2).astype(jnp.float32)

    result = check_step(lambda: made(optax.adam(1e-2), loss=loss))
    assert result.verdict == "pass", result.headline


@pytest.mark.parametrize("claims", [{}, {"optimizer": "adam", "lr": 1e-2}], ids=["", "claimed"])
def test_a_transformation_is_asked_twice_in_a_call(claims):
    def twice(tx, plain):
        def step(params, state, batch):
            grads = jax.grad(loss_of)(params, batch)
            for _ in range(2):
                updates, state = tx.update(grads, state, params)
                params = optax.apply_updates(params, updates)
            return params, state

        return step

    result = check_step(lambda: made(optax.adam(1e-2), twice), **claims)
    assert result.verdict == "fail"
    assert "asked for 2 updates in a call" in result.headline, result.headline
