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


@pytest.mark.parametrize("seed", [4, 7, 10, 16, 28])
def test_errors_that_cancel_are_not_taken_for_right(seed):
    """All elements are wrong by a little; along some directions only a part of them seems so."""
    x = np.random.default_rng(15).normal(size=(9, 4)).astype(np.float32)

    def hat(x):
        return (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-3)

    def vjp(w, x):
        wrong = w - w.mean(0) - hat(x) * (w * hat(x)).sum(0) / (len(x) - 1)
        return (wrong / np.sqrt(x.var(0) + 1e-3)).astype(np.float32)

    assert check_gradient(hat, x, vjp=vjp, seed=seed).findings[0].code != "gradient-masked"


def test_few_elements_have_a_sign_by_chance():
    x = np.array([0.4, -0.7, 1.3, -0.2, -0.9, 0.6, -1.1, 0.8])

    def change(g, x):
        wrong = g.copy()
        wrong[[0, 2, 5, 7]] *= np.array([1.5, 0.5, 2.0, 0.8])
        return wrong

    _, told = named(change, x=x)
    assert told == "x is wrong, only at index 0, 2, 5 and 7 of axis 0"
    _, told = named(without([0, 2, 5, 7]), x=x)
    assert told == "x gets zero, only where it is positive"  # which zeros share
    _, told = named(without([0, 2]), x=x[:4])
    assert told == "x[0] and x[2] are wrong; no other is positive"
    for x in (X, DRAW.normal(size=(60, 60))):
        for share in (0.0, 0.3 + x**2):
            _, told = named(lambda g, x, s=share: np.where(x < 0, g, g * s), x=x)
            assert told.endswith("only where it is positive")


class Pair(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, y):
        ctx.save_for_backward(x, y)
        return x.sin() * y, x.exp(), y.sum()

    @staticmethod
    def backward(ctx, b, a, c):  # named a and b in the forward
        x, y = ctx.saved_tensors
        return a * x.cos() * y + b * x.exp(), a * x.sin() + c


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_cotangents_that_are_taken_for_each_other(dtype):
    x, y = torch.from_numpy(X).to(dtype), torch.from_numpy(X[::-1].copy()).to(dtype)
    found = check_gradient(Pair.apply, x, y).findings
    told = "the cotangents of outputs 0 and 1 are swapped"
    assert [(f.code, f.message) for f in found] == [
        ("gradient-exchanged", f"in x {told}"),
        ("gradient-exchanged", f"in y {told}"),
    ]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_outputs_by_hand_in_their_own_precision(dtype):
    x, y = (np.abs(a).astype(dtype) for a in (X, X + 0.1))

    def polar(x, y):
        return {"radius": np.hypot(x, y), "angle": np.arctan2(y, x)}

    def vjp(w, x, y, turn=1):
        r, a = w["radius"] / np.hypot(x, y), turn * w["angle"] / (x * x + y * y)
        return [g.astype(dtype) for g in (r * x - a * y, r * y + a * x)]

    def swapped(w, x, y):
        return vjp({"radius": w["angle"], "angle": w["radius"]}, x, y)

    assert check_gradient(polar, x, y, vjp=vjp).verdict == "pass"
    found = check_gradient(polar, x, y, vjp=swapped).findings
    assert {f.code for f in found} == {"gradient-exchanged"}
    found = check_gradient(polar, x, y, vjp=lambda w, x, y: vjp(w, x, y, -1)).findings
    assert found[0].message == "x is wrong only in the derivative of output angle"
