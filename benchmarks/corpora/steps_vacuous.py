"""Set-ups that prove little: a pass of any of them must say so, or be no pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_

from pytest_gradcheck import Training, check_clipping, check_step

Setup = tuple[str, Callable[[], Any]]
T = torch.optim


def _step(
    optimizer: Callable[[Any], Any] = lambda p: T.AdamW(p, 1e-2, weight_decay=0.1),
    scale: float = 1.0,
    loss_scale: float = 1.0,
    sizes: tuple[int, ...] = (8, 5, 8, 3),
    accumulate: int = 1,
    threshold: float | None = None,
    trained: int = 4,
    is_linear: bool = False,
    **claims: Any,
) -> Any:
    def training() -> Training:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1))
        for p in list(model.parameters())[trained:]:
            p.requires_grad_(False)
        opt = optimizer(model.parameters())
        batches = [(scale * torch.randn(n, 4), torch.randn(n, 1)) for n in sizes]
        calls = [0]

        def loss(batch: Any) -> torch.Tensor:
            if is_linear:
                return sum(p.sum() for p in model.parameters())
            return loss_scale * nn.functional.mse_loss(model(batch[0]), batch[1])

        def step(batch: Any) -> None:
            calls[0] += 1
            (loss(batch) / accumulate).backward()
            if calls[0] % accumulate:
                return
            if threshold is not None:
                clip_grad_norm_(model.parameters(), threshold)
            opt.step()
            opt.zero_grad()

        return Training(step=step, loss=loss, batches=batches, model=model, optimizer=opt)

    return check_step(training, **claims)


def _clip(gradients: Any) -> Any:
    size = np.sqrt(sum((g**2).sum() for g in gradients))
    return [g / max(size, 1.0) for g in gradients]


def setups() -> Iterator[Setup]:
    """Name and check of each."""
    yield "inputs are zero", lambda: _step(scale=0.0)
    yield "the loss is zero", lambda: _step(loss_scale=0.0)
    yield "clipping never bites", lambda: _step(threshold=1e3, max_norm=1e3)
    yield "clipping always bites", lambda: _step(threshold=1e-3, max_norm=1e-3)
    yield "one tensor for a global norm", lambda: _step(trained=1, threshold=0.1, max_norm=0.1)
    yield "equal micro-batches", lambda: _step(sizes=(8, 8), accumulate=2)
    yield (
        "one momentum step",
        lambda: _step(lambda p: T.SGD(p, 0.1, momentum=0.9), sizes=(8,), step_calls=1),
    )
    yield "learning rate 0", lambda: _step(lambda p: T.AdamW(p, 0.0))
    yield "decay 0", lambda: _step(lambda p: T.AdamW(p, 1e-2, weight_decay=0.0))
    yield "decay below rounding", lambda: _step(lambda p: T.AdamW(p, 1e-2, weight_decay=1e-9))
    yield "constant gradients", lambda: _step(is_linear=True)
    yield "nothing trainable", lambda: _step(trained=0)
    yield "clip: one tensor", lambda: check_clipping(_clip, max_norm=1.0, params=[np.ones(4)])
    yield "clip: threshold without bound", lambda: check_clipping(_clip, max_norm=np.inf)
    yield "clip: no recorded step clipped", lambda: check_clipping(_clip, max_norm=1.0, norms=[0.1])
    yield (
        "clip: all recorded steps clipped",
        lambda: check_clipping(_clip, max_norm=1.0, norms=[3.0]),
    )
