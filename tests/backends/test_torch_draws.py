"""Random numbers of a loss that is computed in float64: those that it draws in float32."""

import pytest
import torch
from torch import nn

from pytest_gradcheck.backends.torch_draws import Draws

F = nn.functional
ONES = (3, 40)
DRAWN = {
    "rand_like": torch.rand_like,
    "randn_like": torch.randn_like,
    "a like with a precision": lambda x: torch.randn_like(x, dtype=x.dtype),
    "rand": lambda x: torch.rand(ONES),
    "randn of a precision": lambda x: torch.randn(*ONES, dtype=x.dtype),
    "normal of numbers": lambda x: torch.normal(0.5, 2.0, ONES),
    "normal of tensors": lambda x: torch.normal(x, x),
    "in place": lambda x: x.clone().normal_(1.0, 2.0),
    "uniform in place": lambda x: x.clone().uniform_(-1, 1),
    "new": lambda x: x.new_empty(ONES).log_normal_(),
    "exponential": lambda x: x.clone().exponential_(),
    "chances": lambda x: torch.bernoulli(0.3 * x),
    "their method": lambda x: (0.3 * x).bernoulli(),
    "counts": torch.poisson,
    "chances in place": lambda x: x.clone().bernoulli_(0.3),
    "dropout": lambda x: F.dropout(x, 0.4),
    "channels dropped": lambda x: F.dropout1d(x[None], 0.4),
    "alpha dropout": lambda x: F.alpha_dropout(x, 0.4),
    "Gumbel": F.gumbel_softmax,
    "a distribution": lambda x: torch.distributions.Normal(x, 0.1 + x).rsample(),
    "Laplace": lambda x: torch.distributions.Laplace(x, x).rsample(),
    "gamma": lambda x: torch.distributions.Gamma(x, x).rsample(),
    "in vmap": lambda x: torch.func.vmap(torch.randn_like, randomness="different")(x),
}


def drawn(draw, dtype):
    torch.manual_seed(0)
    return draw(torch.ones(ONES, dtype=dtype))


def drawn_wide(draw, default=torch.float32):
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with Draws(default):
            return drawn(draw, torch.float64)
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("name", DRAWN)
def test_the_same_numbers_are_drawn(name):
    wide = drawn_wide(DRAWN[name])
    assert wide.dtype == torch.float64
    torch.testing.assert_close(
        wide, drawn(DRAWN[name], torch.float32).double(), rtol=1e-5, atol=1e-5
    )


def test_all_other_digits_are_those_of_float64():
    third = torch.ones(1000, dtype=torch.float64) / 3
    with Draws(torch.float32):
        torch.manual_seed(0)
        kept = F.dropout(third, 0.5)
    assert set(kept.tolist()) == {0.0, 2 * third[0].item()}


@pytest.mark.parametrize("is_tensor", [(1, 1), (1, 0), (0, 1)], ids=["both", "mean", "deviation"])
def test_a_mean_that_float32_does_not_hold(is_tensor):
    third = torch.full(ONES, 1 / 3, dtype=torch.float64)
    mean, std = (third if is_given else 1 / 3 for is_given in is_tensor)
    torch.manual_seed(0)
    unit = torch.randn(ONES, dtype=torch.float32).double()
    torch.manual_seed(0)
    with Draws(torch.float32):
        assert torch.equal(torch.normal(mean, std), mean + std * unit)


LEFT = {
    "asked for in float32": lambda x: torch.randn(ONES, dtype=torch.float32),
    "a like in float32": lambda x: torch.rand_like(x, dtype=torch.float32),
    "written to float32": lambda x: torch.rand(ONES, out=torch.empty(ONES, dtype=torch.float32)),
    "whole numbers": lambda x: torch.randint(0, 9, ONES),
    "nothing drawn": torch.sin,
}


@pytest.mark.parametrize("name", LEFT)
def test_what_is_left_as_it_is(name):
    given = torch.full(ONES, 0.7, dtype=torch.float64)
    torch.manual_seed(0)
    expected = LEFT[name](given)
    torch.manual_seed(0)
    with Draws(torch.float32):
        assert torch.equal(LEFT[name](given), expected)


def test_whoever_draws_in_float64_by_default_goes_on():
    torch.manual_seed(0)
    expected = torch.randn(ONES, dtype=torch.float64)
    assert torch.equal(drawn_wide(lambda x: torch.randn(ONES), torch.float64), expected)
