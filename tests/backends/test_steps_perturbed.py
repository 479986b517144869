"""Sharpness-aware minimisation written out in functions: gradients taken beside the parameters."""

import numpy as np
import pytest
from by_hand import gradient, loss

from pytest_gradcheck import Training, check_step


def norm(g):
    return np.sqrt(sum((x**2).sum() for x in g.values()))


def moved(p, g, radius):
    return {k: x + radius * g[k] for k, x in p.items()}


def parts():
    rng = np.random.default_rng(0)
    params = {k: rng.normal(size=s) for k, s in {"w": (4, 5), "b": (5,), "v": (5, 2)}.items()}
    return params, [(rng.normal(size=(n, 4)), rng.normal(size=(n, 2))) for n in (6, 6, 3)]


def checked(beside, clip=None, **claims):
    """The check of SGD with the gradient that a function gives."""

    def step(p, s, batch):
        g = beside(p, batch)
        size = norm(g)
        if clip is not None and size > clip:
            g = {k: x * clip / size for k, x in g.items()}
        return moved(p, g, -0.05), s

    params, batches = parts()
    training = Training(step=step, loss=loss, batches=batches, params=params)
    return check_step(training, optimizer="sgd", lr=0.05, max_norm=clip, **claims)


def uphill(radius, is_normed=True):
    def beside(p, batch):
        g = gradient(p, batch)
        return gradient(moved(p, g, radius / (norm(g) if is_normed else 1.0)), batch)

    return beside


@pytest.mark.parametrize("clip", [None, 0.3])
@pytest.mark.parametrize("is_normed", [True, False])
@pytest.mark.parametrize("radius", [0.02, 0.1])
def test_a_gradient_uphill_is_told(radius, is_normed, clip):
    result = checked(uphill(radius, is_normed), clip)
    assert result.verdict == "pass", result.headline
    (told,) = [f for f in result.findings if f.code == "step-perturbed"]
    assert told.severity == "warn"
    size = norm(gradient(parts()[0], parts()[1][0]))
    assert dict(told.numbers)["radius"] == pytest.approx(radius * (1 if is_normed else size), 1e-3)


def another_radius():
    """A radius that shrinks is none of the method."""
    radii = iter(0.1 * 0.7**k for k in range(1000))
    return lambda p, batch: uphill(next(radii))(p, batch)


def one_tensor(p, batch):
    g = gradient(p, batch)
    return gradient({**p, "w": p["w"] + 0.1 * g["w"] / norm(g)}, batch)


def factor(p, batch):
    return {k: 1.5 * x for k, x in uphill(0.1)(p, batch).items()}


def half(p, batch):
    return {**uphill(0.1)(p, batch), "b": np.zeros(5)}


WRONG = {"factor": factor, "half": half, "one tensor": one_tensor, "downhill": uphill(-0.1)}


@pytest.mark.parametrize("name", [*WRONG, "another radius"])
def test_what_is_not_taken_uphill_is_wrong(name):
    result = checked(WRONG.get(name) or another_radius())
    assert result.verdict == "fail", result.headline
    assert "step-perturbed" not in {f.code for f in result.findings}


def test_a_factor_where_each_point_uphill_has_but_another_length():
    """Of a loss whose Hessian is a multiple of one, a factor is explained by a radius as well."""

    def step(p, s, batch):
        return {"w": p["w"] - 0.05 * 1.5 * 2 * (p["w"] - batch) / 3}, s

    training = Training(
        step=step,
        loss=lambda p, batch: np.mean((p["w"] - batch) ** 2),
        batches=[np.array([1.0, 2.0, 3.0]), np.array([0.0, 2.0, 1.0])],
        params={"w": np.array([0.5, -1.0, 2.0])},
    )
    result = check_step(training, optimizer="sgd", lr=0.05)
    assert result.verdict == "fail", result.headline


@pytest.mark.parametrize("ridge", [0.5, 0.03])
def test_a_factor_of_one_tensor_where_the_loss_is_linear_in_the_other(ridge):
    """A support vector machine: uphill, its gradient is longer by a factor in the weights alone."""
    rng = np.random.default_rng(1)
    inputs = [rng.normal(size=(16, 3)) for _ in range(4)]

    def margin(p, batch):
        return 1 - batch[1] * (batch[0] @ p["w"] + p["b"])

    def step(p, s, batch):
        m = (margin(p, batch) > 0) * -batch[1] / len(batch[1])
        g = {"w": 1.1 * (batch[0].T @ m + 2 * ridge * p["w"]), "b": m.sum() * np.ones(1)}
        return moved(p, g, -0.05), s

    training = Training(
        step=step,
        loss=lambda p, b: np.maximum(0, margin(p, b)).mean() + ridge * (p["w"] ** 2).sum(),
        batches=[(x, np.sign(x @ [1.0, -1.0, 0.5] + 0.1)) for x in inputs],
        params={"w": np.full(3, 0.01), "b": np.zeros(1)},
    )
    result = check_step(training, optimizer="sgd", lr=0.05)
    assert result.verdict == "fail", result.headline


def test_a_loss_that_raises_uphill_costs_no_verdict():
    start, batches = parts()

    def guarded(p, batch):
        if norm(moved(p, start, -1.0)) > 0.02:
            raise ValueError("too far")
        return loss(p, batch)

    training = Training(
        step=lambda p, s, batch: (moved(p, half(p, batch), -1e-4), s),
        loss=guarded,
        batches=batches,
        params=start,
    )
    result = check_step(training, optimizer="sgd", lr=1e-4)
    assert result.verdict == "fail", result.headline


@pytest.mark.parametrize("order", [1, np.inf])
def test_what_is_frozen_and_what_is_clipped_by_another_norm(order):
    def beside(p, batch):
        free = {**gradient(p, batch), "b": np.zeros(5)}
        return {**gradient(moved(p, free, 0.1), batch), "b": np.zeros(5)}

    result = checked(beside, frozen=["b"])
    assert result.verdict == "pass", result.headline
    clipped = checked(uphill(0.1, False), 50.0, norm_type=order)
    assert clipped.verdict == "pass", clipped.headline


def test_a_gradient_uphill_in_jax():
    jax = pytest.importorskip("jax")
    optax = pytest.importorskip("optax")
    jnp = jax.numpy
    params, batches = parts()
    optimizer = optax.adam(1e-2)

    def loss(p, batch):
        x, y = batch
        return jnp.mean((jnp.tanh(x @ p["w"] + p["b"]) @ p["v"] - y) ** 2)

    @jax.jit
    def step(p, state, batch):
        g = jax.grad(loss)(p, batch)
        g = jax.grad(loss)(optax.tree.add_scale(p, 0.05 / optax.global_norm(g), g), batch)
        updates, state = optimizer.update(g, state, p)
        return optax.apply_updates(p, updates), state

    params, batches = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), (params, batches))
    result = check_step(
        Training(
            step=step,
            loss=loss,
            batches=batches,
            params=params,
            optimizer=optimizer,
            opt_state=optimizer.init(params),
        )
    )
    assert result.verdict == "pass", result.headline
    assert "step-perturbed" in {f.code for f in result.findings}
