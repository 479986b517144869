"""Kinks: what belongs to one is accepted, what does not is named, and the three ways to ask."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pytest_gradcheck import UsageError, assert_gradient, check_gradient

SEEDS = range(6)


def codes(result):
    return [finding.code for finding in result.findings]


def largest(x):
    return float(np.max(x))


def shared(x):
    return (x == x.max()) / np.sum(x == x.max())


def given_to_one(x):
    return 1.0 * (np.arange(len(x)) == np.argmax(x))


def given_to_each(x):
    return 1.0 * (x == x.max())


def relu(x):
    return np.maximum(x, 0)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("grad", [shared, given_to_one])
def test_a_subgradient_at_a_tie_of_max_is_right(grad, seed):
    result = check_gradient(largest, np.array([2.0, 2.0, 2.0, 1.0]), grad=grad, seed=seed)
    assert result.verdict == "pass"
    assert codes(result) == ["kink"]


@pytest.mark.parametrize("seed", SEEDS)
def test_the_whole_gradient_for_each_tied_element_is_wrong(seed):
    result = check_gradient(largest, np.array([2.0, 2.0, 2.0, 1.0]), grad=given_to_each, seed=seed)
    assert result.verdict == "fail"
    assert "not-a-subgradient" in codes(result)
    finding = next(f for f in result.findings if f.code == "not-a-subgradient")
    low, high = sorted((finding.number("left"), finding.number("right")))
    assert not low <= finding.number("claimed") <= high
    assert "at_kink='nudge'" in result.advice[0]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("at_zero", "verdict"),
    [(0.0, "pass"), (0.5, "pass"), (1.0, "pass"), (2.0, "fail"), (-0.5, "fail")],
)
def test_relu_at_zero_takes_any_value_between_its_slopes(at_zero, verdict, seed):
    def vjp(w, x):
        return w * np.where(x == 0, at_zero, x > 0)

    assert check_gradient(relu, np.zeros(4), vjp=vjp, seed=seed).verdict == verdict


def test_the_output_that_has_the_kink_is_named():
    def vjp(w, x):
        return w * np.where(x == 0, 3.0, x > 0)

    result = check_gradient(relu, np.array([1.0, 0.0, -1.0]), vjp=vjp)
    (finding,) = (f for f in result.findings if f.code == "not-a-subgradient")
    assert finding.where == "[1]"


@pytest.mark.parametrize("seed", SEEDS)
def test_kinks_that_bend_both_ways_are_not_judged(seed):
    rng = np.random.default_rng(0)
    weights, out = rng.normal(size=(6, 5)), rng.normal(size=6)
    result = check_gradient(
        lambda x: relu(weights @ x) @ out,
        np.zeros(5),
        grad=lambda x: weights.T @ (out * (weights @ x > 0)),
        seed=seed,
    )
    assert result.verdict == "pass"


@pytest.mark.parametrize("seed", SEEDS)
def test_a_custom_function_of_torch_is_held_to_its_value_at_the_kink(seed):
    class Largest(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.max()

        @staticmethod
        def backward(ctx, g):
            (x,) = ctx.saved_tensors
            return g * (x == x.max())

    result = check_gradient(Largest.apply, torch.tensor([1.0, 1.0, 0.0]), seed=seed)
    assert result.verdict == "fail"
    assert "not-a-subgradient" in codes(result)


def test_a_gradient_that_is_wrong_at_the_point_alone_says_so():
    # The automatic derivative of both parts is 0 at 0, and that of x is 1.
    result = check_gradient(lambda x: torch.relu(x) - torch.relu(-x), torch.zeros(3).double())
    assert result.verdict == "fail"
    assert "right-beside" in codes(result)
    assert "cancel" in result.advice[0]


def test_nudge_leaves_the_point_itself_out():
    result = check_gradient(largest, np.ones(3), grad=given_to_each, at_kink="nudge")
    assert result.verdict == "pass"
    assert codes(result) == ["kink"]


def test_fail_forbids_kinks():
    result = check_gradient(largest, np.ones(3), grad=shared, at_kink="fail")
    assert result.verdict == "fail"
    assert codes(result)[0] == "kink"
    assert "at_kink='accept'" in result.advice[0]
    smooth = check_gradient(largest, np.arange(3.0), grad=shared, at_kink="fail")
    assert smooth.verdict == "pass"


@pytest.mark.parametrize("at_kink", ["accept", "nudge"])
def test_a_wrong_gradient_is_found_beside_a_kink(at_kink):
    result = check_gradient(largest, np.ones(3), grad=lambda x: 1.1 * shared(x), at_kink=at_kink)
    assert result.verdict == "fail"


@pytest.mark.parametrize("seed", SEEDS)
def test_a_kink_between_the_point_and_the_step_is_not_trusted(seed):
    # Steps from 1e-4 on agree on a mean of the two slopes.
    x = np.array([1e-5, 0.3])
    result = check_gradient(
        lambda x: float(np.abs(x).sum() + np.sin(x[1])),
        x,
        grad=lambda x: np.sign(x) + np.array([0.0, np.cos(x[1])]),
        seed=seed,
    )
    assert result.verdict == "pass"


# --- derivatives that are meant to differ ---------------------------------------------------------


class Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, g):
        return g


def test_an_intended_difference_is_shown_and_not_failed():
    result = assert_gradient(
        Rounded.apply, torch.linspace(-2.3, 2.4, 5), intended="straight-through estimator"
    )
    assert result.verdict == "pass"
    assert "straight-through estimator" in result.headline
    assert codes(result)[0] == "intended"
    assert check_gradient(Rounded.apply, torch.linspace(-2.3, 2.4, 5)).verdict == "fail"


def test_an_intention_that_is_not_needed_is_said():
    result = check_gradient(torch.sin, torch.ones(2), intended="no reason")
    assert result.verdict == "pass"
    assert codes(result)[0] == "intended-unused"


def test_an_intended_difference_does_not_excuse_a_wrong_form():
    result = check_gradient(np.sum, np.ones(2), grad=lambda x: np.ones(3), intended="surrogate")
    assert result.verdict == "fail"


@pytest.mark.parametrize("intended", ["", " ", True, 1])
def test_an_intention_needs_a_reason(intended):
    with pytest.raises(UsageError, match="the reason in words"):
        check_gradient(torch.sin, torch.ones(2), intended=intended)


def test_a_label_among_the_inputs_is_named():
    x, label = torch.tensor([0.3, -0.2, 1.2]).double(), torch.tensor([1.0, -1.0, 1.0]).double()
    result = check_gradient(torch.nn.functional.hinge_embedding_loss, x, label)
    assert result.verdict == "pass"
    assert "jump" in [finding.code for finding in result.findings if finding.severity == "warn"]


def test_nothing_beside_a_jump_is_no_empty_pass():
    label = torch.tensor([1.0, -1.0, 1.0]).double()

    def loss(x, label):
        return torch.where(label.abs() == 1, x * x * label, 0 * x).sum() + 0 * label.sum()

    def labelled(both):
        return loss(both[0], both[1])

    result = check_gradient(labelled, torch.stack([label + 1.5, label]))
    assert (result.verdict, result.findings[0].code) == ("undecided", "jump")
    assert "wrt=" in result.advice[0]


@pytest.mark.parametrize(
    ("f", "seeds"),
    [
        (torch.max, (22, 26)),
        (lambda x: torch.relu(1 - x).sum(), (25, 29)),
        (lambda x: x.cummax(0).values, (26, 34)),
        (lambda x: x.norm(1), (44,)),
        (lambda x: torch.nn.functional.max_pool1d(x[None], 2), (22, 47)),
    ],
)
def test_steps_of_a_direction_that_bends_are_no_measure_of_others(f, seeds):
    """Taken over, large ones showed no kink in the next direction, and nothing was said."""
    x = torch.tensor([0.0, 1.0, -1.0, 0.0, 2.0, 2.0], dtype=torch.float64)
    for seed in seeds:
        assert check_gradient(f, x, seed=seed).verdict == "pass"
