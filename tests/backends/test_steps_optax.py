"""Transformations of optax that want more than gradients, and those with nothing to do."""

import dataclasses
import functools
import types

import numpy as np
import pytest

from pytest_gradcheck import Training, check_step

jax = pytest.importorskip("jax")
optax = pytest.importorskip("optax")
jnp = jax.numpy


def codes(result, *severities):
    return {f.code for f in result.findings if f.severity in (severities or ("fail",))}


def training(tx, extra=(), *, fault="", is_compiled=True, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    params = {"w": jnp.asarray(rng.normal(size=(4, 3)), dtype), "b": jnp.zeros(3, dtype)}
    batches = [tuple(jnp.asarray(rng.normal(size=(6, n)), dtype) for n in (4, 3)) for _ in range(3)]

    def loss(p, batch):
        return jnp.mean((jnp.tanh(batch[0] @ p["w"] + p["b"]) - batch[1]) ** 2)

    def step(p, s, batch):
        def of(q):
            return loss(q, batch)

        value, grads = jax.value_and_grad(loss)(p, batch)
        if fault == "negative":
            grads = jax.tree.map(jnp.negative, grads)
        known = {"value": value, "grad": grads, "value_fn": of}
        updates, s = tx.update(grads, s, p, **{name: known[name] for name in extra})
        if fault == "twice":
            updates = jax.tree.map(lambda u: 2 * u, updates)
        return optax.apply_updates(p, updates), s, value

    return Training(
        step=jax.jit(step) if is_compiled else step,
        loss=loss,
        batches=batches,
        params=params,
        opt_state=tx.init(params),
        optimizer=tx,
    )


def plateau():
    return optax.chain(optax.adam(1e-2), optax.contrib.reduce_on_plateau(patience=1))


SEARCH = ("value", "grad", "value_fn")


def searching():
    return optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(5))


@pytest.mark.parametrize(
    ("make", "extra", "is_compiled"),
    [
        (plateau, ("value",), True),
        (plateau, ("value",), False),
        (optax.lbfgs, SEARCH, True),
        (searching, SEARCH, True),
        (searching, SEARCH, False),
        (lambda: optax.polyak_sgd(1.0), ("value",), False),
        (lambda: optax.inject_hyperparams(optax.adamw)(1e-2), (), False),
    ],
)
def test_transformations_that_want_more_than_gradients(make, extra, is_compiled):
    result = check_step(lambda: training(make(), extra, is_compiled=is_compiled))
    assert result.verdict == "pass", result.headline
    assert all(row[3] == pytest.approx(row[2], rel=1e-5) for row in result.table("updates").rows)
    # What a line search asks for cannot be asked again, and that is said.
    has_function = "value_fn" in extra
    assert ("step-not-replayed" in codes(result, "note")) == has_function


def test_a_fault_beside_a_line_search_or_a_plateau():
    negative = check_step(lambda: training(optax.lbfgs(), SEARCH, fault="negative"))
    assert "step-gradient-sign" in codes(negative), negative.headline
    twice = check_step(lambda: training(plateau(), ("value",), fault="twice"))
    assert codes(twice) >= {"step-update"}, twice.headline


@pytest.mark.parametrize(("make", "extra"), [(plateau, ("value",)), (optax.lbfgs, SEARCH)])
def test_a_clip_inside_is_known_and_one_that_is_missing_too(make, extra):
    tx = optax.chain(optax.clip_by_global_norm(0.1), make())
    result = check_step(lambda: training(tx, extra), max_norm=0.1)
    assert result.verdict == "pass", result.headline
    without = check_step(lambda: training(make(), extra), max_norm=0.1)
    assert codes(without) == {"step-not-clipped"}, without.headline


# --- nothing to do --------------------------------------------------------------------------------


def normalised():
    """Gradient descent along the direction of the gradient, which zero has not."""
    return optax.stateless(lambda g, _: jax.tree.map(lambda x: -0.1 * x / optax.global_norm(g), g))


IDLE = {
    "normalised": (normalised, jnp.float32, False),
    "adam without eps": (lambda: optax.adam(1e-2, eps=0.0), jnp.float32, False),
    "adam": (lambda: optax.adam(1e-2), jnp.float32, True),
    "adamw in bfloat16": (lambda: optax.adamw(1e-2), jnp.bfloat16, True),
    "eps that is 0 in float16": (lambda: optax.adam(1e-2, eps=1e-9), jnp.float16, False),
    "eps for float16": (lambda: optax.adam(1e-2, eps=1e-3), jnp.float16, True),
    "lamb": (lambda: optax.lamb(1e-2), jnp.float32, True),
}


@pytest.mark.parametrize("name", IDLE)
def test_zero_gradients_from_fresh_state_stay_finite(name):
    """A warning where the rule of a transformation is not known: zero over zero may be its own."""
    make, dtype, is_right = IDLE[name]
    result = check_step(lambda: training(make(), dtype=dtype))
    told = {f.code: f.severity for f in result.findings}
    assert told.get("step-idle") == (None if is_right else "warn"), result.headline


def test_arrays_of_the_check_lie_where_those_of_the_step_lie():
    """Else each program would be compiled once more, for arrays that may lie anywhere."""
    steps = pytest.importorskip("pytest_gradcheck.backends.jax_steps")
    loop = steps.loop(training(optax.adam(1e-2)))
    loop.call(loop._training.batches[0])
    own = jax.tree.leaves(loop._params)
    ours = jax.tree.leaves(loop._built(loop._arrays(loop._params)))
    assert [x.committed for x in ours] == [x.committed for x in own]


def test_the_first_state_is_that_of_the_transformation():
    def without():
        tx = optax.adam(1e-2)
        rng = np.random.default_rng(0)

        def loss(params, batch):
            return jnp.mean((jnp.tanh(batch @ params["w"]) - 1) ** 2)

        def step(params, state, batch):
            updates, state = tx.update(jax.grad(loss)(params, batch), state, params)
            return optax.apply_updates(params, updates), state

        batches = [rng.normal(size=(8, 4)) for _ in range(3)]
        params = {"w": jnp.full((4, 2), 0.1)}
        return Training(step=step, loss=loss, batches=batches, params=params, optimizer=tx)

    result = check_step(without)
    assert (result.verdict, result.headline) == ("pass", result.headline)


def test_a_part_of_a_tensor_without_gradient_is_seen():
    """Units that are held back leave columns of a weight without gradient, and right elsewhere."""

    def made(is_held):
        rng = np.random.default_rng(0)
        sizes = {"w": (4, 8), "v": (8, 1)}
        params = {k: jnp.asarray(rng.normal(size=n), jnp.float32) for k, n in sizes.items()}
        tx = optax.adam(1e-2)

        def loss(p, batch):
            h = jnp.tanh(batch[0] @ p["w"])
            if is_held:
                h = jnp.concatenate([jax.lax.stop_gradient(h[:, :4]), h[:, 4:]], 1)
            return jnp.mean((h @ p["v"] - batch[1]) ** 2)

        @jax.jit
        def step(p, s, batch):
            updates, s = tx.update(jax.grad(loss)(p, batch), s, p)
            return optax.apply_updates(p, updates), s

        batches = [tuple(np.float32(rng.normal(size=(8, n))) for n in (4, 1)) for _ in range(3)]
        return Training(
            step=step,
            loss=loss,
            batches=batches,
            params=params,
            opt_state=tx.init(params),
            optimizer=tx,
        )

    result = check_step(lambda: made(True))
    assert codes(result) == {"step-stopped-gradient"}, result.headline
    assert "0 in a part of w" in result.headline
    assert check_step(lambda: made(True), semi_gradient="why").verdict == "pass"
    assert check_step(lambda: made(False)).verdict == "pass"


# --- where a step holds its transformation --------------------------------------------------------


def scaled_step(tx, p, s, batch, factor=8.0):
    """A sum where the loss is a mean, seen only where optax is given the gradient."""
    grads = jax.tree.map(lambda g: factor * g, jax.grad(tanh_loss)(p, batch))
    updates, s = tx.update(grads, s, p)
    return optax.apply_updates(p, updates), s


def tanh_loss(p, batch):
    return jnp.mean((jnp.tanh(batch[0] @ p["w"]) - batch[1]) ** 2)


class Trainer:
    """A callable that keeps its transformation in a dictionary."""

    def __init__(self, tx):
        self.cfg = {"opt": tx}

    def __call__(self, p, s, batch):
        return scaled_step(self.cfg["opt"], p, s, batch)


def by_default(tx):
    def step(p, s, batch, t=tx):
        return scaled_step(t, p, s, batch)

    return step


def by_keyword(tx):
    def step(p, s, batch, *, t=tx):
        return scaled_step(t, p, s, batch)

    return step


def by_compiled_update(tx):
    made = types.SimpleNamespace(update=jax.jit(tx.update))
    return lambda p, s, batch: scaled_step(made, p, s, batch)


HOLDERS = {
    "partial": lambda tx: functools.partial(scaled_step, tx),
    "compiled partial": lambda tx: jax.jit(functools.partial(scaled_step, tx)),
    "default": by_default,
    "keyword": by_keyword,
    "object": Trainer,
    "compiled update": by_compiled_update,
}


def held_training(hold, tx=None):
    tx = tx or optax.adam(1e-2)
    rng = np.random.default_rng(0)
    params = {"w": jnp.asarray(rng.normal(size=(4, 3)), jnp.float32)}
    batches = [tuple(np.float32(rng.normal(size=(8, n))) for n in (4, 3)) for _ in range(3)]
    return Training(
        step=hold(tx),
        loss=tanh_loss,
        batches=batches,
        params=params,
        opt_state=tx.init(params),
        optimizer=tx,
    )


@pytest.mark.parametrize("name", HOLDERS)
def test_a_transformation_is_found_where_the_step_holds_it(name):
    result = check_step(lambda: held_training(HOLDERS[name]))
    assert "step-gradient-scale" in codes(result), result.headline
    assert "8 times" in result.headline


def test_what_holds_it_is_left_as_it_was():
    tx = optax.adam(1e-2)
    for name in ("partial", "default", "keyword", "object"):
        step = HOLDERS[name](tx)
        check_step(lambda step=step: held_training(lambda _: step, tx))
        kept = {
            "partial": lambda s: s.args[0],
            "default": lambda s: s.__defaults__[0],
            "keyword": lambda s: s.__kwdefaults__["t"],
            "object": lambda s: s.cfg["opt"],
        }[name](step)
        assert kept is tx


@pytest.mark.parametrize("factor", [1.0, 8.0])
def test_a_train_state_carries_its_transformation_along(factor):
    state_of = pytest.importorskip("flax.training.train_state").TrainState.create

    def training():
        plain = held_training(lambda tx: None)
        state = state_of(apply_fn=None, params=plain.params, tx=plain.optimizer)

        @jax.jit
        def step(p, s, batch):
            grads = jax.tree.map(lambda g: factor * g, jax.grad(tanh_loss)(s.params, batch))
            s = s.apply_gradients(grads=grads)
            return s.params, s

        return dataclasses.replace(plain, step=step, opt_state=state)

    result = check_step(training)
    assert (result.verdict == "pass") == (factor == 1.0), result.headline
    assert ("step-gradient-scale" in codes(result)) == (factor != 1.0)


def test_a_transformation_that_is_never_asked_leaves_the_verdict_open():
    def hidden(tx):
        other = optax.adam(1e-2)
        return lambda p, s, batch: scaled_step(other, p, s, batch)

    result = check_step(lambda: held_training(hidden), max_norm=0.01)
    assert result.verdict == "undecided"
    assert codes(result) == {"step-not-seen"}
    claimed = check_step(lambda: held_training(hidden), optimizer="adam", lr=1e-2)
    assert "step-gradient-scale" in codes(claimed)


def test_what_was_compiled_before_is_compiled_again():
    tx = optax.adam(1e-2)
    step = jax.jit(functools.partial(scaled_step, tx))
    for _ in range(2):
        result = check_step(lambda: held_training(lambda _: step, tx))
        assert "step-gradient-scale" in codes(result), result.headline
