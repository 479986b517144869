"""A small training whose step is given."""

import torch
from torch import nn

from pytest_gradcheck import Training

SIZES = (16, 16, 16, 5)


def batches(sizes=SIZES, columns=(8, 1)):
    return [tuple(torch.randn(n, k) for k in columns) for n in sizes]


def net(middle=nn.Tanh):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), middle(), nn.Linear(16, 1))


def plain(step, *, model=None, optimizer=None, loss=None, sizes=SIZES):
    """A training whose step is ``step(model, optimizer, loss, batch)``."""
    model = model or net()
    opt = optimizer(model) if optimizer else torch.optim.AdamW(model.parameters(), 1e-3)
    loss = loss or (lambda batch: nn.functional.mse_loss(model(batch[0]), batch[1]))
    return Training(
        step=lambda batch: step(model, opt, loss, batch),
        loss=loss,
        batches=batches(sizes),
        model=model,
        optimizer=opt,
    )


def usual(model, opt, loss, batch):
    opt.zero_grad()
    loss(batch).backward()
    opt.step()
