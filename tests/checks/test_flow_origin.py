"""The operation in which the first value that is not finite is born."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

from pytest_gradcheck import check_flow

X = np.random.default_rng(0).normal(size=(32, 4)).astype(np.float32)


class Around(nn.Module):
    def __init__(self, run):
        super().__init__()
        self.one, self.two, self.run = nn.Linear(4, 6), nn.Linear(6, 3), run

    def forward(self, x):
        return self.two(self.run(self.one(x)))


def of_torch(run):
    return check_flow(
        None, lambda m, b: m(b).square().mean(), torch.tensor(X), make=lambda: Around(run)
    )


def of_jax(run):
    def loss(params, batch):
        return jnp.mean((run(batch @ params["one"]) @ params["two"]) ** 2)

    def make(seed):
        rng = np.random.default_rng(seed)
        return {k: jnp.asarray(rng.normal(size=s)) for k, s in (("one", (4, 6)), ("two", (6, 3)))}

    return check_flow(None, loss, jnp.asarray(X), make=make)


TORCH = {
    "log": (lambda h: torch.log(-1 - h.abs()), "log", "nan is born forward", "the loss"),
    "overflow": (lambda h: torch.exp(h + 200), "exp", "inf is born forward", "the loss"),
    "half": (lambda h: (h.half() * 1e4 * 100).float(), "mul", "inf is born forward", "the loss"),
    "sqrt at zero": (lambda h: torch.sqrt(h - h), "sqrt", "born backward", "gradient"),
    "mask": (lambda h: torch.where(h > 9, torch.log(h - h), h), "log", "born backward", "gradient"),
    "softmax of a mask": (
        lambda h: torch.softmax(h.masked_fill(h == h, -torch.inf), 1),
        "softmax",
        "nan is born forward",
        "the loss",
    ),
    "absorbed first": (
        lambda h: torch.log(-1 - torch.softmax(h.masked_fill(h == h.max(), -torch.inf), 1)),
        "log",
        "nan is born forward",
        "the loss",
    ),
}


@pytest.mark.parametrize("name", TORCH)
def test_births_in_torch(name):
    run, op, *words = TORCH[name]
    finding = of_torch(run).findings[0]
    assert (finding.code, finding.where) == ("flow-nonfinite", op)
    assert all(word in finding.message for word in words)
    assert "test_flow_origin.py:" in finding.message or "backward" in finding.message


def test_a_birth_inside_a_module_names_it():
    class Log(nn.Module):
        def forward(self, x):
            return torch.log(-1 - x.abs())

    assert of_torch(Log()).findings[0].where == "run.log"


JAX = {
    "log": (lambda h: jnp.log(-1 - jnp.abs(h)), "log", "forward"),
    "jit": (jax.jit(lambda h: jnp.log(-1 - jnp.abs(h))), "log", "forward"),
    "scan": (lambda h: jax.lax.scan(lambda c, x: (jnp.sqrt(c - 9), c), h, None, 3)[0], "sqrt",
             "forward"),
    "mask": (lambda h: jnp.where(h > 99, jnp.log(h - h), h), "log", "backward"),
    "norm": (lambda h: h + jnp.linalg.norm(h - h, axis=1, keepdims=True), "sqrt", "backward"),
}  # fmt: skip


@pytest.mark.parametrize("name", JAX)
def test_births_in_jax(name):
    run, op, phase = JAX[name]
    finding = of_jax(run).findings[0]
    assert (finding.code, finding.where) == ("flow-nonfinite", f"one.{op}")
    assert f"born {phase}" in finding.message


HARMLESS_TORCH = {
    "attention": lambda h: torch.softmax(h.masked_fill(h == h.max(), -torch.inf), 1),
    "unused": lambda h: (torch.log(-1 - h.detach().abs()), h)[1],
    "masked before": lambda h: torch.log(torch.where(h > 0, h, torch.ones_like(h))),
    "detached": lambda h: torch.where(h > 99, torch.log(-1 - h.detach().abs()), h),
}
HARMLESS_JAX = {
    "attention": lambda h: jax.nn.softmax(jnp.where(h == h.max(1, keepdims=True), -jnp.inf, h)),
    "unused": lambda h: (jnp.log(-1 - jnp.abs(h)), h)[1],
    "masked before": lambda h: jnp.log(jnp.where(h > 0, h, 1.0)),
    "masked after": lambda h: jnp.where(h > 0, jnp.log(h), 0.0),
}


@pytest.mark.parametrize("name", HARMLESS_TORCH)
def test_what_reaches_nothing_is_no_failure_in_torch(name):
    assert "flow-nonfinite" not in [f.code for f in of_torch(HARMLESS_TORCH[name]).findings]


@pytest.mark.parametrize("name", HARMLESS_JAX)
def test_what_reaches_nothing_is_no_failure_in_jax(name):
    assert "flow-nonfinite" not in [f.code for f in of_jax(HARMLESS_JAX[name]).findings]


def test_the_first_record_that_is_not_finite_is_named():
    bad = np.array([[1.0, np.inf]])
    record = [("a", np.ones((1, 2)), bad), ("b", bad, bad)]
    finding = check_flow(record).findings[0]
    assert (finding.where, "born forward" in finding.message) == ("b", True)
    record = [("a", np.ones((1, 2)), bad), ("b", np.ones((1, 2)), np.ones((1, 2)))]
    finding = check_flow(record).findings[0]
    assert (finding.where, "born backward" in finding.message) == ("a", True)
