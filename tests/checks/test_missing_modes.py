"""What a custom function lacks is told by its name, and hides nothing else that was asked for."""

import jax
import jax.numpy as jnp
import pytest
import torch

from pytest_gradcheck import UsageError, check_gradient

X = torch.tensor([0.3, -0.7, 1.1], dtype=torch.float64)


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, w):
        (x,) = ctx.saved_tensors
        return 3 * x * x * w


class Frozen(Cube):
    @staticmethod
    def backward(ctx, w):
        (x,) = ctx.saved_tensors
        return 3 * x.detach() ** 2 * w


class Once(Cube):
    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, w):
        return Cube.backward(ctx, w)


def cubed(stop):
    f = jax.custom_vjp(lambda x: x**3)
    f.defvjp(lambda x: (x**3, x), lambda x, w: (3 * stop(x) ** 2 * w,))
    return f


def codes(result):
    return [finding.code for finding in result.findings if finding.severity == "fail"]


def test_second_order_is_checked_where_forward_mode_is_missing():
    modes = ("reverse", "forward")
    assert codes(check_gradient(Cube.apply, X, modes=modes, order=2)) == ["forward-missing"]
    assert codes(check_gradient(Frozen.apply, X, modes=modes, order=2)) == [
        "wrong-second-order",
        "forward-missing",
    ]
    x = jnp.array([0.3, -0.7])
    right, wrong = cubed(lambda x: x), cubed(jax.lax.stop_gradient)
    assert codes(check_gradient(right, x, modes=modes, order=2)) == ["forward-missing"]
    assert "wrong-second-order" in codes(check_gradient(wrong, x, modes=modes, order=2))


def test_a_loop_that_has_no_reverse_mode_leads_to_forward_mode():
    def power(x):
        return jax.lax.while_loop(lambda s: s[0] < 3, lambda s: (s[0] + 1, s[1] * x), (0, x))[1]

    with pytest.raises(UsageError, match="check forward mode alone with modes='forward'"):
        check_gradient(power, jnp.array([0.3, 0.5]))
    assert check_gradient(power, jnp.array([0.3, 0.5]), modes="forward").verdict == "pass"


def test_the_headline_names_what_is_missing():
    told = check_gradient(Cube.apply, X, modes=["forward", "reverse"]).headline
    assert told.startswith("no forward mode of Cube.apply: NotImplementedError: You must implement")
    told = check_gradient(Once.apply, X, order=2).headline
    assert told.startswith("no second derivative of Once.apply: RuntimeError: trying to diff")
