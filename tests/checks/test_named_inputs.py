"""What ``wrt`` and a dict of gradients name is under test, or refused by name; never left out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from pytest_gradcheck import UsageError, check_gradient

X = np.array([0.5, 1.0, 2.0])


def shifted(w, b):
    return ((w + b) ** 2).sum()


def shifted_grad(w, b):
    return 2 * (w + b), (2 * (w + b)).sum()


@pytest.mark.parametrize("wrt", [("w", "b"), (0, 1), ["w", 1]])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_python_float_that_wrt_names_is_differentiated(wrt, dtype):
    w = X.astype(dtype)
    assert check_gradient(shifted, w, 0.1, wrt=wrt, grad=shifted_grad).verdict == "pass"
    wrong = check_gradient(shifted, w, 0.1, wrt=wrt, grad=lambda w, b: (2 * (w + b), (w + b).sum()))
    assert wrong.verdict == "fail"
    assert wrong.findings[0].where == "b"


def test_a_gradient_that_leaves_a_named_float_out_is_accused():
    result = check_gradient(shifted, X, 0.1, wrt=("w", "b"), grad=lambda w, b: 2 * (w + b))
    assert result.findings[0].code == "gradient-count"


def test_a_float_inside_a_named_dict():
    def f(p):
        return shifted(p["w"], p["b"])

    p = {"w": X, "b": 0.1}
    right = {"grad": lambda p: dict(zip("wb", shifted_grad(p["w"], p["b"]), strict=True))}
    assert check_gradient(f, p, wrt="p", **right).verdict == "pass"
    result = check_gradient(
        f, p, wrt="p", grad=lambda p: {"w": 2 * (p["w"] + p["b"]), "b": np.float64(999.0)}
    )
    assert (result.verdict, result.findings[0].where) == ("fail", "p.b")


@pytest.mark.parametrize("wrt", [("x", "s"), (0, 1)])
def test_a_float_that_jax_cuts_off(wrt):
    def cut(x, s):
        return x * jax.lax.stop_gradient(s)

    x = jnp.array([0.3, -1.2, 2.0])
    assert check_gradient(lambda x, s: x * s, x, 0.5, wrt=wrt).verdict == "pass"
    result = check_gradient(cut, x, 0.5, wrt=wrt)
    assert (result.verdict, result.findings[0].where) == ("fail", "s")


@pytest.mark.parametrize("wrt", [("x", "b"), (0, 1)])
def test_torch_has_no_derivative_of_a_python_float(wrt):
    with pytest.raises(UsageError, match=r"b is a Python float; pass torch\.tensor\(0\.1\)"):
        check_gradient(lambda x, b: x * b, torch.ones(3), 0.1, wrt=wrt)


@pytest.mark.parametrize("value", [2, None, "mean", True, np.array([1, 2])])
@pytest.mark.parametrize("wrt", [("x", "n"), (0, 1)])
def test_what_has_no_derivative_is_refused_by_name(value, wrt):
    with pytest.raises(UsageError, match=rf"n \({type(value).__name__}.*\) has no derivative"):
        check_gradient(lambda x, n: (x**2).sum(), X, value, wrt=wrt, grad=lambda x, n: 2 * x)


def test_a_glob_picks_among_the_arrays():
    def f(x, eps):
        return ((x + eps) ** 2).sum()

    result = check_gradient(f, X, 0.1, wrt="*", grad=lambda x, eps: 2 * (x + eps))
    assert result.verdict == "pass"


def product(w, b):
    return (w * b**2).sum()


A, B = np.array([1.0, 2.0]), np.array([0.5, -0.3])


@pytest.mark.parametrize(
    "keyed",
    [
        lambda w, b: {"w": b**2, "b": 2 * w * b},
        lambda w, b: {"b": 2 * w * b, "w": b**2},
        lambda w, b: {0: b**2, 1: 2 * w * b},
    ],
    ids=["in order", "in another order", "by number"],
)
def test_a_dict_of_gradients_goes_by_the_names_of_the_inputs(keyed):
    assert check_gradient(product, A, B, grad=keyed).verdict == "pass"


@pytest.mark.parametrize("keys", [("weight", "bias"), ("w", "bias")])
def test_a_dict_with_foreign_names_is_refused(keys):
    def keyed(w, b):
        return dict(zip(keys, (b**2, 2 * w * b), strict=True))

    told = rf"parts named {keys[0]}, {keys[1]}, the inputs under test are named w, b;"
    with pytest.raises(UsageError, match=told):
        check_gradient(product, A, B, grad=keyed)


def test_foreign_names_inside_an_argument():
    def f(p, q):
        return product(p["w"], p["b"]) + q.sum()

    p, q = {"w": A, "b": B}, np.ones(2)

    def gradient(w, b):
        return lambda p, q: ({b: 2 * p["w"] * p["b"], w: p["b"] ** 2}, np.ones(2))

    assert check_gradient(f, p, q, grad=gradient("w", "b")).verdict == "pass"
    with pytest.raises(UsageError, match=r"parts named bias, weight, .* named p\.w, p\.b, q"):
        check_gradient(f, p, q, grad=gradient("weight", "bias"))


def test_names_cannot_be_told_where_a_function_has_none():
    result = check_gradient(
        lambda *args: product(*args), A, B, grad=lambda w, b: {"w": b**2, "b": 2 * w * b}
    )
    assert result.verdict == "pass"


class Affine(torch.autograd.Function):
    """Wrong in its last input; what follows has a default."""

    @staticmethod
    def forward(ctx, x, w, b, eps=1e-5):
        ctx.save_for_backward(x, w)
        return w * x + b + eps

    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        return g * w, g * x, 2 * g, None


class Apart(torch.autograd.Function):
    """The same with a context of its own."""

    @staticmethod
    def forward(x, w, b, eps=1e-5):
        return w * x + b + eps

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        return g * w, g * x, 2 * g, None


class Child(Apart):
    """Inherits it."""


@pytest.mark.parametrize("rule", [Affine, Apart, Child])
@pytest.mark.parametrize("more", [(), (1e-5,)])
def test_inputs_of_a_custom_function_have_their_names_whatever_has_a_default(rule, more):
    inputs = (*(torch.randn(5) for _ in range(3)), *more)
    result = check_gradient(rule.apply, *inputs)
    assert (result.verdict, result.findings[0].where) == ("fail", "b")
    assert check_gradient(rule.apply, *inputs, wrt="x").verdict == "pass"
    assert check_gradient(rule.apply, *inputs, wrt="b").verdict == "fail"
