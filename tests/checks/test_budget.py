"""A budget ends the search, what was left is said, and an interrupt leaves everything restored."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from pytest_gradcheck import check_gradient
from pytest_gradcheck.checks import kinks


def fading(depth=12, width=40):
    torch.manual_seed(0)
    layers = [m for _ in range(depth) for m in (torch.nn.Linear(width, width), torch.nn.GELU())]
    return torch.nn.Sequential(*layers).double()


def test_the_budget_ends_the_search_and_names_what_is_left():
    model, x = fading(), torch.randn(4, 40).double()
    free = check_gradient(model, x)
    result = check_gradient(model, x, budget=7)
    assert result.context.evaluations < 18 < free.context.evaluations
    assert result.verdict == "undecided"
    assert result.findings[0].code == "budget"
    assert "left unchecked: " in result.findings[0].message
    assert "budget=" in result.advice[0]


def test_a_budget_in_seconds():
    result = check_gradient(fading(), torch.randn(4, 40).double(), budget="0.001s")
    assert result.findings[0].code == "budget"


def test_a_wrong_gradient_is_still_accused():
    result = check_gradient(np.sin, np.ones(3), vjp=lambda w, x: 2 * w * np.cos(x), budget=10)
    assert result.verdict == "fail"


def test_modes_that_were_left_are_named():
    result = check_gradient(
        torch.sin, torch.ones(3).double(), modes=("reverse", "forward"), budget=6
    )
    assert "forward" in next(f for f in result.findings if f.code == "budget").message


def test_an_interrupt_leaves_everything_as_it_was():
    model, count = torch.nn.Linear(3, 2), 0
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def interrupted(x):
        nonlocal count
        count += 1
        model.weight.data.add_(1.0)
        torch.rand(3)
        if count == 7:
            raise KeyboardInterrupt
        return model(x)

    torch.manual_seed(3)
    state = torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt):
        check_gradient(interrupted, torch.ones(3))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model.weight.requires_grad


def test_a_contradiction_is_confirmed_without_evaluating_anything_twice():
    x, seen = np.array([0.3, 0.7, 1.1]), []

    def sine(x):
        seen.append(x.copy())
        return np.sin(x)

    result = check_gradient(sine, x, vjp=lambda w, x: 2 * w * np.cos(x))
    assert result.verdict == "fail"
    # Steps of the last bits may end at the same numbers.
    beside = Counter(point.tobytes() for point in seen if abs(point - x).max() > 1e-12)
    assert len(beside) > 40
    repeated = [point for point, count in beside.items() if count > 1]
    assert len(repeated) == 1  # where it was asked whether all is right a little beside


def test_an_input_that_moves_nothing_is_seen_to_in_five_steps():
    x, rest = np.array([0.3, 0.7, 1.1]), np.ones(3)
    alone = check_gradient(np.sin, x, vjp=lambda w, x: w * np.cos(x)).context
    both = check_gradient(
        lambda x, rest: np.sin(x), x, rest, vjp=lambda w, x, rest: (w * np.cos(x), 0 * rest)
    )
    assert [f.code for f in both.findings] == ["independent-input"]
    assert both.context.evaluations == alone.evaluations + 2 * 5


def test_the_slopes_at_a_jump_are_asked_for_only_where_a_pass_depends_on_them(monkeypatch):
    monkeypatch.setattr(kinks, "outside_slope", lambda survey: pytest.fail("asked"))
    x, labels = np.array([0.3, 0.7]), np.ones(2)
    result = check_gradient(
        lambda x, labels: np.where(labels == 1, x, 0.0),
        x,
        labels,
        vjp=lambda w, x, labels: (w * (labels == 1), 0 * labels),
    )
    assert (result.verdict, result.findings[0].code) == ("undecided", "jump")


def rounded(influence):
    """A function that an input moves by so much, and whose claim for it is rounding alone."""
    x, bias = np.linspace(0.3, 1.1, 50), np.ones(4)
    return check_gradient(
        lambda x, bias: np.sin(x) + influence * bias.sum(),
        x,
        bias,
        vjp=lambda w, x, bias: (w * np.cos(x), 1e-19 * w.sum() * bias),
    )


def test_an_input_that_no_step_could_show_is_looked_at_once_by_itself():
    result = rounded(0.0)
    assert [f.code for f in result.findings] == ["below-noise"]
    assert result.context.evaluations < 50


def test_one_look_at_it_shows_what_is_far_more_than_rounding():
    assert rounded(1e-9).verdict == "fail"
