"""The user's state is bit-identical after a check, also when their code raises."""

import copy
import random

import numpy as np
import pytest
import torch
from torch import nn

from pytest_gradcheck import UsageError, check_flow

X = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))


def trained():
    """A model with buffers, gradients, a mode and an optimizer with state."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Linear(8, 1)
    )
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        loss(model, X).backward()
        optimizer.step()
    return model, optimizer


def loss(model, batch):
    random.random()
    np.random.rand()
    return model(batch).square().mean()


def snapshot(model, optimizer):
    return copy.deepcopy(
        (
            dict(model.state_dict().items()),
            [None if p.grad is None else p.grad for p in model.parameters()],
            [p.requires_grad for p in model.parameters()],
            model.training,
            optimizer.state_dict(),
            torch.get_rng_state(),
            random.getstate(),
            np.random.get_state(legacy=False)["state"]["pos"],
            torch.is_grad_enabled(),
        )
    )


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("with_optimizer", [False, True])
def test_nothing_of_the_users_changes(mode, with_optimizer):
    model, optimizer = trained()
    getattr(model, mode)()
    before = snapshot(model, optimizer)
    check_flow(model, loss, X, optimizer=optimizer if with_optimizer else None)
    assert same(before, snapshot(model, optimizer))
    assert not any(part._forward_hooks for part in model.modules())


def test_nothing_changes_when_the_loss_raises():
    model, optimizer = trained()
    calls = []

    def fails(model, batch):
        value = loss(model, batch)
        with torch.no_grad():
            model[0].weight.add_(1.0)
        calls.append(1)
        if len(calls) > 1:
            raise RuntimeError("gone")
        return value

    before = snapshot(model, optimizer)
    with pytest.raises(UsageError, match="raised RuntimeError: gone"):
        check_flow(model, fails, X)
    assert same(before, snapshot(model, optimizer))


def test_the_same_seed_gives_the_same_numbers():
    def make():
        return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 1))

    one, other = (check_flow(None, loss, X, make=make, seed=3) for _ in range(2))
    assert one.table("layers") == other.table("layers")
    assert one.table("layers") != check_flow(None, loss, X, make=make, seed=4).table("layers")
