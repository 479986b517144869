"""Models through which no gradient flows as it should; each test says what was done to it."""

import pytest
import torch
from torch import nn

X = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))
Y = torch.randint(0, 10, (64,), generator=torch.Generator().manual_seed(1))


def loss(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def network(act=nn.ReLU, gain=1.0, bias=0.0):
    def make():
        layers = []
        for number in range(9):
            layer = nn.Linear(16 if number == 0 else 64, 64)
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.constant_(layer.bias, bias)
            with torch.no_grad():
                layer.weight.mul_(gain)
            layers += [layer, act()]
        return nn.Sequential(*layers, nn.Linear(64, 10))

    return make


@pytest.mark.parametrize(
    "make",
    [network(nn.Sigmoid), network(gain=0.05), network(nn.Tanh, 6.0), network(bias=-20.0)],
    ids=["sigmoid", "small", "large", "dead"],
)
def test_initialisation(gradflow, make):
    gradflow(None, loss, (X, Y), make=make)


def test_inputs_are_pixels(gradflow):
    gradflow(None, loss, (255 * X.abs(), Y), make=network())


class Detached(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(16, 64), nn.Linear(64, 10)

    def forward(self, x):
        return self.head(torch.relu(self.body(x)).detach())


def test_detached(gradflow):
    gradflow(Detached(), loss, (X, Y))


class Masked(Detached):
    def forward(self, x):
        h = self.body(x)
        return self.head(torch.where(h > 0, torch.sqrt(h), torch.zeros_like(h)))


def test_nan_behind_a_mask(gradflow):
    gradflow(Masked(), loss, (X, Y))
