"""PyTorch: does the gradient reach every layer of a model as it is initialised?

``gradflow(model, loss, batch)``: a model of PyTorch's own layers resets itself for each
initialisation; one with an initialisation of its own is built by ``make=``.
"""

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812  # as everybody writes it


@pytest.fixture(autouse=True)
def seeded():
    # Weights and inputs are drawn below; leave the generator as it was found.
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def classify(model, batch):
    images, labels = batch
    return F.cross_entropy(model(images), labels)


def images(*shape):
    return torch.randn(32, *shape), torch.randint(0, 10, (32,))


# --- a residual network with activations in place -----------------------------------------------


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.one = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.two = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)

    def forward(self, x):
        out = F.relu(self.norm1(self.one(x)), inplace=True)
        out = self.norm2(self.two(out))
        out += x
        return F.relu(out, inplace=True)


def test_residual_network(gradflow):
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        *[Block(8) for _ in range(4)],
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 10),
    )
    gradflow(model, classify, images(3, 8, 8))


# --- an initialisation of one's own, and the optimizer's first step -----------------------------


def deep():
    """Forty layers, which only the right initialisation makes trainable."""
    layers = []
    for number in range(40):
        layer = nn.Linear(16 if number == 0 else 64, 64)
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.zeros_(layer.bias)
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(64, 10))


def test_deep_network(gradflow):
    def adam(parameters):
        return torch.optim.Adam(parameters, lr=1e-3)

    result = gradflow(None, classify, images(16), make=deep, optimizer=adam)
    updates = [row[3] for row in result.table("parameters").rows]
    assert max(u for u in updates if u is not None) < 0.1


# --- parts that are meant to stay as they are ----------------------------------------------------


def test_fine_tuning(gradflow):
    body = nn.Sequential(nn.Linear(16, 32), nn.ReLU())
    body.requires_grad_(False)
    model = nn.Sequential(body, nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10))
    gradflow(model, classify, images(16), frozen="0")


# --- a recurrence, call by call -----------------------------------------------------------------


class Reader(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.LSTMCell(8, 32), nn.Linear(32, 10)

    def forward(self, x):
        state = None
        for step in x.unbind(1):
            state = self.cell(step, state)
        return self.head(state[0])


def test_recurrence(gradflow):
    gradflow(Reader(), classify, images(10, 8))
