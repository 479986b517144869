"""Models that train, as their authors initialise them: no check of the flow may accuse one.

Each entry builds a fresh PyTorch model from the global generator; batch and loss go with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  # as PyTorch writes it
from torch import Tensor, nn

Loss = Callable[[Any, Any], Tensor]


@dataclass(frozen=True, slots=True)
class Model:
    """One model, its batch and its loss."""

    name: str
    make: Callable[[], nn.Module]
    batch: Any
    loss: Loss


def classify(model: Any, batch: Any) -> Tensor:
    """Mean cross entropy over samples."""
    return F.cross_entropy(model(batch[0]), batch[1])


def total(model: Any, batch: Any) -> Tensor:
    """The same, summed."""
    return F.cross_entropy(model(batch[0]), batch[1], reduction="sum")


def regress(model: Any, batch: Any) -> Tensor:
    """Mean squared error."""
    return F.mse_loss(model(batch[0]), batch[1])


def tokens(model: Any, batch: Any) -> Tensor:
    """Cross entropy of the next token."""
    return F.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten())


ACTIVATIONS: dict[str, tuple[Callable[[], nn.Module], Callable[[Tensor], Any]]] = {
    "relu": (nn.ReLU, lambda w: nn.init.kaiming_normal_(w, nonlinearity="relu")),
    "leaky": (lambda: nn.LeakyReLU(0.1), lambda w: nn.init.kaiming_normal_(w, 0.1)),
    "tanh": (nn.Tanh, lambda w: nn.init.xavier_normal_(w, 5 / 3)),
    "gelu": (nn.GELU, lambda w: nn.init.kaiming_normal_(w, nonlinearity="relu")),
    "silu": (nn.SiLU, lambda w: nn.init.kaiming_normal_(w, nonlinearity="relu")),
    "selu": (nn.SELU, lambda w: nn.init.kaiming_normal_(w, nonlinearity="linear")),
    "elu": (nn.ELU, lambda w: nn.init.kaiming_normal_(w, nonlinearity="relu")),
}


def mlp(act: str, width: int, depth: int, norm: str = "", init: bool = True) -> Callable[[], Any]:
    """A plain network of ``depth`` layers with weights, 16 inputs and 10 outputs."""

    def make() -> nn.Module:
        kind, draw = ACTIVATIONS[act]
        parts: list[nn.Module] = []
        for k in range(depth - 1):
            layer = nn.Linear(16 if k == 0 else width, width)
            if init:
                draw(layer.weight)
                nn.init.zeros_(layer.bias)
            parts.append(layer)
            if norm:
                parts.append({"batch": nn.BatchNorm1d, "layer": nn.LayerNorm}[norm](width))
            parts.append(kind())
        return nn.Sequential(*parts, nn.Linear(width, 10))

    return make


def orthogonal(width: int, depth: int) -> Callable[[], nn.Module]:
    """A deep tanh network with orthogonal weights (Pennington et al. 2017)."""

    def make() -> nn.Module:
        parts: list[nn.Module] = []
        for k in range(depth - 1):
            layer = nn.Linear(16 if k == 0 else width, width)
            nn.init.orthogonal_(layer.weight, 1.05)
            nn.init.zeros_(layer.bias)
            parts += [layer, nn.Tanh()]
        return nn.Sequential(*parts, nn.Linear(width, 10))

    return make


class Block(nn.Module):
    """A residual block with batch normalisation and activations in place."""

    def __init__(self, width: int, zero: bool) -> None:
        super().__init__()
        self.one = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.two = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        if zero:
            nn.init.zeros_(self.norm2.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Add the branch in place."""
        out = F.relu(self.norm1(self.one(x)), inplace=True)
        out = self.norm2(self.two(out))
        out += x
        return F.relu(out, inplace=True)


def resnet(blocks: int, zero: bool = False) -> Callable[[], nn.Module]:
    """A residual network of small images."""
    return lambda: nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(inplace=True),
        *[Block(16, zero) for _ in range(blocks)],
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 10),
    )


def vgg(norm: bool) -> nn.Module:
    """Convolutions with pooling."""
    parts: list[nn.Module] = []
    for before, after in ((3, 16), (16, 16), (16, 32), (32, 32), (32, 64), (64, 64)):
        conv = nn.Conv2d(before, after, 3, padding=1)
        nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        nn.init.zeros_(conv.bias)
        parts += [conv, *([nn.BatchNorm2d(after)] if norm else []), nn.ReLU(inplace=True)]
        if before == after:
            parts.append(nn.MaxPool2d(2))
    return nn.Sequential(*parts, nn.Flatten(), nn.Linear(64, 10))


class Recurrent(nn.Module):
    """A recurrent layer read at its last step."""

    def __init__(self, kind: str, layers: int = 1) -> None:
        super().__init__()
        self.body = getattr(nn, kind)(8, 32, layers, batch_first=True)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        """The answer at the last step."""
        return self.head(self.body(x)[0][:, -1])


class Cell(nn.Module):
    """A recurrent cell called step by step."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.cell, self.head = getattr(nn, kind)(8, 32), nn.Linear(32, 10)
        self.is_long = "LSTM" in kind

    def forward(self, x: Tensor) -> Tensor:
        """The answer at the last step."""
        h: Any = None
        for t in range(x.shape[1]):
            h = self.cell(x[:, t], h)
        return self.head(h[0] if self.is_long else h)


class Language(nn.Module):
    """A small transformer over tokens."""

    def __init__(self, layers: int, first: bool, tied: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 32)
        nn.init.normal_(self.embed.weight, std=0.02 if tied else 1.0)
        layer = nn.TransformerEncoderLayer(
            32, 4, 64, dropout=0.1, batch_first=True, norm_first=first, activation="gelu"
        )
        self.body = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, 50, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        """Scores of the next token."""
        return self.head(self.norm(self.body(self.embed(x))))


class Attention(nn.Module):
    """One attention written by hand, with masked scores."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, width)
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.head = nn.Linear(width, 50)

    def forward(self, x: Tensor) -> Tensor:
        """Causal attention."""
        h = self.embed(x)
        scores = self.q(h) @ self.k(h).transpose(1, 2) / h.shape[-1] ** 0.5
        mask = torch.triu(torch.ones(x.shape[1], x.shape[1], dtype=torch.bool), 1)
        return self.head(h + scores.masked_fill(mask, -torch.inf).softmax(-1) @ self.v(h))


class Gan(nn.Module):
    """A generator and the discriminator that judges it."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = nn.Sequential(
            nn.Linear(16, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 32), nn.Tanh()
        )
        self.discriminator = nn.Sequential(
            nn.Linear(32, 64),
            nn.LeakyReLU(0.2),
            nn.Linear(64, 64),
            nn.LeakyReLU(0.2),
            nn.Linear(64, 1),
        )

    def forward(self, z: Tensor) -> Tensor:
        """Score of what is generated."""
        return self.discriminator(self.generator(z))


class Branches(nn.Module):
    """Two branches of different depth, put together."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Linear(16, 32)
        self.deep = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """The answer."""
        return self.head(torch.cat([self.wide(x), self.deep(x)], 1))


class Shared(nn.Module):
    """One layer used several times."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.layer, self.head = nn.Linear(16, 32), nn.Linear(32, 32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        """The answer."""
        h = torch.relu(self.first(x))
        for _ in range(3):
            h = torch.relu(self.layer(h)) + h
        return self.head(h)


class Policy(nn.Module):
    """Tanh body with orthogonal weights and a head of gain 0.01, as in PPO."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh())
        self.head = nn.Linear(64, 10)
        for part in (self.body[0], self.body[2]):
            nn.init.orthogonal_(part.weight, 2**0.5)
            nn.init.zeros_(part.bias)
        nn.init.orthogonal_(self.head.weight, 0.01)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Scores of actions."""
        return self.head(self.body(x))


def autoencoder() -> nn.Module:
    """Through a bottleneck of two."""
    return nn.Sequential(
        nn.Linear(16, 64),
        nn.ReLU(),
        nn.Linear(64, 2),
        nn.Linear(2, 64),
        nn.ReLU(),
        nn.Linear(64, 16),
    )


def models() -> Iterator[Model]:
    """Every model."""
    generator = torch.Generator().manual_seed(7)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    def whole(high: int, *shape: int) -> Tensor:
        return torch.randint(0, high, shape, generator=generator)

    flat = (normal(64, 16), whole(10, 64))
    for act in ACTIVATIONS:
        for width, depth in ((8, 4), (32, 6), (128, 10)):
            yield Model(f"mlp {act} {width}x{depth}", mlp(act, width, depth), flat, classify)
    for act in ("relu", "tanh", "gelu"):
        for norm in ("batch", "layer"):
            for depth in (6, 12):
                make = mlp(act, 64, depth, norm)
                yield Model(f"mlp {act} {norm} 64x{depth}", make, flat, classify)
        yield Model(f"mlp {act} default 64x4", mlp(act, 64, 4, init=False), flat, classify)
        yield Model(f"mlp {act} 2048x3", mlp(act, 2048, 3), flat, classify)
        yield Model(f"mlp {act} summed 32x6", mlp(act, 32, 6), flat, total)
    for width, depth in ((32, 30), (64, 50), (128, 100)):
        yield Model(f"mlp relu {width}x{depth}", mlp("relu", width, depth), flat, classify)
    for depth in (30, 100):
        yield Model(f"mlp orthogonal 64x{depth}", orthogonal(64, depth), flat, classify)
    values = (flat[0], normal(64, 10))
    yield Model("mlp relu regression", mlp("relu", 64, 5), values, regress)
    yield Model("mlp tanh small targets", mlp("tanh", 64, 4), (flat[0], 0.05 * values[1]), regress)
    yield Model("autoencoder", autoencoder, (flat[0], flat[0]), regress)
    yield Model("branches", Branches, flat, classify)
    yield Model("shared", Shared, flat, classify)
    yield Model("policy", Policy, flat, classify)
    yield Model("gan generator", Gan, flat[0], lambda m, z: F.softplus(-m(z)).mean())
    images = (normal(16, 3, 8, 8), whole(10, 16))
    for blocks in (2, 6):
        yield Model(f"resnet {blocks}", resnet(blocks), images, classify)
    yield Model("resnet zero gamma", resnet(4, True), images, classify)
    yield Model("vgg", lambda: vgg(False), images, classify)
    yield Model("vgg norm", lambda: vgg(True), images, classify)
    steps = (normal(32, 12, 8), whole(10, 32))
    for kind in ("LSTM", "GRU", "RNN"):
        yield Model(f"{kind.lower()}", lambda kind=kind: Recurrent(kind), steps, classify)
        yield Model(f"{kind.lower()} cell", lambda kind=kind: Cell(f"{kind}Cell"), steps, classify)
    yield Model("lstm 2 layers", lambda: Recurrent("LSTM", 2), steps, classify)
    yield Model("gru 2 layers", lambda: Recurrent("GRU", 2), steps, classify)
    text = (whole(50, 8, 12), whole(50, 8, 12))
    for layers in (2, 6):
        for first in (True, False):
            name = f"transformer {layers} {'pre' if first else 'post'}"
            make_ = lambda layers=layers, first=first: Language(layers, first)  # noqa: E731
            yield Model(name, make_, text, tokens)
    yield Model("transformer tied", lambda: Language(4, True, True), text, tokens)
    yield Model("attention by hand", Attention, text, tokens)
