"""Rules that PyTorch and JAX refuse by their form: wrong derivatives, in the report like others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from pytest_gradcheck import UsageError, check_gradient

X, Y = torch.ones(3, 4, dtype=torch.float64), torch.ones(4, dtype=torch.float64)


def rule(backward):
    class Scale(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *xs):
            return 2 * sum(xs)

        @staticmethod
        def backward(ctx, w):
            return backward(w)

    return Scale


@pytest.mark.parametrize(
    ("backward", "told", "advice"),
    [
        (lambda w: w.T, "returns shape (4, 3) for args.0, not (3, 4)", "transpose"),
        (lambda w: w.sum(0), "returns shape (4,) for args.0, not (3, 4)", "each element"),
        (lambda w: w[:2], "returns shape (2, 4) for args.0, not (3, 4)", "each element"),
        (lambda w: w.numpy(), "returns a numpy.ndarray, not a tensor", "return a tensor"),
        (lambda w: (w, w), "returns 2 gradients for 1 input", "one for each input of forward"),
    ],
)
def test_a_backward_of_torch(backward, told, advice):
    result = check_gradient(rule(backward).apply, X)
    assert result.verdict == "fail"
    assert result.headline == f"wrong gradient of Scale.apply: backward of Scale {told}"
    assert advice in result.advice[0]


def test_an_input_inside_a_model_is_named_by_its_parameter():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.bias = torch.nn.Parameter(Y.clone())

        def forward(self, x):
            return rule(lambda w: (w, w[:, :2].sum(0))).apply(x, self.bias)

    result = check_gradient(Model(), X)
    assert (result.findings[0].code, result.findings[0].where) == ("gradient-shape", "bias")


def test_an_input_that_is_no_input_of_the_check_is_counted():
    result = check_gradient(lambda x: rule(lambda w: w[:2]).apply(x.exp()), X)
    assert "returns shape (2, 4) for input 0 of Scale, not (3, 4)" in result.headline
    assert result.findings[0].where == ""


def custom(f, bwd):
    g = jax.custom_vjp(f)
    g.defvjp(lambda *xs: (f(*xs), xs), bwd)
    return g


def double(x):
    return 2 * x


def add(x, y):
    return x + y


@pytest.mark.parametrize(
    ("f", "bwd", "code", "told"),
    [
        (double, lambda r, w: (w.sum(0),), "gradient-shape", "shape (4,) for x, not (3, 4)"),
        (add, lambda r, w: (w, w), "gradient-shape", "shape (3, 4) for y, not (4,)"),
        (add, lambda r, w: (w,), "gradient-count", "a tuple of 1 for a tuple of 2"),
        (double, lambda r, w: w, "gradient-count", "one array for a tuple of 1"),
    ],
)
def test_a_rule_of_jax(f, bwd, code, told):
    inputs = (jnp.ones((3, 4)), jnp.ones(4))[: 1 if f is double else 2]
    result = check_gradient(custom(f, bwd), *inputs)
    assert (result.verdict, result.findings[0].code) == ("fail", code)
    assert result.headline.endswith(f"the bwd rule returns {told}")


def test_a_jvp_rule_of_jax():
    f = jax.custom_jvp(lambda x: 2 * x)
    f.defjvp(lambda xs, ts: (2 * xs[0], ts[0].sum(0)))
    result = check_gradient(f, jnp.ones((3, 4)))
    assert result.findings[0].code == "gradient-shape"
    assert "returns shape (4,) for an output of shape (3, 4)" in result.findings[0].message
    f.defjvp(lambda xs, ts: 2 * ts[0])
    assert check_gradient(f, jnp.ones(3)).findings[0].code == "gradient-count"


def test_an_error_inside_a_rule_is_still_an_error():
    with pytest.raises(UsageError, match="mat1 and mat2"):
        check_gradient(rule(lambda w: w @ w).apply, X)
    with pytest.raises(UsageError, match="dot_general"):
        check_gradient(custom(double, lambda r, w: (w @ w,)), jnp.ones((3, 4)))


def test_a_derivative_by_hand_that_returns_nothing():
    for form in ("grad", "jac"):
        result = check_gradient(np.sum, np.ones(3), **{form: lambda x: None})
        assert result.verdict == "fail"
        assert result.headline.endswith("the derivative is None")
        assert "forgot a return?" in result.advice[0]


def test_a_derivative_by_hand_of_the_wrong_shape_says_both():
    result = check_gradient(np.tanh, np.ones((3, 4)), vjp=lambda w, x: w.sum(axis=0))
    assert result.headline.endswith("the derivative returns shape (4,) for x, not (3, 4)")


def test_a_headline_is_cut_between_words():
    def quite_a_long_name_of_a_function_as_there_are_some_in_large_projects(x):
        return x.sum()

    result = check_gradient(
        quite_a_long_name_of_a_function_as_there_are_some_in_large_projects,
        np.ones((3, 4)),
        grad=lambda x: np.ones(4),
    )
    whole = f"wrong gradient of {result.label}: {result.findings[0].message}"
    assert len(result.headline) < 100
    assert result.headline.endswith(" …")
    assert whole.startswith(result.headline.removesuffix("…"))
