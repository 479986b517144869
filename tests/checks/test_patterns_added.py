"""What a backward adds whatever its cotangent is, and inputs that got each other's gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from pytest_gradcheck import check_gradient

X = np.linspace(-0.9, 1.3, 6)
FIXED = np.random.default_rng(1).normal(size=6)


def told(extra, f=np.tanh, x=X, slope=lambda x: 1 - np.tanh(x) ** 2):
    result = check_gradient(f, x, vjp=lambda w, x: w * slope(x) + extra(x))
    assert result.verdict == "fail"
    return result.findings[0].code, result.findings[0].message


@pytest.mark.parametrize("x", [X[0], X], ids=["one number", "several"])
def test_a_constant(x):
    where = "" if x.size == 1 else " in every element"
    right = ("gradient-offset", f"x gets the right one plus 0.1{where}")
    assert told(lambda x: 0.1, x=x) == right
    right = ("gradient-offset", f"x gets the right one minus 0.1{where}")
    assert told(lambda x: -0.1, x=x) == right


def test_a_multiple_of_the_input_and_anything_else():
    right = ("gradient-term", "x gets the right one plus 0.3 times x")
    assert told(lambda x: 0.3 * x) == right
    right = ("gradient-term", "x gets the right one plus the same for every cotangent")
    assert told(lambda x: FIXED) == right


def test_a_constant_where_the_elements_sum_to_zero_is_no_missing_term_of_a_normalisation():
    def centre(x):
        return x - x.mean()

    result = check_gradient(centre, X, vjp=lambda w, x: w - w.mean() + 0.1)
    assert result.findings[0].code == "gradient-offset"
    lacking = check_gradient(centre, X, vjp=lambda w, x: w)
    assert lacking.findings[0].code == "gradient-mean"


def test_a_factor_is_still_one():
    assert told(lambda x: 0.0, x=X[:1], slope=lambda x: 1.1 * (1 - np.tanh(x) ** 2))[0] == (
        "gradient-factor"
    )


class Shifted(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x.sum()

    @staticmethod
    def backward(ctx, w):
        return 2 * w + 0.1


def test_in_torch_and_jax():
    found = check_gradient(Shifted.apply, torch.tensor(0.7)).findings[0]
    assert (found.code, found.message) == (
        "gradient-offset",
        "x gets the right one plus 0.1",
    )
    f = jax.custom_vjp(lambda x: 2 * x)
    f.defvjp(lambda x: (2 * x, None), lambda _, w: (2 * w + 0.1,))
    assert check_gradient(f, jnp.array(0.7)).findings[0].code == "gradient-offset"


@pytest.mark.parametrize("size", [1, 4])
def test_gradients_that_are_exchanged_are_one_mistake_and_not_two(size):
    x, y = X[:size] + 2, X[:size] - 3
    for f, vjp in (
        (lambda x, y: x - y, lambda w, x, y: (-w, w)),
        (lambda x, y: x * y**2, lambda w, x, y: (w * 2 * x * y, w * y**2)),
    ):
        result = check_gradient(f, x, y, vjp=vjp)
        assert [finding.code for finding in result.findings[:2]] == ["gradient-swapped"] * 2
    both = check_gradient(lambda x, y: x * y**2, x, y, vjp=lambda w, x, y: (-w * y**2, -w))
    assert both.findings[0].code == "gradient-sign"


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_penalty_that_is_counted_twice_in_its_digits(dtype):
    """Its weight is measured, and 1 + 4e-6 is 1."""
    draw = np.random.default_rng(12)
    rows, counts = draw.normal(size=(40, 4)).astype(dtype), draw.poisson(2, 40)

    def loss(w):
        rates = np.exp(rows @ w)
        return rates.sum() - counts @ (rows @ w) + w @ w / 2

    def grad(w):
        return (rows.T @ (np.exp(rows @ w) - counts) + 2 * w).astype(dtype)

    w = (0.3 * draw.normal(size=4)).astype(dtype)
    found = check_gradient(loss, w, grad=grad, seed=1).findings[0]
    assert found.message == "w gets the right one plus w"
