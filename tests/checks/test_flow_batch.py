"""Samples that see one another, and the first step of an optimizer, in JAX and NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pytest_gradcheck import UsageError, check_flow

optax = pytest.importorskip("optax")

RNG = np.random.default_rng(0)
X = RNG.normal(size=(32, 8)).astype(np.float32)
Y = RNG.normal(size=(32, 3)).astype(np.float32)
BATCH = {"numpy": (X, Y), "jax": (jnp.asarray(X), jnp.asarray(Y))}


def draw(seed):
    rng = np.random.default_rng(seed)
    return {
        "two": {"w": rng.normal(size=(16, 3)).astype(np.float32) / 4},  # out of order on purpose
        "one": {"w": rng.normal(size=(8, 16)).astype(np.float32) / 2, "b": np.zeros(16, "f")},
    }


def jax_draw(seed):
    return jax.tree.map(jnp.asarray, draw(seed))


def mixed(h):
    return h - h.mean(0, keepdims=True)


def alone(h):
    return h


def jax_loss(mix):
    def loss(params, batch):
        x, y = batch
        h = jax.nn.relu(mix(x @ params["one"]["w"] + params["one"]["b"]))
        return jnp.mean((h @ params["two"]["w"] - y) ** 2)

    return loss


def numpy_loss(mix):
    """With the gradient through the mixing, which is its own transpose."""

    def loss(params, batch):
        x, y = batch
        w, v = params["one"]["w"], params["two"]["w"]
        z = mix(x @ w + params["one"]["b"])
        a = np.maximum(z, 0)
        out = a @ v
        g_out = 2 * (out - y) / out.size
        g_a = g_out @ v.T
        g_z = mix(g_a * (z > 0))
        record = [("one", z, g_z), ("one.relu", a, g_a), ("two", out, g_out)]
        one = {"w": x.T @ g_z, "b": g_z.sum(0)}
        return np.mean((out - y) ** 2), record, {"one": one, "two": {"w": a.T @ g_out}}

    return loss


LOSSES = {"jax": (jax_loss, jax_draw), "numpy": (numpy_loss, draw)}


def check(backend, mix=alone, batch=None, **more):
    loss, make = LOSSES[backend]
    return check_flow(
        None, loss(mix), batch or BATCH[backend], make=make, seed=1, backend=backend, **more
    )


def told(result):
    return [(f.code.removeprefix("flow-"), f.severity) for f in result.findings]


@pytest.mark.parametrize("backend", LOSSES)
def test_samples_that_see_one_another_are_told(backend):
    assert told(check(backend)) == []
    result = check(backend, mixed)
    assert (result.verdict, told(result)) == ("pass", [("batch-dependence", "warn")])
    assert result.findings[0].number("moved") > 0.01


def test_a_large_jax_program_is_asked_too(monkeypatch):
    monkeypatch.setattr("pytest_gradcheck.backends.jax_tape.WORK", -1.0)
    assert told(check("jax")) == []
    assert told(check("jax", mixed)) == [("batch-dependence", "warn")]


def test_normalisation_over_the_batch_is_meant():
    def make(seed):
        return jax_draw(seed) | {"BatchNorm_0": {"scale": jnp.ones(16)}}

    def loss(params, batch):
        norm = params["BatchNorm_0"]["scale"]
        return jax_loss(lambda h: mixed(h) / h.std(0) * norm)(params, batch)

    result = check_flow(None, loss, BATCH["jax"], make=make, seed=1)
    assert told(result) == [("batch-dependence", "note")]


@pytest.mark.parametrize("backend", LOSSES)
def test_arrays_that_are_no_samples_stay_as_they_are(backend):
    """Weights of classes or features change every answer when they change, and mean no fault."""
    x, y = BATCH[backend]
    scale = x[0] + 2
    loss, make = LOSSES[backend]
    run = lambda p, b: loss(alone)(p, (b[0] * b[2], b[1]))  # noqa: E731  # of three parts
    assert told(check_flow(None, run, (x, y, scale), make=make, seed=1, backend=backend)) == []


def test_a_jax_loss_that_looks_at_its_batch_is_checked_without():
    def loss(params, batch):
        assert np.asarray(batch[0]).mean() < 10  # a traced batch has no values
        return jax_loss(mixed)(params, batch)

    result = check_flow(None, loss, BATCH["jax"], make=jax_draw, seed=1)
    assert (result.verdict, told(result)) == ("pass", [])


OPTIMIZERS = {
    "jax": lambda rate: optax.adam(rate),
    "numpy": lambda rate: lambda value, gradient: -rate * np.sign(gradient),
}


@pytest.mark.parametrize("backend", LOSSES)
def test_an_optimizer_that_steps_too_far_fails(backend):
    for rate, verdict in ((1e-3, "pass"), (10.0, "fail"), (1e-12, "fail")):
        result = check(backend, optimizer=OPTIMIZERS[backend](rate))
        assert result.verdict == verdict
        assert told(result) == ([("update", "fail")] if verdict == "fail" else [])
        ratios = {row[0]: row[3] for row in result.table("parameters").rows}
        first = LOSSES[backend][1](1)["one"]["w"]
        norm = float(np.linalg.norm(np.asarray(first, np.float64)))
        assert ratios["one.w"] == pytest.approx(rate * np.sqrt(first.size) / norm, rel=1e-3)


def test_masks_and_labels_get_the_parameters_as_they_are_nested():
    moving = optax.masked(optax.adam(1e-3), {"one": {"w": True, "b": False}, "two": True})
    frozen = optax.multi_transform(
        {"train": optax.adam(1e-3), "hold": optax.set_to_zero()}, {"one": "train", "two": "hold"}
    )
    assert told(check("jax", optimizer=optax.chain(optax.clip_by_global_norm(1.0), moving))) == []
    result = check("jax", optimizer=frozen)
    assert (result.verdict, told(result)) == ("fail", [("update", "fail")])
    assert result.findings[0].where == "two.w"
    assert check("jax", optimizer=frozen, frozen="two").verdict == "pass"


def test_a_rate_that_begins_at_zero_is_no_fault():
    rate = optax.warmup_cosine_decay_schedule(0.0, 1e-3, 100, 1000)
    result = check("jax", optimizer=optax.adamw(rate))
    assert (result.verdict, told(result)) == ("pass", [("update", "warn")])


REFUSED = {
    "jax": [(3, "must be an optax transformation for JAX, not a int")],
    "numpy": [
        (lambda v, g: 0.1, "it gave float64 of shape ()"),
        (lambda v: v, "for 'two.w' it raised TypeError"),
    ],
}


@pytest.mark.parametrize("backend", LOSSES)
def test_an_optimizer_that_is_none_is_refused(backend):
    for optimizer, message in REFUSED[backend]:
        with pytest.raises(UsageError) as caught:
            check(backend, optimizer=optimizer)
        assert message in str(caught.value)


def test_an_optimizer_needs_what_it_works_on():
    asks = optax.GradientTransformationExtraArgs(
        lambda params: (), lambda updates, state, params, *, value: (updates, state)
    )
    with pytest.raises(UsageError, match="whose update needs nothing besides"):
        check("jax", optimizer=asks)
    step = OPTIMIZERS["numpy"](0.1)
    run = lambda p, b: numpy_loss(alone)(p, b)[:2]  # noqa: E731  # value and layers only
    with pytest.raises(UsageError, match="needs the gradients of the parameters"):
        check_flow(None, run, BATCH["numpy"], make=draw, backend="numpy", optimizer=step)
    with pytest.raises(UsageError, match="optimizer= needs values too"):
        check_flow({"w": X}, optimizer=step)
    assert check_flow({"w": (X, X), "v": (X, X)}, optimizer=step).verdict == "pass"
    assert check_flow({"w": (X, 1e9 * X)}, optimizer=lambda v, g: g).verdict == "fail"
