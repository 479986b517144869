"""Batches that a step leaves out on purpose: a spike of the loss, a gradient that is too long."""

import importlib

import numpy as np
import pytest

from pytest_gradcheck import Training, check_step

pytest.importorskip("torch")
jax = pytest.importorskip("jax")
optax = pytest.importorskip("optax")
loop = importlib.import_module("loops").loop
jnp = jax.numpy

SPIKE = "(loss(batch) * 1).backward(); value.item() > 0.9 or opt.step()"
LEFT = {
    "zeroed at the start": "opt.zero_grad(); " + SPIKE,
    "thrown away at once": """
loss(batch).backward()
if value.item() <= 0.9: opt.step()
opt.zero_grad()
""",
    "set to None": "[setattr(p, 'grad', None) for p in params]; " + SPIKE,
    "after a clip": """
opt.zero_grad(); loss(batch).backward(); size = clip(params, 0.1)
value.item() > 0.9 or opt.step()
""",
}
ACCUMULATED = """
(loss(batch) / 2).backward()
k = memory.get('k', 0) + 1
if value.item() > 1.5: opt.zero_grad(); k = 0
if k == 2: opt.step(); opt.zero_grad(); k = 0
memory['k'] = k
"""


def told(result):
    return {f.code: f.severity for f in result.findings}


@pytest.mark.parametrize("body", LEFT.values(), ids=LEFT)
@pytest.mark.parametrize("claims", [{}, {"accumulate": 1}], ids=["plain", "accumulate=1"])
def test_a_spike_is_left_out(body, claims):
    result = loop(body, **claims)
    assert result.verdict == "pass", result.headline
    assert told(result)["step-batch-skipped"] == "note"
    assert "step-window" not in told(result)


def test_most_batches_are_left_out():
    body = "opt.zero_grad(); (loss(batch) * 1).backward(); value.item() > 0.55 or opt.step()"
    result = loop(body, sizes=(8, 5, 8, 3, 8))
    assert result.verdict == "pass", result.headline
    assert told(result)["step-batch-skipped"] == "note"


@pytest.mark.parametrize(
    "kept", [(8,), (5,), (3,), (8, 7), (5, 3), (7, 3)], ids=lambda kept: f"those of {kept}"
)
def test_the_same_batches_in_every_epoch(kept):
    body = f"opt.zero_grad(); (loss(batch) * 1).backward(); len(x) not in {kept} or opt.step()"
    result = loop(body, sizes=(8, 5, 7, 3))
    assert result.verdict == "pass", result.headline
    assert "step-batch-skipped" in told(result)


@pytest.mark.parametrize("count", [2, 4])
def test_micro_batches_that_are_lost_are_not_left_out(count):
    body = f"""
k = memory['k'] = memory.get('k', 0) + 1
opt.zero_grad(); (loss(batch) / {count}).backward()
if k % {count} == 0: opt.step()
"""
    result = loop(body, sizes=(8, 5, 7, 3))
    assert result.findings[0].code in ("step-gradient-dropped", "step-gradient-scale")
    assert result.verdict == "fail"


def test_a_scheduler_that_counts_calls():
    assert loop(LEFT["zeroed at the start"] + "; sched.step()").verdict == "pass"
    twice = loop(LEFT["zeroed at the start"] + "; sched.step(); sched.step()")
    assert twice.findings[0].code == "step-scheduler"


def test_a_window_with_a_spike_begins_anew():
    result = loop(ACCUMULATED, accumulate=2, sizes=(8,) * 7)
    assert result.verdict == "pass", result.headline
    assert told(result)["step-batch-skipped"] == "note"


def test_a_spike_that_gets_into_the_next_update():
    result = loop(
        "loss(batch).backward()\nif value.item() <= 0.9: opt.step(); opt.zero_grad()",
        sizes=(8,) * 7,
    )
    assert "on top of those of a call that made no update" in result.headline
    assert result.findings[0].code == "step-gradient-accumulates"


@pytest.mark.parametrize("claims", [{}, {"accumulate": 2}])
@pytest.mark.parametrize("sizes", [(8, 8, 8, 8), (8, 5, 3)])
def test_every_window_loses_its_first_batch(claims, sizes):
    result = loop(
        "opt.zero_grad(); (loss(batch) / 2).backward(); number % 2 or opt.step()",
        sizes=sizes,
        **claims,
    )
    assert result.findings[0].code == "step-gradient-dropped"


EVERY_SECOND = "opt.zero_grad(); loss(batch).backward(); number % 2 or opt.step()"


@pytest.mark.parametrize("sizes", [(8, 8, 8, 8), (8, 5, 3)])
def test_batches_that_are_left_out_of_every_update_on_purpose(sizes):
    meant = loop(EVERY_SECOND, sizes=sizes, accumulate=1)
    assert meant.verdict == "pass", meant.headline
    assert told(meant)["step-batch-skipped"] == "warn"
    plain = loop(EVERY_SECOND, sizes=sizes)
    assert plain.findings[0].code == "step-gradient-dropped"
    assert "on purpose, claim accumulate=1" in plain.advice[0]
    gathered = loop(
        "loss(batch).backward(); number % 2 or (opt.step(), opt.zero_grad())",
        sizes=sizes,
        accumulate=1,
    )
    assert gathered.verdict == "fail", gathered.headline


def loss_of(params, batch):
    return jnp.mean((jnp.tanh(batch[0] @ params["w"] + params["b"]) - batch[1]) ** 2)


def returning(params, state, new, is_fine):
    return new if is_fine else (params, state)


def selecting(params, state, new, is_fine):
    return jax.tree.map(lambda a, b: jnp.where(is_fine, a, b), new, (params, state))


def functional(left, factor=1.0):
    rng = np.random.default_rng(0)
    params = {"w": jnp.asarray(rng.normal(size=(4, 3)), jnp.float32), "b": jnp.ones(3)}
    tx = optax.adamw(1e-2, weight_decay=0.1)
    batches = [tuple(np.float32(rng.normal(size=(8, n))) for n in (4, 3)) for _ in range(4)]

    def step(params, state, batch):
        value, grads = jax.value_and_grad(loss_of)(params, batch)
        grads = jax.tree.map(lambda g: factor * g, grads)
        updates, new = tx.update(grads, state, params)
        return left(params, state, (optax.apply_updates(params, updates), new), value < 1.8)

    state = tx.init(params)
    return Training(
        step=step, loss=loss_of, batches=batches, params=params, opt_state=state, optimizer=tx
    )


@pytest.mark.parametrize("left", [returning, selecting])
@pytest.mark.parametrize(
    "claims", [{}, {"optimizer": "adamw", "lr": 1e-2, "weight_decay": 0.1}], ids=["tx", "claimed"]
)
def test_a_functional_step_returns_what_it_was_given(left, claims):
    result = check_step(lambda: functional(left), **claims)
    assert result.verdict == "pass", result.headline
    assert told(result) == {"step-batch-skipped": "note", "step-sharpness": "note"}
    assert check_step(lambda: functional(left, 2.0), **claims).verdict == "fail"


def test_a_numpy_step_leaves_out_a_batch():
    def training(factor=1.0, limit=4.0):
        rng = np.random.default_rng(0)
        params = {"w": rng.normal(size=(4, 3))}
        state = {"v": np.zeros((4, 3)), "t": 0}
        batches = [(rng.normal(size=(8, 4)), rng.normal(size=(8, 3))) for _ in range(4)]

        def loss(params, batch):
            return np.mean((batch[0] @ params["w"] - batch[1]) ** 2)

        def step(params, state, batch):
            if loss(params, batch) > limit:
                return params, state
            x, y = batch
            g = factor * 2 * x.T @ (x @ params["w"] - y) / y.size
            state = {"v": 0.9 * state["v"] + g, "t": state["t"] + 1}
            return {"w": params["w"] - 0.01 * state["v"]}, state

        return Training(step=step, loss=loss, batches=batches, params=params, opt_state=state)

    claims = {"optimizer": "sgd", "lr": 0.01, "momentum": 0.9}
    result = check_step(training, **claims)
    assert result.verdict == "pass", result.headline
    assert told(result)["step-batch-skipped"] == "note"
    assert check_step(lambda: training(2.0), **claims).verdict == "fail"


def numpy_loss(params, batch):
    return float(np.mean((batch[0] @ params["w"] - batch[1]) ** 2))


def numpy_gradient(params, batch):
    x, y = batch
    return {"w": x.T @ (x @ params["w"] - y) * 2 / y.size}


def gathering_numpy(params, state, batch, factor):
    if numpy_loss(params, batch) > 15:
        return params, state
    total = state["w"] + factor * numpy_gradient(params, batch)["w"] / 2
    if state["n"] == 1:
        return {"w": params["w"] - 0.1 * total}, {"w": 0 * total, "n": 0}
    return params, {"w": total, "n": 1}


def gathering_jax(tx, is_own):
    def step(params, state, batch, factor):
        value, grads = jax.value_and_grad(linear_loss)(params, batch)
        inner, total, n = state
        if is_own:
            grads = jax.tree.map(lambda g: factor * g, grads)
            updates, inner = tx.update(grads, inner, params)
            new = optax.apply_updates(params, updates), (inner, total, n)
            return selecting(params, state, new, value < 15)
        if value > 15:
            return params, state
        total = jax.tree.map(lambda a, g: a + factor * g / 2, total, grads)
        if n == 1:
            updates, inner = tx.update(total, inner, params)
            zero = jax.tree.map(jnp.zeros_like, total)
            return optax.apply_updates(params, updates), (inner, zero, 0)
        return params, (inner, total, 1)

    return step


def linear_loss(params, batch):
    return jnp.mean((batch[0] @ params["w"] - batch[1]) ** 2)


def gathering(kind, spikes, factor):
    """A training that gathers two batches in its state, and leaves out those that spike."""
    rng = np.random.default_rng(0)
    dtype = np.float64 if kind == "numpy" else np.float32
    batches = [
        (rng.normal(size=(8, 4)).astype(dtype), 10.0 ** (k in spikes) * np.ones((8, 3), dtype))
        for k in range(5)
    ]
    w = rng.normal(size=(4, 3)).astype(dtype)
    if kind == "numpy":
        return Training(
            step=lambda p, s, batch: gathering_numpy(p, s, batch, factor),
            loss=numpy_loss,
            grad=numpy_gradient,
            batches=batches,
            params={"w": w},
            opt_state={"w": np.zeros((4, 3)), "n": 0},
        )
    params, inner = {"w": jnp.asarray(w)}, optax.adam(1e-2)
    many = optax.MultiSteps(inner, 2)
    tx = optax.GradientTransformation(many.init, many.update) if kind == "optax" else inner
    step = gathering_jax(tx, kind == "optax")
    return Training(
        step=lambda p, s, batch: step(p, s, batch, factor),
        loss=linear_loss,
        batches=batches,
        params=params,
        opt_state=(tx.init(params), jax.tree.map(jnp.zeros_like, params), 0),
        optimizer=tx,
    )


SPIKES = [(0,), (1,), (2,), (0, 1), (1, 2), (0, 2)]


@pytest.mark.parametrize(
    ("kind", "spikes"),
    [
        *(("numpy", spikes) for spikes in SPIKES),
        *(("jax", spikes) for spikes in ((0,), (1, 2))),
        ("optax", (0,)),  # every call is compiled anew
    ],
)
def test_a_functional_window_without_the_batches_that_spike(kind, spikes):
    claims = {"optimizer": "sgd", "lr": 0.1} if kind == "numpy" else {}
    right = check_step(lambda: gathering(kind, spikes, 1.0), accumulate=2, **claims)
    assert right.verdict == "pass", right.headline
    assert "step-batch-skipped" in told(right)
    wrong = check_step(lambda: gathering(kind, spikes, 2.0), accumulate=2, **claims)
    assert wrong.findings[0].code == "step-gradient-sum", wrong.headline


def applied_numpy(params, gradient, inner):
    return {"w": params["w"] - 0.1 * gradient}, inner


def applied_jax(params, gradient, inner):
    updates, inner = SGD.update({"w": gradient}, inner, params)
    return optax.apply_updates(params, updates), inner


SGD = optax.sgd(0.1)
APPLIED = {"numpy": applied_numpy, "jax": applied_jax}
LOSSES = {"numpy": numpy_loss, "jax": linear_loss}


def counting(kind, is_left, mean=True):
    """A training that counts all its calls, and adds nothing of some of them to its window."""
    rng = np.random.default_rng(0)
    dtype = np.float64 if kind == "numpy" else np.float32
    batches = [(rng.normal(size=(8, 4)).astype(dtype), np.ones((8, 3), dtype)) for _ in range(5)]
    applied = APPLIED[kind]

    def step(params, state, batch):
        calls, total, count, inner = state
        if not is_left(calls + 1):
            total, count = total + numpy_gradient(params, batch)["w"], count + 1
        if not calls % 2:
            return params, (calls + 1, total, count, inner)
        params, inner = applied(params, total / (max(count, 1) if mean else 2), inner)
        return params, (calls + 1, 0 * total, 0, inner)

    w = rng.normal(size=(4, 3)).astype(dtype)
    params = {"w": w if kind == "numpy" else jnp.asarray(w)}
    return Training(
        step=step,
        loss=LOSSES[kind],
        batches=batches,
        params=params,
        opt_state=(0, 0 * params["w"], 0, SGD.init(params) if kind == "jax" else None),
        optimizer=SGD if kind == "jax" else None,
    )


@pytest.mark.parametrize("call", [1, 2, 5, 6])
@pytest.mark.parametrize("kind", ["numpy", "jax"])
def test_a_window_that_counts_a_batch_and_has_nothing_of_it(kind, call):
    claims = {"accumulate": 2, "optimizer": "sgd", "lr": 0.1}
    result = check_step(lambda: counting(kind, lambda n: n == call), **claims)
    assert result.verdict == "pass", result.headline
    told_of = next(f for f in result.findings if f.code == "step-batch-skipped")
    assert told_of.severity == "warn"
    assert f"1 of 7 updates leave out a batch, such as that of call {call}" in told_of.message


@pytest.mark.parametrize("kind", ["numpy", "jax"])
def test_most_windows_lose_a_batch(kind):
    claims = {"accumulate": 2, "optimizer": "sgd", "lr": 0.1}
    for left, mean in ((lambda n: n % 2 == 0, True), (lambda n: n == 1, False)):
        result = check_step(lambda left=left, mean=mean: counting(kind, left, mean), **claims)
        assert result.findings[0].code == "step-gradient-dropped", result.headline
