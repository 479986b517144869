"""What a check says of calls that nearly fit, in the words that help."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from pytest_gradcheck import UsageError, check_gradient

X = np.linspace(-1.0, 1.0, 5)
SWAPPED = "vjp takes its cotangent last, and is right with it there"
FIRST = "take it first, as vjp(cotangent, *inputs) is called"


def tanh_vjp(g, x):
    return g * (1 - np.tanh(x) ** 2)


def test_a_vjp_with_its_arguments_swapped_is_told_so():
    result = check_gradient(np.tanh, X, vjp=lambda x, g: tanh_vjp(g, x))
    assert result.verdict == "fail"
    assert result.headline == f"wrong gradient of tanh: {SWAPPED}"
    assert result.advice == (FIRST,)


def test_one_that_raises_for_it_too():
    a = np.arange(6.0).reshape(2, 3)
    with pytest.raises(UsageError, match=re.escape(f"{SWAPPED}; {FIRST}")):
        check_gradient(lambda x: a @ x, np.ones(3), vjp=lambda x, g: a.T @ g)


def test_one_that_is_wrong_either_way_is_not():
    result = check_gradient(np.tanh, X, vjp=lambda g, x: 2 * tanh_vjp(g, x))
    assert result.findings[0].code == "gradient-factor"
    assert SWAPPED not in result.headline
    result = check_gradient(np.tanh, X, vjp=lambda x, g: 2 * tanh_vjp(g, x))
    assert SWAPPED not in result.headline


def test_a_result_is_true_where_it_is_green():
    assert check_gradient(np.tanh, X, vjp=tanh_vjp)
    assert not check_gradient(np.tanh, X, vjp=lambda g, x: 2 * tanh_vjp(g, x))
    assert not check_gradient(np.tanh, X, vjp=tanh_vjp, tolerance=1e-3, resolution=1e-6)


def test_inputs_as_other_checkers_take_them_are_told():
    x = torch.ones(3)
    for inputs in ((x, x), [x, x]):
        with pytest.raises(UsageError, match="give the inputs one by one, as in gradcheck"):
            check_gradient(torch.atan2, inputs)
    with pytest.raises(UsageError, match="give the apply of a custom function"):
        check_gradient(Square.forward, x)


def test_a_function_that_draws_anew_is_told_so_first():
    made = (np.random.default_rng(k) for k in itertools.count())
    result = check_gradient(lambda x: x * next(made).normal(), X, vjp=lambda w, x: w)
    assert result.verdict == "undecided"
    assert "two equal calls of the function give different values" in result.headline
    assert result.advice == (
        "make it a function of its inputs: no counter, no generator of its own",
    )


def test_inputs_in_another_order_than_those_of_the_function_are_told():
    def f(x, y):
        return (x * y**2).sum()

    told = "grad takes (y, x), the function (x, y): both are called in the order of the function"
    result = check_gradient(f, X + 2, X - 3, grad=lambda y, x: (y**2, 2 * x * y))
    assert result.verdict == "fail"
    assert result.advice[0] == told
    right = check_gradient(f, X + 2, X - 3, grad=lambda x, y: (y**2, 2 * x * y))
    assert right.verdict == "pass"
    other = check_gradient(f, X + 2, X - 3, grad=lambda x, y: (y**2, x * y))
    assert not any("order" in advice for advice in other.advice)


def test_a_derivative_that_takes_other_arguments_is_told_its_form():
    with pytest.raises(UsageError, match=r"; it is called as vjp\(cotangent, x\)$"):
        check_gradient(np.tanh, X, vjp=lambda x: 1 - np.tanh(x) ** 2)
    with pytest.raises(UsageError, match=r"; it is called as grad\(a\)$"):
        check_gradient(np.sum, X, grad=lambda: X)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("tol", "tolerance= is the relative error"),
        ("rtol", "tolerance= is the relative error"),
        ("eps", "the step of the differences is found from the function"),
        ("fast_mode", "directions are drawn until an error of resolution= would show"),
        ("raise_exception", "assert_gradient and the fixture raise"),
        ("argnums", "name the inputs under test with wrt="),
        ("jacobian", "did you mean jac=?"),
        ("modus", "did you mean modes=?"),
    ],
)
def test_what_other_checkers_call_an_argument_leads_to_ours(name, told):
    with pytest.raises(UsageError) as caught:
        check_gradient(lambda x: np.tanh(x), X, vjp=tanh_vjp, **{name: 1e-3})
    assert str(caught.value).startswith(
        f"neither the check nor the function takes an argument {name!r}; {told}"
    )


def test_a_resolution_below_the_tolerance_is_told_so():
    result = check_gradient(np.tanh, X, vjp=tanh_vjp, tolerance=1e-3, resolution=1e-6)
    assert result.verdict == "undecided"
    assert result.advice == (
        "resolution=1e-06 asks for errors that tolerance=0.001 takes as right: give a resolution "
        "above the tolerance",
    )


def test_the_budget_is_told_as_it_is_written():
    told = [
        next(f.message for f in result.findings if f.code == "budget")
        for budget in (3, "0.0001s")
        for result in [check_gradient(np.tanh, X, vjp=tanh_vjp, budget=budget, resolution=1e-6)]
    ]
    assert "the budget (3 evaluations) was spent" in told[0]
    assert "the budget (0.0001s) was spent" in told[1]


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, g):
        return 2 * g * ctx.saved_tensors[0]


def test_a_missing_jvp_is_told_in_the_words_of_the_framework():
    modes = ("reverse", "forward")
    result = check_gradient(Square.apply, torch.ones(3), modes=modes)
    assert result.findings[0].code == "forward-missing"
    assert result.advice == ("write the jvp of the custom function",)
    square = jax.custom_vjp(lambda x: x * x)
    square.defvjp(lambda x: (x * x, x), lambda x, g: (2 * g * x,))
    result = check_gradient(square, jnp.ones(3), modes=modes)
    assert result.advice == ("write a rule by custom_jvp in place of custom_vjp",)


@pytest.mark.parametrize("at_kink", ["accept", "fail"])
def test_a_function_that_counts_its_calls_has_no_kink_for_it(at_kink):
    calls = itertools.count(1)
    result = check_gradient(lambda x: x * next(calls), torch.ones(3), at_kink=at_kink)
    assert result.verdict != "pass"
    codes = {f.code for f in result.findings}
    assert "nondeterministic" in codes
    assert not codes & {"kink", "jump"}


def test_the_frames_of_a_check_are_not_shown_where_a_rule_of_jax_raises():
    square = jax.custom_vjp(lambda x: x * x)

    def backward(x, g):
        raise NameError("no such name")

    square.defvjp(lambda x: (x * x, x), backward)
    with pytest.raises(
        UsageError, match="derivative of square raised NameError: no such"
    ) as caught:
        check_gradient(square, jnp.ones(3), label="square")
    assert type(caught.value.__cause__) is NameError
    assert caught.value.__cause__.__cause__ is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_straight_through_estimator_is_told_how_to_declare_itself(dtype):
    def quantised(x):
        return x + (x.round() - x).detach()

    result = check_gradient(quantised, torch.tensor([0.2, 1.3, -0.8, 2.4], dtype=dtype))
    told = "wrong gradient of quantised: x gets a gradient, though the function is flat along it"
    assert (result.verdict, result.headline) == ("fail", told)
    assert "intended=" in result.advice[0]


def test_an_ignored_cotangent_is_told_in_one_line():
    class Huber(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return torch.nn.functional.huber_loss(x, x * 0)

        @staticmethod
        def backward(ctx, cotangent):
            (x,) = ctx.saved_tensors
            return x.clamp(-1, 1) / x.numel()

    result = check_gradient(Huber.apply, torch.linspace(-2, 2, 7), label="huber")
    assert "…" not in result.headline


@pytest.mark.parametrize("f", [torch.argmax, lambda x: x > 0])
def test_whole_numbers_of_torch_are_not_taken_for_sparse_ones(f):
    with pytest.raises(UsageError, match="have no derivative"):
        check_gradient(f, torch.randn(3))
