"""Models of several branches, heads or networks that train: none may be accused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  # as PyTorch writes it
from torch import Tensor, nn

from corpora.healthy import Model

WEIGHTS = (1e-4, 1e-2, 1.0, 1e2)


def he(before: int, after: int, gain: float = 1.0) -> nn.Linear:
    """A layer with He's initialisation (2015)."""
    made = nn.Linear(before, after)
    nn.init.kaiming_normal_(made.weight, nonlinearity="relu")
    nn.init.zeros_(made.bias)
    with torch.no_grad():
        made.weight.mul_(gain)
    return made


def body(depth: int, before: int = 16, act: Callable[[], nn.Module] = nn.ReLU) -> list[nn.Module]:
    """Layers of 32 with an activation each."""
    parts: list[nn.Module] = []
    for k in range(depth):
        parts += [he(before if k == 0 else 32, 32), act()]
    return parts


class Bag(nn.Module):
    """Networks in one module, which only the loss puts together."""

    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)


def auxiliary() -> nn.Module:
    """A deep body with a head in its middle (Szegedy et al. 2015)."""
    return Bag(
        low=nn.Sequential(*body(4)),
        side=he(32, 10),
        high=nn.Sequential(*body(6, 32)),
        head=he(32, 10),
    )


def auxiliary_loss(weight: float) -> Callable[[Any, Any], Tensor]:
    """Both heads; that of the side with a weight."""

    def loss(m: Any, batch: Any) -> Tensor:
        h = m.low(batch[0])
        main = F.cross_entropy(m.head(m.high(h)), batch[1])
        return main + weight * F.cross_entropy(m.side(h), batch[1])

    return loss


def pair() -> nn.Module:
    """A classifier and a regression of other depths."""
    return Bag(one=nn.Sequential(*body(8), he(32, 10)), other=nn.Sequential(*body(3), he(32, 1)))


def pair_loss(weight: float) -> Callable[[Any, Any], Tensor]:
    """The sum of their losses."""

    def loss(m: Any, batch: Any) -> Tensor:
        x, y, v = batch
        return F.cross_entropy(m.one(x), y) + weight * (m.other(x)[:, 0] - v).square().mean()

    return loss


def actor_critic(is_shared: bool) -> Callable[[], nn.Module]:
    """Orthogonal tanh bodies and a policy of gain 0.01 (Schulman et al. 2017, as implemented)."""

    def make() -> nn.Module:
        pi = nn.Sequential(*body(2, 16, nn.Tanh), nn.Linear(32, 10))
        value = nn.Sequential(*body(2, 16, nn.Tanh), nn.Linear(32, 1))
        for net, last in ((pi, 0.01), (value, 1.0)):
            for k, gain in ((0, 2**0.5), (2, 2**0.5), (4, last)):
                nn.init.orthogonal_(net[k].weight, gain)
                nn.init.zeros_(net[k].bias)
        if is_shared:
            value[0], value[2] = pi[0], pi[2]
        return Bag(pi=pi, value=value)

    return make


def ppo(m: Any, batch: Any) -> Tensor:
    """Clipped objective, loss of the value and entropy, with the usual weights."""
    x, actions, gains = batch
    log = m.pi(x).log_softmax(-1)
    ratio = (log - log.detach()).gather(1, actions[:, None])[:, 0].exp()
    best = torch.min(ratio * gains, ratio.clamp(0.8, 1.2) * gains).mean()
    entropy = -(log.exp() * log).sum(-1).mean()
    return 0.5 * (m.value(x)[:, 0] - 20 * gains).square().mean() - best - 0.01 * entropy


def gan(is_deep: bool) -> Callable[[], nn.Module]:
    """Generator and discriminator in one module."""
    depth = 5 if is_deep else 2
    leaky = lambda: nn.LeakyReLU(0.2)  # noqa: E731  # an activation

    return lambda: Bag(
        g=nn.Sequential(*body(depth), he(32, 16)),
        d=nn.Sequential(*body(depth, 16, leaky), he(32, 1)),
    )


def gan_loss(weight: float) -> Callable[[Any, Any], Tensor]:
    """Both players' losses at once (Goodfellow et al. 2014, the non-saturating one)."""

    def loss(m: Any, batch: Any) -> Tensor:
        real, z = batch
        fake = m.g(z)
        judge = F.softplus(-m.d(real)).mean() + F.softplus(m.d(fake.detach())).mean()
        return judge + weight * F.softplus(-m.d(fake)).mean()

    return loss


class Towers(nn.Module):
    """Two encoders of other depths; what one contributes is scaled."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.left, self.right = nn.Sequential(*body(3)), nn.Sequential(*body(9))
        self.head, self.scale = he(64, 10), scale

    def forward(self, x: Tensor) -> Tensor:
        """The answer."""
        return self.head(torch.cat([self.left(x), self.scale * self.right(x)], 1))


class Squeezed(nn.Module):
    """Convolutions with gates of a few units (Hu et al. 2018)."""

    def __init__(self, units: int) -> None:
        super().__init__()
        sizes = ((3, 16), (16, 16), (16, 16))
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in sizes)
        for conv in self.convs:
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        self.down = nn.ModuleList(nn.Linear(16, units) for _ in sizes)
        self.up = nn.ModuleList(nn.Linear(units, 16) for _ in sizes)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        """The answer."""
        for conv, down, up in zip(self.convs, self.down, self.up, strict=True):
            x = torch.relu(conv(x))
            gate = torch.sigmoid(up(torch.relu(down(x.mean((2, 3))))))
            x = 2 * x * gate[:, :, None, None]
        return self.head(x.mean((2, 3)))


class Dense(nn.Module):
    """Every layer sees all before (Huang et al. 2017)."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.parts = nn.ModuleList(he(16 + 16 * k, 16) for k in range(depth))
        self.head = he(16 + 16 * depth, 10)

    def forward(self, x: Tensor) -> Tensor:
        """The answer."""
        for part in self.parts:
            x = torch.cat([x, torch.relu(part(x))], 1)
        return self.head(x)


class Padded(nn.Module):
    """A causal transformer without positions, of sentences that are padded on the left."""

    def __init__(self, is_first: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 32, padding_idx=0)
        block = nn.TransformerEncoderLayer(32, 4, 64, 0.0, batch_first=True, norm_first=is_first)
        self.body = nn.TransformerEncoder(block, 3, enable_nested_tensor=False)
        self.head = nn.Linear(32, 50)

    def forward(self, x: Tensor) -> Tensor:
        """Scores of the next token."""
        mask = torch.triu(torch.full((x.shape[1], x.shape[1]), -torch.inf), 1)
        return self.head(self.body(self.embed(x), mask=mask))


def classify(m: Any, batch: Any) -> Tensor:
    """Cross entropy."""
    return F.cross_entropy(m(batch[0]), batch[1])


def words(m: Any, batch: Any) -> Tensor:
    """Cross entropy of the tokens that are no padding."""
    return F.cross_entropy(m(batch[0]).flatten(0, 1), batch[1].flatten())


def models() -> Iterator[Model]:
    """Every model."""
    generator = torch.Generator().manual_seed(11)
    x = torch.randn(64, 16, generator=generator)
    y = torch.randint(0, 10, (64,), generator=generator)
    v = torch.randn(64, generator=generator)
    z = torch.randn(64, 16, generator=generator)
    images = (torch.randn(32, 3, 8, 8, generator=generator), y[:32])
    for weight in WEIGHTS:
        yield Model(f"auxiliary x {weight:g}", auxiliary, (x, y), auxiliary_loss(weight))
        yield Model(f"pair x {weight:g}", pair, (x, y, v), pair_loss(weight))
        yield Model(f"gan x {weight:g}", gan(False), (x, z), gan_loss(weight))
        yield Model(f"deep gan x {weight:g}", gan(True), (x, z), gan_loss(weight))
        if weight <= 1:  # a hundredfold answer is too large, and said to be
            yield Model(f"towers x {weight:g}", lambda w=weight: Towers(w), (x, y), classify)
    for is_shared in (True, False):
        name = "shared" if is_shared else "separate"
        yield Model(f"actor and critic, {name}", actor_critic(is_shared), (x, y, v), ppo)
    for units in (1, 2, 4):
        yield Model(f"gates of {units}", lambda u=units: Squeezed(u), images, classify)
    for depth in (6, 16):
        yield Model(f"dense {depth}", lambda d=depth: Dense(d), (x, y), classify)
    tokens = torch.randint(1, 50, (32, 16), generator=generator)
    tokens[torch.arange(16) < torch.randint(0, 10, (32, 1), generator=generator)] = 0
    targets = torch.where(tokens == 0, -100, tokens.roll(-1, 1))
    for is_first in (True, False):
        make = lambda first=is_first: Padded(first)  # noqa: E731  # one of two
        yield Model(f"padded transformer {is_first}", make, (tokens, targets), words)
