"""Functional steps: how JAX and NumPy trainings are run, seen and left alone."""

import numpy as np
import pytest

from pytest_gradcheck import Training, UsageError, check_step
from pytest_gradcheck.backends.loading import framework, load

RATE = {"optimizer": "sgd", "lr": 0.1, "momentum": 0.9}


def codes(result):
    return {f.code for f in result.findings if f.severity == "fail"}


def training(change=None, **parts):
    """Momentum by hand on a linear model, in place, with one thing changed."""
    rng = np.random.default_rng(0)
    params = {"w": rng.normal(size=(4, 3)), "b": np.zeros(3), "n": 7}
    state = {"w": np.zeros((4, 3)), "b": np.zeros(3)}
    batches = [(rng.normal(size=(n, 4)), rng.normal(size=(n, 3))) for n in (6, 6, 4)]

    def loss(p, batch):
        return np.mean((batch[0] @ p["w"] + p["b"] - batch[1]) ** 2)

    def grad(p, batch):
        r = 2 * (batch[0] @ p["w"] + p["b"] - batch[1]) / batch[1].size
        return {"w": batch[0].T @ r, "b": r.sum(axis=0), "n": 7}

    def step(p, s, batch):
        g = grad(p, batch)
        for k in ("w", "b"):
            s[k] *= 0.9
            s[k] += g[k]
            p[k] -= 0.1 * s[k]
        return None if change == "returns nothing" else (p, s, "something else")

    made = {"step": step, "loss": loss, "batches": batches, "params": params, "opt_state": state}
    if change == "own gradient":
        made["grad"] = grad
    return Training(**made | parts)


@pytest.mark.parametrize("change", [None, "returns nothing", "own gradient"])
def test_forms_of_a_numpy_step(change):
    result = check_step(lambda: training(change), **RATE)
    assert result.verdict == "pass", result.headline


def test_a_ready_numpy_training_is_not_written_into():
    made = training()
    before = {k: np.array(v) for k, v in made.params.items()}
    assert check_step(made, **RATE).verdict == "pass"
    assert all(np.array_equal(v, made.params[k]) for k, v in before.items())
    assert not made.opt_state["w"].any()


def test_what_a_step_must_return():
    assert "step-raised" in codes(check_step(training(step=lambda p, s, b: p), **RATE))
    shapes = training(step=lambda p, s, b: ({**p, "w": p["w"].T}, s))
    assert "step-raised" in codes(check_step(shapes, **RATE))


def test_too_many_parameters_for_differences(monkeypatch):
    monkeypatch.setattr("pytest_gradcheck.backends.numpy_differences.MOST", 10)
    with pytest.raises(UsageError, match=r"Training\.grad"):
        check_step(training(), **RATE)
    with pytest.raises(UsageError, match=r"params .* is missing"):
        load("numpy", training(params=None))
    with pytest.raises(UsageError, match="no array"):
        load("numpy", training(params={"n": 1}))


def test_a_gradient_of_ones_own_that_is_wrong():
    def wrong(p, batch):
        r = (batch[0] @ p["w"] + p["b"] - batch[1]) / batch[1].size
        return {"w": batch[0].T @ r, "b": r.sum(axis=0), "n": 7}

    result = check_step(lambda: training(grad=wrong), **RATE)
    assert "step-slope" in codes(result)


@pytest.mark.parametrize("is_hidden", [True, False])
def test_a_state_that_the_step_hides(is_hidden):
    """A momentum in a closure is right until the training is saved and loaded."""
    made, hidden = training(), {"w": np.zeros((4, 3)), "b": np.zeros(3)}

    def step(p, s, batch):
        p, s, _ = made.step(p, hidden if is_hidden else s, batch)
        return p, s

    result = check_step(training(step=step), **RATE)
    assert result.verdict == "pass", result.headline
    assert ("step-hidden-state" in {f.code for f in result.findings}) == is_hidden
    assert not hidden["w"].any()  # and the closure is as it was


def test_frameworks_are_found():
    assert framework(training()) == "numpy"
    jnp = pytest.importorskip("jax.numpy")
    assert framework(training(params={"w": jnp.zeros(3)})) == "jax"
    torch = pytest.importorskip("torch")
    assert framework(training(model=torch.nn.Linear(2, 2))) == "torch"


# --- JAX --------------------------------------------------------------------------------------


def jax_training(tx, *, is_compiled=True, donated=(), apply=None):
    jax = pytest.importorskip("jax")
    jnp = jax.numpy
    optax = pytest.importorskip("optax")
    rng = np.random.default_rng(0)
    params = {"w": jnp.asarray(rng.normal(size=(4, 3)), jnp.float32), "b": jnp.zeros(3)}
    batches = [tuple(np.float32(rng.normal(size=(6, n))) for n in (4, 3)) for _ in range(3)]

    def loss(p, batch):
        return jnp.mean((jnp.tanh(batch[0] @ p["w"] + p["b"]) - batch[1]) ** 2)

    def step(p, s, batch):
        value, grads = jax.value_and_grad(loss)(p, batch)
        updates, s = tx.update(grads, s, p)
        return (apply or optax.apply_updates)(p, updates), s, value

    made = jax.jit(step, donate_argnums=donated) if is_compiled else step
    return Training(
        step=made,
        loss=loss,
        batches=batches,
        params=params,
        opt_state=tx.init(params),
        optimizer=tx,
    )


def adam():
    return pytest.importorskip("optax").adam(1e-2)


@pytest.mark.parametrize("is_compiled", [True, False])
def test_what_optax_is_given_is_seen(is_compiled):
    result = check_step(lambda: jax_training(adam(), is_compiled=is_compiled))
    assert (result.verdict, result.context.backend) == ("pass", "jax")
    assert all(row[3] == pytest.approx(row[2]) for row in result.table("updates").rows)


def test_donated_inputs_and_a_training_that_is_used_again():
    tx = adam()
    made = jax_training(tx, donated=(0, 1))
    assert check_step(made).verdict == "pass"
    assert np.isfinite(np.asarray(made.params["w"])).all()
    assert check_step(made).verdict == "pass"
    # The step that was traced with the reporting transformation goes on as before.
    params, *_ = made.step(made.params, made.opt_state, made.batches[0])
    assert np.isfinite(np.asarray(params["w"])).all()


def test_an_update_that_is_not_what_optax_says():
    jax = pytest.importorskip("jax")

    def twice(params, updates):
        return jax.tree.map(lambda p, u: p + 2 * u, params, updates)

    result = check_step(lambda: jax_training(adam(), apply=twice))
    assert codes(result) >= {"step-update"}
    assert "2 times" in result.headline


def test_a_transformation_out_of_reach_is_checked_as_claimed():
    optax = pytest.importorskip("optax")
    hidden = optax.adam(1e-2)
    made = jax_training(optax.adam(1e-2))
    shown = Training(**{**vars(made), "optimizer": hidden})
    result = check_step(shown, optimizer="adam", lr=1e-2)
    assert result.verdict == "pass", result.headline


def test_a_warm_up_from_0_over_windows_of_optax():
    optax = pytest.importorskip("optax")
    rates = optax.linear_schedule(0.0, 1e-2, 3)
    tx = optax.MultiSteps(optax.adamw(rates, weight_decay=0.1), 2)
    claims = {"schedule": lambda t: 1e-2 * min(1.0, t / 3), "weight_decay": 0.1}
    result = check_step(lambda: jax_training(tx), optimizer="adamw", accumulate=2, **claims)
    assert result.verdict == "pass", result.headline


def test_a_clip_inside_of_optax_is_known_for_rules_without_scale():
    optax = pytest.importorskip("optax")
    tx = optax.chain(optax.clip_by_global_norm(0.1), optax.lars(0.1, weight_decay=0.1))
    result = check_step(lambda: jax_training(tx), max_norm=0.1)
    assert result.verdict == "pass", result.headline
    plain = check_step(lambda: jax_training(optax.adam(1e-2)), max_norm=0.1)
    assert codes(plain) == {"step-not-clipped"}
