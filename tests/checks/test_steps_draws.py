"""A backward that is wrong in one tensor, where the loss draws numbers or has many kinks."""

import pytest
import torch
from torch import nn

from pytest_gradcheck import Training, check_step


class Longer(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return ctx.factor * g, None


NOISE = {
    "none": lambda x: 0.3,
    "normal": torch.randn_like,
    "uniform": torch.rand_like,
    "chances": lambda x: torch.bernoulli(torch.full_like(x, 0.3)),
    "a distribution": lambda x: torch.distributions.Normal(0 * x, 1 + 0 * x).rsample(),
    "dropout": lambda x: nn.functional.dropout(torch.ones_like(x), 0.3),
}


class Autoencoder(nn.Module):
    """A variational one; the second layer's weight goes through a function of one's own."""

    def __init__(self, activation, noise, factor):
        super().__init__()
        self.first, self.second = nn.Linear(16, 64), nn.Linear(64, 64)
        self.mean, self.variance = nn.Linear(64, 8), nn.Linear(64, 8)
        self.activation, self.noise, self.factor = activation(), noise, factor
        inner = [nn.Linear(8, 64), activation(), nn.Linear(64, 64), activation()]
        self.decoder = nn.Sequential(*inner, nn.Linear(64, 16))

    def forward(self, x):
        weight = Longer.apply(self.second.weight, self.factor)
        x = self.activation(self.first(x))
        x = self.activation(nn.functional.linear(x, weight, self.second.bias))
        mean, variance = self.mean(x), self.variance(x)
        code = mean + torch.exp(0.5 * variance) * self.noise(mean)
        return self.decoder(code), mean, variance


def training(seed, activation, noise, factor):
    torch.manual_seed(seed)
    model = Autoencoder(activation, noise, factor)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    batches = [torch.randn(32, 16) for _ in range(3)]

    def loss(x):
        y, mean, variance = model(x)
        apart = -0.5 * (1 + variance - mean**2 - variance.exp()).sum(1).mean()
        return nn.functional.l1_loss(y, x) + 0.1 * apart

    def step(x):
        optimizer.zero_grad()
        loss(x).backward()
        optimizer.step()

    return Training(step=step, loss=loss, batches=batches, model=model, optimizer=optimizer)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh])
@pytest.mark.parametrize("name", NOISE)
def test_one_wrong_tensor_is_found(name, activation):
    result = check_step(lambda: training(0, activation, NOISE[name], 1.2))
    assert result.verdict == "fail"
    assert "second.weight" in result.headline


@pytest.mark.parametrize("seed", range(3))
def test_no_step_of_float32_is_short_enough_among_kinks(seed):
    assert check_step(lambda: training(seed, nn.ReLU, NOISE["none"], 1.1)).verdict == "fail"


@pytest.mark.parametrize("name", NOISE)
def test_a_right_one_passes(name):
    result = check_step(lambda: training(1, nn.ReLU, NOISE[name], 1.0))
    assert result.verdict == "pass", result.headline
