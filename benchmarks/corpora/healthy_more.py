"""More models that train: other tasks, other parts, PyTorch's own initialisations as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  # as PyTorch writes it
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from corpora.healthy import Model, classify, regress

Maker = Callable[[], nn.Module]


def default(depth: int, act: Maker = nn.ReLU) -> Maker:
    """A plain network as PyTorch initialises it."""

    def make() -> nn.Module:
        parts: list[nn.Module] = [nn.Linear(16, 64), act()]
        for _ in range(depth - 2):
            parts += [nn.Linear(64, 64), act()]
        return nn.Sequential(*parts, nn.Linear(64, 10))

    return make


class Siren(nn.Module):
    """Sines with the initialisation of Sitzmann et al. 2020."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(2, 64), nn.Linear(64, 64), nn.Linear(64, 1)])
        for k, layer in enumerate(self.layers):
            bound = 0.5 if k == 0 else (6 / 64) ** 0.5 / 30
            nn.init.uniform_(layer.weight, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """A picture's values."""
        for layer in self.layers[:-1]:
            x = torch.sin(30 * layer(x))
        return self.layers[-1](x)


class Variational(nn.Module):
    """A variational autoencoder."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 8))
        self.decode = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 16))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Reconstruction, mean and log variance."""
        mean, spread = self.encode(x).chunk(2, 1)
        z = mean + torch.randn_like(mean) * torch.exp(0.5 * spread)
        return self.decode(z), mean, spread


def evidence(model: Any, x: Tensor) -> Tensor:
    """Its bound."""
    back, mean, spread = model(x)
    apart = -0.5 * (1 + spread - mean**2 - spread.exp()).sum(1).mean()
    return F.mse_loss(back, x) + 0.1 * apart


class Actor(nn.Module):
    """A policy and a value."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh())
        self.policy, self.value = nn.Linear(64, 10), nn.Linear(64, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Scores and value."""
        h = self.body(x)
        return self.policy(h), self.value(h)


def advantage(model: Any, batch: Any) -> Tensor:
    """Policy gradient: a loss of either sign."""
    x, y, gain = batch
    scores, value = model(x)
    chosen = F.log_softmax(scores, 1)[torch.arange(len(y)), y]
    return -(chosen * gain).mean() + 0.5 * (value[:, 0] - gain).square().mean()


class Vision(nn.Module):
    """A vision transformer read at its class token."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 32, 4, 4)
        self.token = nn.Parameter(torch.zeros(1, 1, 32))
        self.place = nn.Parameter(torch.randn(1, 17, 32) * 0.02)
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, norm_first=True)
        self.body = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Scores."""
        h = self.patches(x).flatten(2).transpose(1, 2)
        h = torch.cat([self.token.expand(len(h), -1, -1), h], 1) + self.place
        return self.head(self.norm(self.body(h)[:, 0]))


class Hourglass(nn.Module):
    """Down and up again with a skip."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.down = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 32, 3, 2, 1)
        self.middle = nn.Conv2d(32, 32, 3, padding=1)
        self.up, self.out = nn.ConvTranspose2d(32, 16, 2, 2), nn.Conv2d(32, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        """An image."""
        a = F.relu(self.one(x))
        b = F.relu(self.middle(F.relu(self.down(a))))
        return self.out(torch.cat([a, self.up(b)], 1))


class Experts(nn.Module):
    """A mixture of four."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(16, 4)
        self.experts = nn.ModuleList(default(3)() for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """Scores."""
        share = self.gate(x).softmax(1)
        return sum(share[:, k : k + 1] * part(x) for k, part in enumerate(self.experts))


class Text(nn.Module):
    """A recurrent language model of a hundred steps."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(50, 32), nn.Linear(64, 50)
        self.body = getattr(nn, kind)(32, 64, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """Scores of the next token."""
        return self.head(self.body(self.embed(x))[0])


class Gated(nn.Module):
    """A vision transformer with a class token whose branches start near zero (LayerScale)."""

    def __init__(self, size: float) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 32, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 32) * 0.02)
        self.norms = nn.ModuleList(nn.LayerNorm(32) for _ in range(4))
        self.mixes = nn.ModuleList(nn.MultiheadAttention(32, 4, batch_first=True) for _ in range(4))
        self.gates = nn.ParameterList(torch.full((32,), size) for _ in range(4))
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Scores."""
        h = self.patches(x).flatten(2).transpose(1, 2)
        h = torch.cat([self.token.expand(len(h), -1, -1), h], 1)
        for norm, mix, gate in zip(self.norms, self.mixes, self.gates, strict=True):
            z = norm(h)
            h = h + gate * mix(z, z, z)[0]
        return self.head(self.norm(h)[:, 0])


def tabled(size: float) -> Maker:
    """A table of embeddings that starts small, before a small network."""

    def make() -> nn.Module:
        table = nn.EmbeddingBag(50, 16)
        nn.init.uniform_(table.weight, -size, size)
        return nn.Sequential(table, nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 50))

    return make


class Rollout(nn.Module):
    """A cell that is run for thirty steps, and answers at each."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.cell, self.head = getattr(nn, kind)(16, 32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Scores at each step."""
        h = x.new_zeros(len(x), 32)
        told = []
        for _ in range(30):
            h = self.cell(x, h)
            told.append(self.head(h))
        return torch.stack(told, 2)


def discounted(model: nn.Module, batch: Any) -> Tensor:
    """The first steps count for more, as in a discounted return."""
    x, y = batch
    each = F.cross_entropy(model(x), y[:, None].expand(-1, 30), reduction="none")
    return (each.mean(0) * 0.8 ** torch.arange(30)).sum() / 5


def lenet(act: Maker) -> Maker:
    """LeNet-5."""
    return lambda: nn.Sequential(
        *(nn.Conv2d(3, 6, 5, padding=2), act(), nn.AvgPool2d(2)),
        *(nn.Conv2d(6, 16, 5), act(), nn.AvgPool2d(2), nn.Flatten()),
        *(nn.Linear(64, 120), act(), nn.Linear(120, 84), act(), nn.Linear(84, 10)),
    )


def normed(norm: Callable[[nn.Module], nn.Module]) -> Maker:
    """With another parametrisation of the weights."""
    return lambda: nn.Sequential(
        norm(nn.Linear(16, 64)), nn.ReLU(), norm(nn.Linear(64, 64)), nn.ReLU(), nn.Linear(64, 10)
    )


def grouped() -> nn.Module:
    """Group normalisation and SiLU."""
    parts: list[nn.Module] = []
    for before in (3, 16, 16):
        parts += [nn.Conv2d(before, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.SiLU()]
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))


def dropped() -> nn.Module:
    """Half of the units dropped."""
    return nn.Sequential(
        *(nn.Linear(16, 64), nn.ReLU(), nn.Dropout(0.5)),
        *(nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 10)),
    )


def models() -> Iterator[Model]:
    """Every one of them."""
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    y = torch.randint(0, 10, (64,), generator=generator)
    flat, images = (normal(64, 16), y), (normal(16, 3, 16, 16), y[:16])
    text = torch.randint(0, 50, (4, 100), generator=generator)
    for depth in (3, 5, 7, 8):
        yield Model(f"default relu {depth}", default(depth), flat, classify)
    for depth in (6, 10):
        yield Model(f"default tanh {depth}", default(depth, nn.Tanh), flat, classify)
    yield Model("default sigmoid 3", default(3, nn.Sigmoid), flat, classify)
    yield Model("logistic", lambda: nn.Linear(16, 10), flat, classify)
    yield Model("siren", Siren, (torch.rand(256, 2, generator=generator), normal(256, 1)), regress)
    yield Model("variational", Variational, flat[0], evidence)
    yield Model("actor", Actor, (*flat, normal(64)), advantage)
    yield Model("vision transformer", Vision, images, classify)
    yield Model("hourglass", Hourglass, images[0], lambda m, x: F.mse_loss(m(x), x))
    yield Model("experts", Experts, flat, classify)
    for kind in ("LSTM", "GRU"):
        yield Model(
            f"text {kind}",
            lambda kind=kind: Text(kind),
            text,
            lambda m, x: F.cross_entropy(m(x).flatten(0, 1), x.flatten()),
        )
    for size in (1e-4, 1e-5):
        yield Model(f"class token, gates {size:g}", lambda s=size: Gated(s), images, classify)
    first = (text.reshape(50, 8), text.reshape(50, 8)[:, 0])
    for size in (1e-2, 1e-4):
        yield Model(f"table of size {size:g}", tabled(size), first, classify)
    for kind in ("RNNCell", "GRUCell"):
        yield Model(f"discounted {kind}", lambda kind=kind: Rollout(kind), flat, discounted)
    for act in (nn.Tanh, nn.ReLU):
        yield Model(f"lenet {act.__name__}", lenet(act), images, classify)
    yield Model("weight norm", normed(parametrizations.weight_norm), flat, classify)
    yield Model("spectral norm", normed(parametrizations.spectral_norm), flat, classify)
    yield Model("group norm", grouped, images, classify)
    yield Model("dropout", dropped, flat, classify)
    margin = lambda m, b: F.multi_margin_loss(m(b[0]), b[1])  # noqa: E731
    yield Model("margin", default(3), flat, margin)
    for kind_ in (torch.float64, torch.bfloat16):
        yield Model(
            str(kind_),
            lambda kind_=kind_: default(4)().to(kind_),
            (flat[0].to(kind_), y),
            classify,
        )
    yield Model("inputs of size 3", default(4), (3 * flat[0], y), classify)
