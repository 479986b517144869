"""Gradients of single examples that are clipped one by one before their mean (DP-SGD)."""

import importlib

import numpy as np
import pytest

from pytest_gradcheck import Training, check_step

pytest.importorskip("torch")
jax = pytest.importorskip("jax")
optax = pytest.importorskip("optax")
loop = importlib.import_module("loops").loop
jnp = jax.numpy

EXAMPLES = """
from torch.func import functional_call, grad, vmap
held = {n: p.detach() for n, p in model.named_parameters()}
def one(held, x, y):
    return nn.functional.mse_loss(functional_call(model, held, (x[None],)), y[None])
g = vmap(grad(one), in_dims=(None, 0, 0))(held, *batch)
"""
TOGETHER = """
size = sum(t.flatten(1).pow(2).sum(1) for t in g.values()).sqrt()
cut = [t * (0.5 / size).clamp(max=1.0).view(-1, *[1] * (t.ndim - 1)) for t in g.values()]
"""
CLIPPED = EXAMPLES + TOGETHER
ONE_BY_ONE = """
total, count = [torch.zeros_like(p) for p in params], len(batch[0])
for x, y in zip(*batch):
    opt.zero_grad(); loss((x[None], y[None])).backward()
    clip(params, 0.5)
    [t.add_(p.grad / count) for t, p in zip(total, params)]
put(total); opt.step()
"""
RIGHT = {
    "averaged": CLIPPED + "put([t.mean(0) for t in cut]); opt.step()",
    "divided by a full batch": CLIPPED + "put([t.sum(0) / 8 for t in cut]); opt.step()",
    "one by one": ONE_BY_ONE,
}


@pytest.mark.parametrize("body", RIGHT.values(), ids=RIGHT)
@pytest.mark.parametrize("optimizer", ["SGD(params, 0.1)", "AdamW(params, 1e-2)"])
def test_examples_that_are_clipped_are_told(body, optimizer):
    result = loop(body, optimizer=optimizer)
    assert result.verdict == "pass", result.headline
    (finding,) = [f for f in result.findings if f.code == "step-clip-unclaimed"]
    assert "each example's gradient is clipped by its own norm at 0.5" in finding.message


def test_they_are_no_clip_of_their_mean():
    result = loop(RIGHT["averaged"], max_norm=0.5)
    assert result.findings[0].code == "step-clip-kind"
    assert "leave the claim out" in result.advice[0]


WRONG = {
    "added": (CLIPPED + "put([t.sum(0) for t in cut]); opt.step()", "added, not averaged"),
    "each tensor": (
        EXAMPLES
        + "cut = [t * (0.1 / t.flatten(1).norm(dim=1)).clamp(max=1.0)"
        + ".view(-1, *[1] * (t.ndim - 1)) for t in g.values()]; "
        + "put([t.mean(0) for t in cut]); opt.step()",
        "",
    ),
    "another sign": (CLIPPED + "put([-t.mean(0) for t in cut]); opt.step()", ""),
    "one left out": (CLIPPED + "put([t[1:].mean(0) for t in cut]); opt.step()", ""),
}


@pytest.mark.parametrize(("body", "told"), WRONG.values(), ids=WRONG)
def test_another_mistake_is_no_such_clip(body, told):
    result = loop(body)
    assert result.verdict == "fail", result.headline
    assert told in result.headline


def of_examples(lib, norms):
    """Clipped rows of a linear model: NumPy and JAX alike."""

    def gradient(params, batch):
        x, y = batch
        r = 2 * (x @ params["w"] + params["b"] - y) / y.shape[1]
        size = norms(x, r)
        cut = r * lib.minimum(1.0, 1.0 / size)[:, None]
        return {"w": x.T @ cut / len(x), "b": cut.sum(0) / len(x)}

    return gradient


def functional(kind):
    rng = np.random.default_rng(0)
    lib, dtype = (np, np.float64) if kind == "numpy" else (jnp, np.float32)
    batches = [tuple(rng.normal(size=(n, k)).astype(dtype) for k in (4, 3)) for n in (8, 5, 8)]
    params = {"b": lib.zeros(3), "w": lib.asarray(rng.normal(size=(4, 3)).astype(dtype))}
    clipped = of_examples(lib, lambda x, r: lib.sqrt((r**2).sum(1) * ((x**2).sum(1) + 1)))

    def loss(params, batch):
        x, y = batch
        return lib.mean((x @ params["w"] + params["b"] - y) ** 2)

    if kind == "numpy":
        return Training(
            step=lambda p, s, batch: ({k: p[k] - 0.1 * g for k, g in clipped(p, batch).items()}, s),
            loss=loss,
            batches=batches,
            params=params,
        )
    tx = optax.adam(1e-2)

    def step(params, state, batch):
        updates, state = tx.update(clipped(params, batch), state, params)
        return optax.apply_updates(params, updates), state

    return Training(
        step=step,
        loss=loss,
        batches=batches,
        params=params,
        opt_state=tx.init(params),
        optimizer=tx,
    )


@pytest.mark.parametrize(
    ("kind", "claims"), [("numpy", {"optimizer": "sgd", "lr": 0.1}), ("jax", {})]
)
def test_functional_steps(kind, claims):
    result = check_step(lambda: functional(kind), **claims)
    assert result.verdict == "pass", result.headline
    assert "clipped by its own norm at 1" in str([f.message for f in result.findings])
