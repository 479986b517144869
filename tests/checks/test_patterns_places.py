"""Masks by what they hide, several outputs at once, and no condition that holds by chance."""

import numpy as np
import pytest
import torch

from pytest_gradcheck import check_gradient

DRAW = np.random.default_rng(3)
X = DRAW.normal(size=(7, 6))


def relu(x):
    return np.maximum(x, 0.0)


def named(change, f=np.sin, slope=np.cos, x=X):
    result = check_gradient(f, x, vjp=lambda w, x: change(w * slope(x), x))
    assert result.verdict == "fail"
    return result.findings[0].code, result.findings[0].message


def without(index):
    def change(g, x):
        kept = g.copy()
        kept[index] = 0
        return kept

    return change


@pytest.mark.parametrize(
    ("index", "told"),
    [
        (np.s_[4:], "from index 4 of axis 0 on"),
        (np.s_[:, 3:], "from index 3 of axis 1 on"),
        (np.s_[2:4], "at index 2 to 3 of axis 0"),
        (np.s_[6], "at the last index of axis 0"),
        (np.s_[4:, 3:], "in 9 of 42 elements"),
    ],
)
def test_a_block_that_is_left_out(index, told):
    assert named(without(index)) == ("gradient-masked", f"x gets zero, only {told}")


@pytest.mark.parametrize(
    ("index", "told"), [(np.s_[2], "2 of axis 0"), (np.s_[:, 4], "4 of axis 1")]
)
def test_one_slice(index, told):
    def change(g, x):
        wrong = g.copy()
        wrong[index] *= np.linspace(1.5, 3, len(wrong[index]))
        return wrong

    assert named(change) == ("gradient-masked", f"x is wrong, only at index {told}")


def test_what_should_be_zero_and_what_gets_it():
    def clipped(x):
        return np.clip(x, -0.5, 0.5)

    _, told = named(lambda g, x: g, clipped, np.ones_like)
    assert told.endswith(" of 12 elements tried, where zero is right")
    _, told = named(lambda g, x: g * (x >= 0.5), relu, lambda x: (x > 0) * 1.0)
    assert told.endswith(" of 12 elements tried, which get zero")


def test_a_threshold_is_not_taken_for_a_condition_that_holds_by_chance():
    x = X.copy()
    x[0] = -abs(x[0])
    wrong = named(lambda g, x: g * (x >= 0.5), relu, lambda x: (x > 0) * 1.0, x)
    assert wrong[0] == "wrong-gradient"


def test_a_normalisation_with_a_small_number_inside():
    def normed(x):
        return (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)

    found = check_gradient(normed, X, vjp=lambda w, x: w / np.sqrt(x.var(1, keepdims=True) + 1e-5))
    assert found.findings[0].message == "x lacks a term of the normalisation over axis 1"


def test_several_outputs_that_a_backward_leaves_out():
    class Moments(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.sin(), x.square().mean(), x.exp()

        @staticmethod
        def backward(ctx, w, *others):
            (x,) = ctx.saved_tensors
            return w * x.cos()

    found = check_gradient(Moments.apply, torch.from_numpy(X)).findings[0]
    assert (found.code, found.message) == (
        "gradient-output",
        "x is wrong only in the derivative of outputs 1 and 2",
    )


@pytest.mark.parametrize(
    ("index", "told"),
    [
        (np.s_[[1, 4, 6]], "at index 1, 4 and 6 of axis 0"),
        (np.s_[1:3], "at index 1 to 2 of axis 0"),
        (np.s_[:, 1::2], "at index 1, 3 and 5 of axis 1"),
        (np.s_[:, 3:5], "at index 3 to 4 of axis 1"),
        (np.s_[1:], "behind the first index of axis 0"),
    ],
)
def test_some_slices(index, told):
    def change(g, x):
        wrong = g.copy()
        wrong[index] *= np.linspace(1.5, 3, wrong[index].size).reshape(wrong[index].shape)
        return wrong

    assert named(change) == ("gradient-masked", f"x is wrong, only {told}")


def test_columns_of_one_gate_are_not_taken_for_a_triangle():
    x = DRAW.normal(size=(3, 16))

    def change(g, x):
        wrong = g.copy()
        wrong[:, 4:8] *= x[:, 4:8]
        return wrong

    _, told = named(change, x=x)
    assert told == "x is wrong, only at index 4 to 7 of axis 1"


def test_many_slices_of_a_long_axis():
    x = DRAW.normal(size=(200, 4))

    def change(g, x):
        return np.where(np.arange(200)[:, None] % 3 == 1, 1.5 * g * x, g)

    _, told = named(change, x=x)
    assert "axis" not in told


def test_an_output_that_is_left_out_is_no_mean():
    class Moments(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.mean(-1), x.var(-1, unbiased=False)

        @staticmethod
        def backward(ctx, w, left_out):
            return w[:, None].expand(7, 6) / 6

    (found,) = check_gradient(Moments.apply, torch.from_numpy(X)).findings
    assert found.message == "x is wrong only in the derivative of output 1"
