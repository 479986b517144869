"""Hooks on parameters run on the gradient under test, as in training."""

import pytest
import torch
from torch import nn

from pytest_gradcheck import check_gradient

X = torch.tensor([[0.3, -1.0, 2.0], [1.5, 0.2, -0.7]])


def hooked(hook):
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    model.weight.register_hook(hook)
    return model


@pytest.mark.parametrize("modes", [("reverse",), ("reverse", "batched")])
def test_a_hook_that_doubles_the_gradient_is_seen(modes):
    result = check_gradient(hooked(lambda g: g * 2), X, modes=modes)
    assert result.verdict == "fail"
    assert (result.findings[0].code, result.findings[0].where) == ("gradient-factor", "weight")
    (note,) = (f for f in result.findings if f.code == "gradient-hook")
    assert "a hook on weight" in note.message


def test_one_that_is_meant_is_declared():
    result = check_gradient(hooked(lambda g: g * 2), X, intended="twice the rate for the weight")
    assert result.verdict == "pass"


@pytest.mark.parametrize("order", [1, 2])
def test_one_that_only_looks_is_no_fault(order):
    seen = []
    result = check_gradient(
        hooked(lambda g: seen.append(tuple(g.shape))), X, modes=("reverse", "forward"), order=order
    )
    assert result.verdict == "pass", result.headline
    assert set(seen) == {(2, 3)}
    assert not any(f.code == "gradient-hook" for f in result.findings)


def test_the_module_keeps_its_hook_and_gets_no_gradient():
    model = hooked(lambda g: g * 2)
    before = dict(model.weight._backward_hooks)
    check_gradient(model, X)
    assert model.weight._backward_hooks == before
    assert model.weight.grad is None
