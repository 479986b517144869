"""Functional steps in JAX and NumPy: each sentence on them that no other test holds."""

import contextlib

import numpy as np
import pytest

from pytest_gradcheck import Training, check_step

jax = pytest.importorskip("jax")
optax = pytest.importorskip("optax")
jnp = jax.numpy


def codes(result, *severities):
    return {f.code for f in result.findings if f.severity in (severities or ("fail",))}


def plain(p, batch):
    return jnp.mean((jnp.tanh(batch[0] @ p["w"] + p["b"]) @ p["v"] - batch[1]) ** 2)


def training(tx, *, loss=plain, trained=None, dtype=jnp.float32, batches=None, apply=None, seed=0):
    """A step with optax, compiled; ``trained`` is the loss that it differentiates."""
    rng = np.random.default_rng(seed)
    shapes = {"w": (4, 5), "b": (5,), "v": (5, 2)}
    params = {k: jnp.asarray(rng.normal(size=s), dtype) for k, s in shapes.items()}
    given = batches or [tuple(rng.normal(size=(n, k)) for k in (4, 2)) for n in (6, 6, 3)]
    made = [tuple(jnp.asarray(x, dtype if np.ndim(x) else None) for x in b) for b in given]

    @jax.jit
    def step(p, s, batch):
        grads = jax.grad(trained or loss)(p, batch)
        updates, s = tx.update(grads, s, p)
        return (apply or optax.apply_updates)(p, updates), s

    return Training(
        step=step, loss=loss, batches=made, params=params, opt_state=tx.init(params), optimizer=tx
    )


# --- the replay of every rule of optax, claimed by name ----------------------------------------

SCHEDULE = [1e-2 * min(1.0, k / 3) for k in range(20)]
WARM = optax.linear_schedule(0.0, 1e-2, 3)
RULES = {
    "sgd": (lambda: optax.sgd(0.1), {"lr": 0.1}),
    "momentum": (lambda: optax.sgd(0.1, 0.9), {"optimizer": "sgd", "lr": 0.1, "momentum": 0.9}),
    "nesterov": (
        lambda: optax.sgd(0.1, 0.9, nesterov=True),
        {"optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "nesterov": True},
    ),
    "adam": (lambda: optax.adam(1e-2, 0.8, 0.95), {"lr": 1e-2, "betas": (0.8, 0.95)}),
    "adamw": (lambda: optax.adamw(1e-2, weight_decay=0.1), {"lr": 1e-2, "weight_decay": 0.1}),
    "scheduled": (
        lambda: optax.adamw(WARM, weight_decay=0.1),
        {"optimizer": "adamw", "schedule": SCHEDULE, "weight_decay": 0.1},
    ),
    "adamax": (lambda: optax.adamax(1e-2), {"lr": 1e-2}),
    "nadam": (lambda: optax.nadam(1e-2), {"lr": 1e-2}),
    "radam": (lambda: optax.radam(1e-2), {"lr": 1e-2}),
    "rmsprop": (lambda: optax.rmsprop(1e-2), {"lr": 1e-2, "hyper": {"alpha": 0.9}}),
    "adagrad": (lambda: optax.adagrad(1e-2), {"lr": 1e-2}),
    "adadelta": (lambda: optax.adadelta(1e-1), {"lr": 1e-1}),
    "lion": (lambda: optax.lion(1e-3, weight_decay=0.1), {"lr": 1e-3, "weight_decay": 0.1}),
    "lamb": (lambda: optax.lamb(1e-2), {"lr": 1e-2}),
    "lars": (lambda: optax.lars(1e-1), {"lr": 1e-1}),
}


RNG = np.random.default_rng(0)
ALIKE = [(RNG.normal(size=(6, 4)), RNG.normal(size=(6, 2))) for _ in range(3)]  # compiled once


def twice(params, updates):
    return jax.tree.map(lambda p, u: p + 2 * u, params, updates)


@pytest.mark.parametrize("name", RULES)
def test_rules_of_optax_are_replayed(name):
    make, claims = RULES[name]
    result = check_step(lambda: training(make(), batches=ALIKE), **{"optimizer": name, **claims})
    assert result.verdict == "pass", result.headline


@pytest.mark.parametrize("name", ["momentum", "scheduled", "radam", "adagrad", "lion", "lamb"])
def test_a_factor_on_the_updates_of_optax_is_named(name):
    make, claims = RULES[name]
    claims = {"optimizer": name, **claims}
    wrong = check_step(lambda: training(make(), batches=ALIKE, apply=twice), **claims)
    assert codes(wrong) & {"step-rate", "step-optimizer", "step-decay"}, wrong.headline


@pytest.mark.parametrize("make", [optax.adafactor, optax.adan, optax.novograd, optax.yogi])
def test_rules_that_are_not_known_are_asked_once_more(make):
    result = check_step(lambda: training(make(1e-2), batches=ALIKE))
    assert result.verdict == "pass", result.headline


def test_a_factor_on_updates_of_a_rule_that_is_not_known():
    wrong = check_step(lambda: training(optax.adan(1e-2), batches=ALIKE, apply=twice))
    assert "step-update" in codes(wrong)


# --- who is trained -------------------------------------------------------------------------------


def frozen(mask, rest=None):
    """Adam for some, nothing (or something) for the others."""
    labels = {k: "still" if k in mask else "moving" for k in ("w", "b", "v")}
    parts = {"moving": optax.adam(1e-2), "still": rest or optax.set_to_zero()}
    return optax.multi_transform(parts, labels)


def test_what_is_frozen():
    claims = {"frozen": "w"}
    right = check_step(lambda: training(frozen("w")), **claims)
    assert right.verdict == "pass", right.headline
    decayed = check_step(lambda: training(frozen("w", optax.sgd(1e-3))), **claims)
    assert "step-frozen-moved" in codes(decayed)


def detached(p, batch):
    return plain({**p, "w": jax.lax.stop_gradient(p["w"])}, batch)


def unused(p, batch):
    return plain({**p, "b": 0.0 * p["b"]}, batch)


def test_detached_is_not_unused():
    assert "step-detached" in codes(check_step(lambda: training(optax.adam(1e-2), loss=detached)))
    result = check_step(lambda: training(optax.adam(1e-2), loss=unused))
    assert (result.verdict, codes(result, "warn")) == ("pass", {"step-unused"})


def test_a_factor_at_zero_has_no_gradient_for_the_other_at_first():
    def low_rank(p, batch):
        return jnp.mean((batch[0] @ p["w"] @ (0 * p["b"][:, None] + p["v"]) - batch[1]) ** 2)

    def start():
        made = training(optax.sgd(0.1), loss=low_rank)
        params = {**made.params, "v": jnp.zeros((5, 2))}
        return Training(**{**vars(made), "params": params})

    result = check_step(start, optimizer="sgd", lr=0.1)
    assert result.verdict == "pass", result.headline


def test_updates_lost_in_bfloat16():
    lost = check_step(
        lambda: training(optax.adam(1e-6), dtype=jnp.bfloat16, batches=ALIKE),
        optimizer="adam",
        lr=1e-6,
    )
    assert "step-lost-updates" in codes(lost, "fail", "warn"), lost.headline


# --- direction and length ------------------------------------------------------------------------


def test_uphill_and_too_long():
    def upwards(params, updates):
        return jax.tree.map(lambda p, u: p - u, params, updates)

    result = check_step(lambda: training(optax.sgd(0.01), apply=upwards))
    assert codes(result) & {"step-uphill", "step-update"}
    long = check_step(lambda: training(optax.sgd(30.0)), optimizer="sgd", lr=30.0)
    assert (long.verdict, "step-too-long" in codes(long, "warn")) == ("pass", True)


@pytest.mark.parametrize("rate", [5.0, 10.0, 30.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_training_that_explodes_is_no_wrong_gradient(rate, seed):
    """Saturated, a gradient is rounding: another program has another one."""
    result = check_step(lambda: training(optax.sgd(rate), seed=seed), optimizer="sgd", lr=rate)
    assert result.verdict == "pass", result.headline


def test_a_gradient_of_another_loss():
    def scaled(p, batch):
        return 1024.0 * plain(p, batch)

    result = check_step(lambda: training(optax.adam(1e-2), trained=scaled), loss_scale=1024.0)
    assert codes(result) == {"step-gradient-scale"}, result.headline
    assert "1024" in result.headline


# --- batches, windows, random numbers ------------------------------------------------------------


def test_a_bad_batch_in_the_middle():
    safe = optax.apply_if_finite(optax.adam(1e-2), 10)
    result = check_step(lambda: training(safe, batches=ALIKE), nonfinite="skip")
    assert result.verdict == "pass", result.headline
    spoilt = check_step(lambda: training(optax.adam(1e-2), batches=ALIKE), nonfinite="skip")
    assert "step-nonfinite" in codes(spoilt)


def dropped(p, batch):
    kept = jax.random.bernoulli(batch[2], 0.8, (5,))
    return plain({**p, "b": p["b"] * kept, "v": p["v"] * kept[:, None]}, batch[:2])


@pytest.mark.parametrize("typed", [True, False])
@pytest.mark.parametrize("window", [1, 2])
def test_random_numbers_from_a_key_in_the_batch(typed, window):
    make = jax.random.key if typed else jax.random.PRNGKey

    def build():
        rng = np.random.default_rng(0)
        tx = optax.MultiSteps(optax.adam(1e-2), window) if window > 1 else optax.adam(1e-2)
        made = training(tx, loss=dropped, batches=[tuple(np.zeros((6, k)) for k in (4, 2))])
        batches = [
            (*(jnp.asarray(rng.normal(size=(6, k)), jnp.float32) for k in (4, 2)), make(k_))
            for k_ in range(4)
        ]
        return Training(**{**vars(made), "batches": batches})

    result = check_step(build, accumulate=window)
    assert result.verdict == "pass", result.headline


@pytest.mark.parametrize("kind", ["numpy", "jax"])
def test_a_batch_that_is_written_into(kind):
    if kind == "jax":
        made = training(optax.sgd(0.1))
        arrays = [tuple(np.array(x) for x in b) for b in made.batches]
    else:
        rng = np.random.default_rng(0)
        arrays = [tuple(rng.normal(size=(6, k)) for k in (4, 2)) for _ in range(3)]

    def loss(p, batch):
        return ((batch[0] @ p["w"] - batch[1]) ** 2).mean()

    def step(p, s, batch):
        batch[0][:] = batch[0] - batch[0].mean()
        grads = 2 * batch[0].T @ (batch[0] @ p["w"] - batch[1]) / batch[1].size
        return {"w": p["w"] - 0.1 * grads}, s

    start = np.ones((4, 2)) if kind == "numpy" else jnp.ones((4, 2))
    writing = Training(step=step, loss=loss, batches=arrays, params={"w": start}, opt_state=())
    result = check_step(lambda: writing, optimizer="sgd", lr=0.1)
    assert "step-batch-changed" in codes(result), result.headline


@pytest.mark.parametrize("wide", [False, True])
def test_float64_mode(wide):
    enable = getattr(jax, "enable_x64", None)
    with enable(True) if wide and enable is not None else contextlib.nullcontext():
        dtype = jnp.float64 if wide else jnp.float32
        result = check_step(
            lambda: training(optax.adamw(1e-2), dtype=dtype), optimizer="adamw", lr=1e-2,
            weight_decay=1e-4,
        )  # fmt: skip
    assert result.verdict == "pass", result.headline
    assert result.context.dtype == ("float64" if wide else "float32")
