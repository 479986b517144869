"""A module in a function under test: its methods, parts and parameters are those that are moved."""

import pytest
import torch
from identities import scaled
from torch import nn

from pytest_gradcheck import check_gradient


class Coder(nn.Module):
    """An autoencoder with methods of its own."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 4))
        self.scale = nn.Parameter(torch.ones(4))
        self.register_buffer("shift", torch.zeros(4))
        self.double()

    def encode(self, x):
        return self.layers[1](self.layers[0](x))

    def forward(self, x):
        return self.layers[2](self.encode(x)) * self.scale + self.shift


X = torch.linspace(-1, 1, 8, dtype=torch.float64).reshape(2, 4)
USES = {
    "methods": lambda m, x: m.layers[2](m.encode(x)) * m.scale,
    "a container": lambda m, x: sum(part(x[:, :4]).sum() for part in m.layers[:1]) * m.scale,
    "items": lambda m, x: next(iter(m.layers))(x) * m.scale.sum() + m.layers[2].bias.sum(),
    "a penalty": lambda m, x: m(x).sum() + sum(p.square().sum() for p in m.parameters()),
    "names": lambda m, x: m(x).sum() + sum(p.sum() ** 2 for n, p in m.named_parameters()),
    "a state": lambda m, x: m(x).sum() + m.layers[0].weight.square().sum() * len(m.layers),
}


@pytest.mark.parametrize("name", USES)
def test_what_is_used_of_a_module_is_what_is_moved(name):
    model = Coder()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    result = check_gradient(USES[name], model, X)
    assert (result.verdict, result.headline) == ("pass", result.headline)
    assert not any(f.code.startswith("independent") and f.where == "scale" for f in result.findings)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_a_wrong_gradient_through_a_method_fails():
    def loss(m, x):
        return scaled(0.5)(m.encode(x)).sum() + m.scale.sum()

    result = check_gradient(loss, Coder(), X, wrt="m")
    assert result.verdict == "fail"
    assert "layers.0" in result.headline


def test_a_missing_name_is_an_error_of_the_user():
    from pytest_gradcheck import UsageError

    with pytest.raises(UsageError, match="no attribute 'encoder'"):
        check_gradient(lambda m, x: m.encoder(x), Coder(), X)
