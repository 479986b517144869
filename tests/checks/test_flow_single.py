"""One realisation is judged by the spread that depth and widths predict."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

from pytest_gradcheck import check_flow
from pytest_gradcheck.backends.torch_probe import TorchProbe
from pytest_gradcheck.checks.flow.branches import branches

G = torch.Generator().manual_seed(0)
Y = torch.randint(0, 10, (32,), generator=G)
IMAGES = (torch.randn(32, 3, 16, 16, generator=G), Y)
FLAT = (torch.randn(32, 8, generator=G), Y)
PLACES = torch.rand(128, 2, generator=G) * 2 - 1
NOISE = torch.randn(32, 16, 1, 1, generator=G)


def classified(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def regressed(model, batch):
    return (model(batch) - torch.sin(5 * batch).sum(1, keepdim=True)).square().mean()


def fooled(model, batch):
    return nn.functional.softplus(-model(batch)).mean()


class Sine(nn.Module):
    """A layer of a SIREN (Sitzmann et al. 2020)."""

    def __init__(self, before, after, is_first):
        super().__init__()
        self.layer = nn.Linear(before, after)
        bound = 1 / before if is_first else math.sqrt(6 / before) / 30
        nn.init.uniform_(self.layer.weight, -bound, bound)

    def forward(self, x):
        return torch.sin(30 * self.layer(x))


def siren():
    return nn.Sequential(
        Sine(2, 64, True), *[Sine(64, 64, False) for _ in range(3)], nn.Linear(64, 1)
    )


def dcgan():
    parts = []
    for a, b, step in ((16, 32, 1), (32, 16, 2), (16, 8, 2)):
        parts += [nn.ConvTranspose2d(a, b, 4, step, step - 1, bias=False), nn.BatchNorm2d(b)]
        parts.append(nn.ReLU(True))
    parts += [nn.ConvTranspose2d(8, 3, 4, 2, 1, bias=False), nn.Tanh()]
    for a, b in ((3, 8), (8, 16), (16, 32)):
        parts += [nn.Conv2d(a, b, 4, 2, 1, bias=False), nn.BatchNorm2d(b), nn.LeakyReLU(0.2, True)]
    model = nn.Sequential(*parts, nn.Conv2d(32, 1, 4, bias=False), nn.Flatten())
    for part in model.modules():
        if isinstance(part, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.normal_(part.weight, 0.0, 0.02)
    return model


def cnn(width, depth):
    def make():
        parts = []
        for a in [3, *[width] * (depth - 1)]:
            parts += [nn.Conv2d(a, width, 3, padding=1), nn.ReLU()]
            nn.init.kaiming_normal_(parts[-2].weight, nonlinearity="relu")
        return nn.Sequential(
            *parts, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, 10)
        )

    return make


def mlp(width, depth, act=nn.ReLU):
    def make():
        parts = []
        for a, b in itertools.pairwise([8, *[width] * depth]):
            parts += [nn.Linear(a, b), act()]
            nn.init.kaiming_normal_(parts[-2].weight, nonlinearity="relu")
        return nn.Sequential(*parts, nn.Linear(width, 10))

    return make


class Two(nn.Module):
    """A body with heads of ten and of one."""

    def __init__(self):
        super().__init__()
        self.body, self.one, self.two = mlp(32, 4)(), nn.Linear(10, 10), nn.Linear(10, 1)

    def forward(self, x):
        return self.one(self.body(x)) + self.two(self.body(x))


HEALTHY = {
    "siren": (siren, regressed, PLACES),
    "dcgan": (dcgan, fooled, NOISE),
    "cnn 4 x 6": (cnn(4, 6), classified, IMAGES),
    "cnn 2 x 4": (cnn(2, 4), classified, IMAGES),
    "mlp 16 x 4": (mlp(16, 4), classified, FLAT),
    "two heads": (Two, classified, FLAT),
}


def single(make, loss, batch, seed=0):
    torch.manual_seed(seed)
    return check_flow(make(), loss, batch, seeds=1)


@pytest.mark.parametrize("name", HEALTHY)
def test_one_realisation_of_a_healthy_model_passes(name):
    result = single(*HEALTHY[name])
    assert result.verdict == "pass", result.headline
    assert "flow-single" in [f.code for f in result.findings]


def test_one_realisation_of_an_ill_model_fails():
    result = single(mlp(32, 10, nn.Sigmoid), classified, FLAT)
    assert (result.verdict, result.findings[0].code) == ("fail", "flow-vanishing")


def test_a_model_too_narrow_for_its_depth_is_not_decided_by_one():
    verdicts = {single(mlp(4, 30), classified, FLAT, seed).verdict for seed in range(3)}
    assert verdicts <= {"undecided", "fail"}


@pytest.mark.parametrize("name", HEALTHY)
def test_the_interval_of_one_covers_the_others(name):
    make, loss, batch = HEALTHY[name]
    probe = TorchProbe(None, loss, batch, make=make)
    with probe.guard():
        passes = [probe.measure(probe.draw(seed)) for seed in range(12)]
    for number in range(len(branches(passes))):
        intervals = [branches([one])[number].attenuation for one in passes]
        middle = np.mean([one.mean for one in intervals])
        assert sum(low < middle < high for _, low, high in intervals) >= 11


class PreNorm(nn.Module):
    def __init__(self, blocks, width):
        super().__init__()
        self.one, self.out = nn.Linear(8, width), nn.Linear(width, 10)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(width),
                nn.Linear(width, 2 * width),
                nn.GELU(),
                nn.Linear(2 * width, width),
            )
            for _ in range(blocks)
        )

    def forward(self, x):
        h = self.one(x)
        for block in self.blocks:
            h = h + block(h)
        return self.out(h)


@pytest.mark.parametrize(("blocks", "width"), [(12, 8), (24, 16), (48, 16)])
def test_narrow_blocks_with_skips_are_decided_by_one_draw(blocks, width):
    result = single(lambda: PreNorm(blocks, width), classified, FLAT)
    assert (result.verdict, [f.code for f in result.findings]) == ("pass", ["flow-single"])


def test_narrow_convolutions_of_flax_count_the_places_of_their_kernels():
    linen = pytest.importorskip("flax.linen")
    images = jnp.asarray(np.random.default_rng(0).normal(size=(16, 8, 8, 3)), jnp.float32)

    class Chain(linen.Module):
        @linen.compact
        def __call__(self, x):
            for _ in range(5):
                x = linen.relu(linen.Conv(8, (3, 3), kernel_init=linen.initializers.he_normal())(x))
            return linen.Dense(4)(x.mean((1, 2)))

    params = Chain().init(jax.random.key(0), images)
    loss = lambda p, x: jnp.mean((Chain().apply(p, x) - 1) ** 2)  # noqa: E731
    result = check_flow(params, loss, images)
    assert (result.verdict, [f.code for f in result.findings]) == ("pass", ["flow-single"])
