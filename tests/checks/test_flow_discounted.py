"""Recurrences under a loss that counts the first steps for more, as discounted returns do."""

import jax
import jax.numpy as jnp
import pytest
import torch
from recurrences import drawn
from torch import nn
from torch.nn import functional

from pytest_gradcheck import check_flow

T = 30
STEPS = torch.randn(32, T, 8, generator=torch.Generator().manual_seed(0))
TAGS = torch.arange(T) % 5


class Hand(nn.Module):
    """A recurrence of two products."""

    def __init__(self):
        super().__init__()
        self.ih, self.hh = nn.Linear(8, 32), nn.Linear(32, 32)

    def forward(self, x, h):
        return torch.tanh(self.ih(x) + self.hh(h))


CELLS = {
    "tanh": lambda: nn.RNNCell(8, 32),
    "gru": lambda: nn.GRUCell(8, 32),
    "lstm": lambda: nn.LSTMCell(8, 32),
    "by hand": Hand,
}


class Unrolled(nn.Module):
    """A cell that is called at each step, by keyword as well."""

    def __init__(self, kind, gain):
        super().__init__()
        self.cell, self.head = CELLS[kind](), nn.Linear(32, 5)
        for name, p in self.cell.named_parameters():
            if "hh" in name and p.ndim > 1:
                with torch.no_grad():
                    for part in p.split(32):
                        nn.init.orthogonal_(part).mul_(gain)

    def forward(self, x):
        h, c, told = torch.zeros(32, 32), torch.zeros(32, 32), []
        for t in range(T):
            if isinstance(self.cell, nn.LSTMCell):
                h, c = self.cell(x[:, t], (h, c))
            elif isinstance(self.cell, nn.GRUCell):
                h = self.cell(x[:, t], hx=h)
            else:
                h = self.cell(x[:, t], h)
            told.append(self.head(h))
        return torch.stack(told, 1)


def discounted(factor):
    weights = factor ** torch.arange(float(T))

    def loss(model, x):
        each = functional.cross_entropy(
            model(x).transpose(1, 2), TAGS.expand(32, T), reduction="none"
        )
        return (each.mean(0) * weights).sum() / weights.sum()

    return loss


def codes(result):
    return [f.code for f in result.findings]


@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize("factor", [1.0, 0.8, 0.5])
def test_what_the_loss_itself_puts_on_the_first_steps_is_no_growth(kind, factor):
    result = check_flow(None, discounted(factor), STEPS, make=lambda: Unrolled(kind, 1.0), seed=0)
    assert (result.verdict, codes(result)) == ("pass", [])


@pytest.mark.parametrize(
    ("kind", "gain"), [("tanh", 6.0), ("gru", 16.0), ("lstm", 30.0), ("by hand", 6.0)]
)
@pytest.mark.parametrize("factor", [1.0, 0.9])
def test_growth_beyond_that_is_found(kind, gain, factor):
    result = check_flow(None, discounted(factor), STEPS, make=lambda: Unrolled(kind, gain), seed=0)
    assert "flow-time-growing" in codes(result)


def traced(factor, is_scan):
    weights = factor ** jnp.arange(T)

    def loss(p, batch):
        def step(h, u):
            h = jnp.tanh(h @ p["h"] + u @ p["x"])
            return h, h @ p["o"]

        h, steps = jnp.zeros((32, 32)), batch.swapaxes(0, 1)
        if is_scan:
            scores = jax.lax.scan(step, h, steps)[1]
        else:
            scores = []
            for t in range(T):
                h, z = step(h, steps[t])
                scores.append(z)
            scores = jnp.stack(scores)
        logs = jax.nn.log_softmax(scores)[jnp.arange(T), :, jnp.asarray(TAGS.numpy())]
        return -(logs.mean(1) * weights).sum() / weights.sum()

    return loss


@pytest.mark.parametrize("is_scan", [True, False])
def test_jax_alike(is_scan):
    batch = jnp.asarray(STEPS.numpy())
    for factor, gain, is_told in ((0.8, 1.0, False), (0.8, 6.0, True)):
        result = check_flow(None, traced(factor, is_scan), batch, make=drawn(gain), seed=0)
        assert ("flow-time-growing" in codes(result)) is is_told
        assert (result.verdict == "fail") is is_told
