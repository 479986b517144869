"""Networks with kinks and random numbers, in each of which one gradient can be made wrong."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from pytest_gradcheck import Training

F = nn.functional
WIDTH, COUNT, CLASSES = 16, 16, 4


class Noise(nn.Module):
    """Adds normal numbers."""

    def forward(self, x: Tensor) -> Tensor:
        """Others each time."""
        return x + 0.3 * torch.randn_like(x)


class Attention(nn.Module):
    """With dropout, a way round it, and a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(WIDTH, 2, dropout=0.2, batch_first=True)
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """As many rows as are given."""
        return self.norm(x + self.inner(x, x, x)[0])


class Residual(nn.Module):
    """A shortcut of which half is exactly zero, and beside it what begins at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.norm = nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH)
        nn.init.zeros_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        """As many rows as are given."""
        return torch.relu(x + self.norm(self.inner(x)))


def _residual() -> nn.Module:
    begin = nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU()
    return nn.Sequential(*begin, Residual(), Residual(), nn.Linear(WIDTH, CLASSES))


def _dense(*between: Callable[[], nn.Module], width: int = 64, depth: int = 2) -> nn.Module:
    sizes = [WIDTH, *[width] * depth]
    parts: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        parts += [nn.Linear(a, b), *(make() for make in between)]
    return nn.Sequential(*parts, nn.Linear(width, CLASSES))


def _images() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32, CLASSES),
    )  # fmt: skip


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "tanh": (lambda: _dense(nn.Tanh), (WIDTH,)),
    "ReLU": (lambda: _dense(nn.ReLU, depth=3), (WIDTH,)),
    "ReLU6, nine layers": (lambda: _dense(nn.ReLU6, width=16, depth=8), (WIDTH,)),
    "RReLU": (lambda: _dense(nn.RReLU, width=32), (WIDTH,)),
    "tanh and noise": (lambda: _dense(nn.Tanh, Noise), (WIDTH,)),
    "ReLU and noise": (lambda: _dense(nn.ReLU, Noise), (WIDTH,)),
    "ReLU and dropout": (lambda: _dense(nn.ReLU, nn.Dropout), (WIDTH,)),
    "batch norm": (lambda: _dense(lambda: nn.BatchNorm1d(64), nn.ReLU), (WIDTH,)),
    "residual, from zero": (_residual, (WIDTH,)),
    "convolutions, max pooling": (_images, (1, 14, 14)),
    "attention": (
        lambda: nn.Sequential(Attention(), Attention(), nn.Flatten(), nn.Linear(96, CLASSES)),
        (6, WIDTH),
    ),
}
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "L1": F.l1_loss,
    "squares": F.mse_loss,
    "Huber": lambda y, t: F.smooth_l1_loss(y, t, beta=0.1),
    "cross entropy": lambda y, t: F.cross_entropy(y, t.argmax(1)),
}


def trainings(name: str, factor: float, seeds: int) -> Iterator[Callable[[], Training]]:
    """AdamW in float32; the gradient of the second matrix is so many times the right one."""
    for loss, seed in itertools.product(LOSSES, range(seeds)):
        yield functools.partial(_training, name, loss, factor, seed)


def _training(name: str, loss_name: str, factor: float, seed: int) -> Training:
    make, shape = NETWORKS[name]
    torch.manual_seed(seed)
    model = make()
    if factor != 1:
        weights = [p for p in model.parameters() if p.ndim > 1]
        weights[1].register_hook(lambda g: factor * g)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    batches = [(torch.randn(COUNT, *shape), torch.randn(COUNT, CLASSES)) for _ in range(4)]

    def loss(batch: Any) -> Tensor:
        return LOSSES[loss_name](model(batch[0]), batch[1])

    def step(batch: Any) -> None:
        optimizer.zero_grad()
        loss(batch).backward()
        optimizer.step()

    return Training(step=step, loss=loss, batches=batches, model=model, optimizer=optimizer)
