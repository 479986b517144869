"""Forward, batched and second order: right ones pass, each kind of wrong one is named."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pytest_gradcheck import UsageError, check_gradient

jax = pytest.importorskip("jax")
jnp = jax.numpy
functional = torch.nn.functional

ALL = ("reverse", "forward", "batched")
X = torch.linspace(-1.3, 1.7, 12, dtype=torch.float64).reshape(4, 3)
W = torch.linspace(0.4, -0.9, 9, dtype=torch.float64).reshape(3, 3)
Z = jnp.linspace(0.1, 2.0, 6)


def codes(result):
    return [finding.code for finding in result.findings if finding.severity == "fail"]


class Net(torch.nn.Module):
    def __init__(self, dtype):
        super().__init__()
        torch.manual_seed(0)
        self.inner = torch.nn.Linear(3, 4, dtype=dtype)
        self.outer = torch.nn.Linear(4, 1, dtype=dtype)

    def forward(self, x):
        return self.outer(torch.tanh(self.inner(x)))


TORCH = {
    "sine": (torch.sin, (X,)),
    "product": (torch.matmul, (X, W)),
    "linear": (lambda x: 2 * x, (X,)),
    "cross entropy": (lambda x: functional.cross_entropy(x, torch.tensor([0, 1, 2, 0])), (X,)),
    "layer norm": (lambda x: functional.layer_norm(x, (3,)), (X,)),
    "cholesky": (lambda w: torch.linalg.cholesky(w @ w.T + torch.eye(3)), (W,)),
    "convolution": (lambda x, w: functional.conv1d(x[None, None, 0], w[:1, None]), (X, W)),
    "squared relu": (lambda x: torch.relu(x) ** 2, (X,)),
    "complex": (lambda z: z * z.conj() + z**3, (torch.complex(X, X + 1),)),
    "two outputs": (lambda x: {"a": x.exp(), "b": (x * x).sum()}, (X,)),
    "nested inputs": (lambda p: p["x"] @ p["w"][0], ({"x": X, "w": [W], "n": 3, "none": None},)),
    "a module": (Net(torch.float64), (X,)),
    "a module in float32": (Net(torch.float32), (X.float(),)),
    "attention": (lambda x: functional.softmax(x @ x.T, -1) @ x, (X,)),
}


@pytest.mark.parametrize("name", TORCH)
def test_torch_is_right_in_every_mode_and_twice(name):
    f, inputs = TORCH[name]
    result = check_gradient(f, *inputs, modes=ALL, order=2)
    assert (result.verdict, codes(result)) == ("pass", []), result.headline


JAX = {
    "sine": jnp.sin,
    "log-sum-exp": jax.nn.logsumexp,
    "softmax": jax.nn.softmax,
    "scan": lambda x: jax.lax.scan(lambda c, v: (c * v, c + v), 1.0, x)[1],
    "norm": jnp.linalg.norm,
    "dict": lambda x: {"a": jnp.exp(x), "b": jnp.sum(x * x)},
}


@pytest.mark.parametrize("name", JAX)
def test_jax_is_right_in_every_mode_and_twice(name):
    result = check_gradient(JAX[name], Z, modes=ALL, order=2)
    assert (result.verdict, codes(result)) == ("pass", []), result.headline


def function(forward, backward):
    members = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    return type("Custom", (torch.autograd.Function,), members)


def sine(ctx, x):
    ctx.save_for_backward(x)
    return x.sin()


# --- second order ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backward", "where"),
    [
        (lambda ctx, g: g * ctx.saved_tensors[0].detach().cos(), "x"),
        (lambda ctx, g: g.detach() * ctx.saved_tensors[0].cos(), "cotangent"),
    ],
    ids=["detached", "cotangent detached"],
)
def test_a_wrong_second_order_is_named(backward, where):
    custom = function(sine, backward)
    assert check_gradient(custom.apply, X).verdict == "pass"
    result = check_gradient(custom.apply, X, order=2)
    assert result.verdict == "fail"
    assert codes(result)[0] == "wrong-second-order"
    assert result.findings[0].where == where
    assert "second order" in result.headline


def test_a_backward_that_is_differentiable_once_is_said_to_be_so():
    once = torch.autograd.function.once_differentiable(
        lambda ctx, g: g * ctx.saved_tensors[0].cos()
    )
    result = check_gradient(function(sine, once).apply, X, order=2)
    assert (result.verdict, codes(result)) == ("fail", ["second-order-missing"])
    assert "once_differentiable" in result.findings[0].message


def test_a_backward_by_numpy_has_no_second_order():
    def backward(ctx, g):
        return torch.from_numpy(g.numpy() * np.cos(ctx.saved_tensors[0].numpy()))

    result = check_gradient(function(sine, backward).apply, X, order=2)
    assert result.verdict == "fail"
    assert codes(result)[0] in ("wrong-second-order", "second-order-missing")


def test_a_wrong_second_order_in_jax_is_named():
    custom = jax.custom_vjp(jnp.sin)
    stopped = jax.lax.stop_gradient
    custom.defvjp(lambda x: (jnp.sin(x), x), lambda x, g: (g * jnp.cos(stopped(x)),))
    result = check_gradient(custom, Z, order=2)
    assert codes(result) == ["wrong-second-order"]


def test_a_second_order_that_cannot_be_decided_is_not_green():
    result = check_gradient(lambda x: x.abs().sqrt().sum() * 1e-9 + 1e9, X + 0.2, order=2)
    assert result.verdict in ("undecided", "fail")


# --- forward --------------------------------------------------------------------------------------


def with_jvp(factor):
    class Custom(torch.autograd.Function):
        @staticmethod
        def forward(x, y):
            return x.sin() * y

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.save_for_backward(*inputs)
            ctx.save_for_forward(*inputs)

        @staticmethod
        def backward(ctx, g):
            x, y = ctx.saved_tensors
            return g * x.cos() * y, g * x.sin()

        @staticmethod
        def jvp(ctx, s, t):
            x, y = ctx.saved_tensors
            return s * x.cos() * y + factor * t * x.sin()

    return Custom.apply


def test_forward_mode_is_held_against_reverse_mode():
    assert check_gradient(with_jvp(1.0), X, X + 2, modes=("reverse", "forward")).verdict == "pass"
    result = check_gradient(with_jvp(1.01), X, X + 2, modes=("reverse", "forward"))
    assert codes(result) == ["forward-mode"]
    assert result.findings[0].where == "y"
    assert result.findings[0].number("ratio") == pytest.approx(1.01, rel=1e-6)


def test_a_forward_mode_that_is_missing_is_told_when_asked_for():
    custom = function(sine, lambda ctx, g: g * ctx.saved_tensors[0].cos())
    assert check_gradient(custom.apply, X).verdict == "pass"
    result = check_gradient(custom.apply, X, modes=("reverse", "forward"))
    assert codes(result) == ["forward-missing"]


@pytest.mark.parametrize("size", [5, 200])
def test_forward_mode_alone(size):
    x, y = torch.linspace(-1, 2, size).double(), torch.linspace(1, 2, size).double()
    assert check_gradient(with_jvp(1.0), x, y, modes="forward").verdict == "pass"
    result = check_gradient(with_jvp(1.01), x, y, modes="forward")
    assert result.verdict == "fail"
    assert result.findings[0].where == "y"


def test_a_loop_that_has_forward_mode_only():
    def loop(x):
        return jax.lax.while_loop(lambda s: s[0] < 3, lambda s: (s[0] + 1, jnp.sin(s[1])), (0, x))[
            1
        ]

    assert check_gradient(loop, Z, modes=("forward",)).verdict == "pass"
    with pytest.raises(UsageError, match="JAX has no reverse mode for a while loop"):
        check_gradient(loop, Z)


def test_a_wrong_rule_by_custom_jvp_is_found_in_both_modes():
    custom = jax.custom_jvp(jnp.sin)
    custom.defjvp(lambda p, t: (jnp.sin(p[0]), 1.02 * t[0] * jnp.cos(p[0])))
    for modes in (("reverse",), ("forward",)):
        assert check_gradient(custom, Z, modes=modes).verdict == "fail"


# --- batched --------------------------------------------------------------------------------------


def with_vmap(shift):
    class Custom(torch.autograd.Function):
        @staticmethod
        def forward(x):
            return x.sin()

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.save_for_backward(*inputs)

        @staticmethod
        def backward(ctx, g):
            return Inner.apply(g, ctx.saved_tensors[0])

    class Inner(torch.autograd.Function):
        @staticmethod
        def forward(g, x):
            return g * x.cos()

        @staticmethod
        def setup_context(ctx, inputs, output):
            pass

        @staticmethod
        def vmap(info, in_dims, g, x):
            return g * x.cos() * (1 + shift), 0

    return Custom.apply


def test_a_wrong_vmap_rule_is_found():
    assert check_gradient(with_vmap(0.0), X, modes=("reverse", "batched")).verdict == "pass"
    result = check_gradient(with_vmap(0.1), X, modes=("reverse", "batched"))
    assert codes(result) == ["batched-mode"]


# --- misuse ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("modes", ["fwd", ("reverse", "backward"), ()])
def test_an_unknown_mode_is_refused(modes):
    with pytest.raises(UsageError, match="known: reverse, forward, batched"):
        check_gradient(torch.sin, X, modes=modes)


@pytest.mark.parametrize("order", [0, 3, "2", True])
def test_an_unknown_order_is_refused(order):
    with pytest.raises(UsageError, match="allowed: 1 and 2"):
        check_gradient(torch.sin, X, order=order)


@pytest.mark.parametrize("asked", [{"modes": ("forward",)}, {"order": 2}])
def test_a_derivative_by_hand_has_one_mode(asked):
    with pytest.raises(UsageError, match="a derivative by hand has one mode"):
        check_gradient(np.sin, np.ones(3), vjp=lambda w, x: w * np.cos(x), **asked)
