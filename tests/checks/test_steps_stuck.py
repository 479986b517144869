"""Factors of a product that are all zero: none of them ever gets a gradient."""

import numpy as np
import pytest

from pytest_gradcheck import Training, check_step

torch = pytest.importorskip("torch")
nn = torch.nn


class Adapted(nn.Module):
    """Layers with low-rank adapters, whose factors begin as they are given."""

    def __init__(self, *factors, extra=False):
        super().__init__()
        self.base = nn.Linear(8, 4).requires_grad_(False)
        self.down = nn.ParameterList([nn.Parameter(a * torch.randn(2, 8)) for a, _ in factors])
        self.up = nn.ParameterList([nn.Parameter(b * torch.randn(4, 2)) for _, b in factors])
        self.head = nn.Linear(4, 1)
        self.extra = nn.Parameter(torch.zeros(3)) if extra else None

    def forward(self, x):
        pairs = zip(self.down, self.up, strict=True)
        return self.head(torch.tanh(self.base(x) + sum(x @ a.T @ b.T for a, b in pairs)))


def training(*factors, extra=False, frozen=False):
    torch.manual_seed(0)
    model = Adapted(*factors, extra=extra)
    if frozen:
        model.up.requires_grad_(False)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2)
    batches = [(torch.randn(n, 8), torch.randn(n, 1)) for n in (16, 16, 5)]

    def loss(batch):
        return nn.functional.mse_loss(model(batch[0]), batch[1])

    def step(batch):
        optimizer.zero_grad()
        loss(batch).backward()
        optimizer.step()

    return Training(step=step, loss=loss, batches=batches, model=model, optimizer=optimizer)


@pytest.mark.parametrize("factors", [[(1, 0)], [(0, 1)], [(1, 0), (0, 1)]])
def test_one_factor_may_be_zero(factors):
    result = check_step(lambda: training(*factors))
    assert result.verdict == "pass", result.headline


@pytest.mark.parametrize(
    ("factors", "names"),
    [
        ([(0, 0)], "down.0 and up.0 are zero"),
        ([(1, 0), (0, 0)], "down.1 and up.1 are zero"),
        ([(0, 0), (0, 0)], "down.0 and down.1 (and 2 more) are zero"),
    ],
)
@pytest.mark.parametrize("extra", [False, True])
def test_both_factors_are_zero(factors, names, extra):
    result = check_step(lambda: training(*factors, extra=extra))
    assert result.verdict == "fail"
    assert names in result.headline


def test_a_factor_that_is_frozen_at_zero():
    result = check_step(lambda: training((0, 0), frozen=True))
    assert result.verdict == "pass", result.headline


@pytest.mark.parametrize("start", [0.0, 1.0])
def test_two_numbers_of_a_step_in_numpy(start):
    def made():
        params = {"a": np.full(2, start), "b": np.zeros(2), "c": np.ones(2)}

        def loss(params, batch):
            return np.mean((batch[0] * params["a"] * params["b"] + params["c"] - batch[1]) ** 2)

        def step(params, state, batch):
            x, y = batch
            r = 2 * (x * params["a"] * params["b"] + params["c"] - y) / y.size
            by = {"a": x * params["b"], "b": x * params["a"], "c": 1.0}
            return {k: v - 0.1 * (r * by[k]).sum(0) for k, v in params.items()}, state

        rng = np.random.default_rng(0)
        batches = [(rng.normal(size=(n, 2)), rng.normal(size=(n, 2))) for n in (8, 8, 3)]
        return Training(step=step, loss=loss, batches=batches, params=params, opt_state={})

    result = check_step(made, optimizer="sgd", lr=0.1)
    assert result.verdict == ("pass" if start else "fail"), result.headline
    assert start or "a and b are zero" in result.headline
