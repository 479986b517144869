"""Width as a cause: layers are made wider on a copy, and both numbers are told."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

from pytest_gradcheck import check_flow
from pytest_gradcheck.backends import torch_widths, widths
from pytest_gradcheck.checks.flow import cause

RNG = np.random.default_rng(0)
X = RNG.normal(size=(64, 4)).astype(np.float32)
Y = RNG.normal(size=(64, 2)).astype(np.float32)
DEPTH = 14


def draw(seed, width=4, depth=DEPTH):
    rng = np.random.default_rng(seed)
    sizes = [4, *[width] * (depth - 1), 2]
    return [
        {"w": (rng.normal(size=(a, b)) * (2 / a) ** 0.5).astype("f"), "b": np.zeros(b, "f")}
        for a, b in itertools.pairwise(sizes)
    ]


def numpy_loss(params, batch):
    x, y = batch
    outs, products = [x], []
    for p in params:
        products.append(outs[-1] @ p["w"] + p["b"])
        outs.append(np.maximum(products[-1], 0))
    g = 2 * (products[-1] - y) / y.size
    record, gradients = [(f"{len(params) - 1}", products[-1], g)], []
    for k in reversed(range(len(params))):
        gradients.append({"w": outs[k].T @ g, "b": g.sum(0)})
        if k:
            g = g @ params[k]["w"].T
            record.append((f"{k - 1}.relu", outs[k], g))
            g = g * (products[k - 1] > 0)
            record.append((f"{k - 1}", products[k - 1], g))
    return np.mean((products[-1] - y) ** 2), record[::-1], gradients[::-1]


def jax_loss(params, batch):
    h = batch[0]
    for p in params[:-1]:
        h = jax.nn.relu(h @ p["w"] + p["b"])
    return jnp.mean((h @ params[-1]["w"] + params[-1]["b"] - batch[1]) ** 2)


def torch_make(seed):
    torch.manual_seed(seed)
    sizes = [4, *[4] * (DEPTH - 1), 2]
    parts = []
    for a, b in itertools.pairwise(sizes):
        layer = nn.Linear(a, b)
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.zeros_(layer.bias)
        parts += [layer, nn.ReLU()]
    return nn.Sequential(*parts[:-1])


def torch_loss(model, batch):
    return (model(batch[0]) - batch[1]).square().mean()


def trials(result):
    return {row[0]: row for row in result.table("interventions").rows}


def found(result):
    return next(f for f in result.findings if f.code.startswith("flow-cause-"))


def check(loss, make, **more):
    return check_flow(None, loss, (X, Y), make=make, seed=1, backend="numpy", **more)


def test_a_network_that_is_too_narrow_is_cured_by_width():
    result = check(numpy_loss, draw)
    assert [f.code for f in result.findings if f.severity == "fail"] == ["flow-dead"]
    told = found(result)
    assert told.code == "flow-cause-width"
    assert "as wide" in told.message
    assert "wide" in result.advice[0]
    before = result.findings[0].number("risk")
    after = next(row for row in trials(result).values() if row[-1])
    assert before > 0.2 > 0 < after[1]
    assert after[3] < 0.6  # share of dead units


def test_a_make_with_a_width_is_asked_for_more():
    widths_seen = []

    def make(seed, width=4):
        widths_seen.append(width)
        return {"layers": draw(seed, width), "rate": 0.1}  # no plain chain of matrices

    loss = lambda p, b: numpy_loss(p["layers"], b)[:2]  # noqa: E731  # without gradients
    assert found(check(loss, make)).code == "flow-cause-width"
    assert set(widths_seen) in ({4, 8}, {4, 8, 16})


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_other_backends_are_made_wider_too(backend, monkeypatch):
    """What costs less is tried first, and is kept from curing here."""
    order = ("twice as wide", "four times as wide")
    monkeypatch.setitem(cause.ORDERS, "dead", order)
    batch = (torch.tensor(X), torch.tensor(Y)) if backend == "torch" else (X, Y)
    loss, make = (torch_loss, torch_make) if backend == "torch" else (jax_loss, draw)
    result = check_flow(None, loss, batch, make=make, seed=1, backend=backend)
    assert result.findings[0].code == "flow-dead"
    assert found(result).code == "flow-cause-width"


def test_what_costs_less_is_named_before():
    result = check_flow(None, jax_loss, (X, Y), make=draw, seed=1, backend="jax")
    assert found(result).code == "flow-cause-rectifier"


def test_parameters_are_drawn_wider_with_the_same_variance():
    arrays = {
        "one.w": RNG.normal(size=(4, 64)),
        "one.b": np.zeros(64),
        "two.w": RNG.normal(size=(64, 64)) / 8,
        "two.b": np.ones(64),
        "three.w": RNG.normal(size=(64, 3)) / 8,
    }
    fresh = widths.widened(arrays, 2, 0)
    assert {n: x.shape for n, x in fresh.items()} == {
        "one.w": (4, 128),
        "one.b": (128,),
        "two.w": (128, 128),
        "two.b": (128,),
        "three.w": (128, 3),
    }
    for name, x in arrays.items():  # variance times inputs is kept
        fan = len(fresh[name]) / len(x) if x.ndim == 2 else 1
        assert fresh[name].std() ** 2 * fan == pytest.approx(x.std() ** 2, rel=0.15)
    turned = {n: x.T for n, x in arrays.items()}
    assert {n: x.shape[::-1] for n, x in widths.widened(turned, 2, 0).items() if x.ndim > 1} == {
        n: x.shape for n, x in fresh.items() if x.ndim > 1
    }


NO_CHAIN = {
    "one matrix": {"w": np.ones((3, 3))},
    "out of order": {"b": np.ones((4, 3)), "a": np.ones((2, 4)), "c": np.ones((3, 5))},
    "a kernel": {"a": np.ones((3, 4)), "k": np.ones((3, 3, 4, 4)), "b": np.ones((4, 2))},
    "a scale of its own": {"a.w": np.ones((3, 4)), "norm": np.ones(4), "b.w": np.ones((4, 2))},
    "biases of nobody": {"a": np.ones((3, 4)), "b": np.ones((4, 2)), "c": np.ones(4)},
    "another bias": {"a.w": np.ones((3, 4)), "a.b": np.ones(3), "b.w": np.ones((4, 2))},
    "nothing": {},
}


@pytest.mark.parametrize("name", NO_CHAIN)
def test_what_is_no_chain_is_left_alone(name):
    assert widths.widened(NO_CHAIN[name], 2, 0) is None


def test_only_a_number_as_default_of_width_counts():
    assert widths.asked(lambda seed, width=8: width, 2)(0) == 16
    for make in (None, print, lambda seed: 0, lambda width: 0, lambda width="all": 0, min):
        assert widths.asked(make, 2) is None


def test_torch_models_with_other_layers_are_left_alone():
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2))
    assert torch_widths.widened(model, 2, 0) is None
    assert torch_widths.widened(nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8)), 2, 0) is None
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    before = [p.clone() for p in model.parameters()]
    wide = torch_widths.widened(model, 4, 0)
    assert [tuple(p.shape) for p in wide.parameters()] == [(32, 4), (32,), (2, 32), (2,)]
    assert all(torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True))
