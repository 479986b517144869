"""Dead and saturated units, whatever the activation is called."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional

from pytest_gradcheck import check_flow

G = torch.Generator().manual_seed(0)
BATCH = (torch.randn(64, 8, generator=G), torch.randint(0, 4, (64,), generator=G))
IMAGES = (torch.randn(16, 3, 6, 6, generator=G), torch.randint(0, 4, (16,), generator=G))


class Net(nn.Module):
    """Four layers and an activation that is a function."""

    def __init__(self, act, bias=0.0, gain=1.0, odd=1):
        super().__init__()
        sizes = itertools.pairwise([8, 32, 32, 32])
        self.parts = nn.ModuleList(nn.Linear(a, b) for a, b in sizes)
        for k, part in enumerate(self.parts):
            nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
            with torch.no_grad():
                part.bias.copy_(torch.as_tensor(bias if k == odd else 0.0))
                part.weight.mul_(gain if k == odd else 1.0)
        self.head, self.act = nn.Linear(32, 4), act

    def forward(self, x):
        for part in self.parts:
            x = self.act(part(x))
        return self.head(x)


def check(make, batch=BATCH, seed=1):
    def loss(m, b):
        return functional.cross_entropy(m(b[0]), b[1])

    return check_flow(None, loss, batch, make=make, seed=seed)


def fails(result):
    return [f.code.removeprefix("flow-") for f in result.findings if f.severity == "fail"]


BY_HAND = {
    "maximum": lambda z: torch.maximum(z, torch.zeros(())),
    "maximum of zeros": lambda z: torch.maximum(z, torch.zeros_like(z)),
    "max": lambda z: torch.max(torch.zeros_like(z), z),
    "fmax": lambda z: torch.fmax(z, torch.zeros_like(z)),
    "times bool": lambda z: z * (z > 0),
    "times float": lambda z: (z > 0).float() * z,
    "where": lambda z: torch.where(z > 0, z, torch.zeros_like(z)),
    "where a number": lambda z: torch.where(z > 0, z, 0.0),
    "masked": lambda z: z.masked_fill(z < 0, 0.0),
    "clamp": lambda z: z.clamp(min=0),
    "clamp_min": lambda z: torch.clamp_min(z, 0.0),
    "clip": lambda z: z.clip(min=0),
    "threshold": lambda z: functional.threshold(z, 0.0, 0.0),
    "half of both": lambda z: (z + z.abs()) / 2,
}
KNOWN = [name for name in BY_HAND if name != "half of both"]


@pytest.mark.parametrize("name", BY_HAND)
def test_a_rectifier_written_by_hand_passes(name):
    result = check(lambda: Net(BY_HAND[name]))
    assert (result.verdict, fails(result)) == ("pass", []), result.headline


@pytest.mark.parametrize("name", KNOWN)
def test_units_of_one_may_be_dead(name):
    result = check(lambda: Net(BY_HAND[name], torch.tensor([-30.0] * 24 + [0.0] * 8)))
    assert fails(result) == ["dead"]
    assert result.findings[0].where.startswith("parts.1")
    assert "flow-cause-bias" in [f.code for f in result.findings]
    assert fails(check(lambda: Net(BY_HAND[name], -30.0)))[0] == "dead"


OTHERS = {
    "swish": lambda z: z * z.sigmoid(),
    "times tanh": lambda z: z * torch.tanh(z),
    "twice": lambda z: z * 2.0,
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_products_are_no_rectifiers(name):
    assert "dead" not in fails(check(lambda: Net(OTHERS[name], -30.0)))


SMOOTH = {
    "gelu": functional.gelu,
    "gelu tanh": lambda z: functional.gelu(z, approximate="tanh"),
    "silu": functional.silu,
    "elu": functional.elu,
    "celu": functional.celu,
    "mish": functional.mish,
    "softplus": functional.softplus,
    "hardswish": functional.hardswish,
    "relu6": functional.relu6,
    "silu in place": lambda z: functional.silu(z, inplace=True),
}


@pytest.mark.parametrize("name", SMOOTH)
def test_smooth_units_may_be_dead_too(name):
    result = check(lambda: Net(SMOOTH[name], torch.tensor([-30.0] * 24 + [0.0] * 8)))
    assert fails(result) == ["dead"], result.headline
    assert result.findings[0].where.startswith("parts.1")
    assert result.findings[0].number("share") == pytest.approx(0.75, abs=0.1)
    assert check(lambda: Net(SMOOTH[name])).verdict == "pass"


TWO_SIDED = {
    "hardtanh": functional.hardtanh,
    "hardtanh wide": lambda z: functional.hardtanh(z, -3.0, 3.0),
    "hardsigmoid": functional.hardsigmoid,
    "softsign": functional.softsign,
    "relu6": functional.relu6,
    "in place": lambda z: functional.hardtanh(z, inplace=True),
    "module": nn.Hardtanh(),
}


@pytest.mark.parametrize("name", TWO_SIDED)
def test_hard_activations_may_be_saturated(name):
    result = check(lambda: Net(TWO_SIDED[name], 100.0))
    assert fails(result)[0] in ("saturated", "dead")
    assert result.findings[0].where.startswith("parts.1")
    assert check(lambda: Net(TWO_SIDED[name])).verdict in ("pass", "fail")


@pytest.mark.parametrize("act", [nn.Hardtanh, nn.ReLU6, nn.Hardswish, nn.GELU, nn.SiLU])
@pytest.mark.parametrize("norm", [True, False])
def test_convolutions_with_them_pass(act, norm):
    def make():
        parts = []
        for a, b in ((3, 16), (16, 16), (16, 16)):
            conv = nn.Conv2d(a, b, 3, padding=1)
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            parts += [conv, *([nn.BatchNorm2d(b)] if norm else []), act()]
        return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))

    result = check(make, IMAGES)
    assert (result.verdict, fails(result)) == ("pass", []), result.headline


class Once(Net):
    """The same, with one module for all activations."""

    def __init__(self, bias):
        super().__init__(nn.ReLU(), bias)


def test_one_layer_among_those_that_share_an_activation_is_named():
    result = check(lambda: Once(-30.0))
    assert fails(result)[0] == "dead"
    assert result.findings[0].where == "parts.1.relu"
    result = check(lambda: Once(torch.tensor([-30.0] * 24 + [0.0] * 8)))
    assert (fails(result), result.findings[0].where) == (["dead"], "parts.1.relu")
    assert check(lambda: Once(0.0)).verdict == "pass"
