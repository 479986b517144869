"""Deep rectifier networks as torch starts them: the gradients fade, and kinks blur what is left."""

from dataclasses import replace

import pytest
import torch
from identities import scaled
from torch import nn

from pytest_gradcheck import check_gradient
from pytest_gradcheck.numerics import growth
from pytest_gradcheck.numerics.differences import of_one

EVALUATIONS = 40  # medians are near 22; near 40 before one step did along later directions


def network(width=96, layers=16):
    torch.manual_seed(0)
    parts = [part for _ in range(layers) for part in (nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(*parts[:-1]).double(), torch.randn(64, width).double()


def loss(model, x):
    return model(x).square().mean()


@pytest.mark.parametrize("seed", range(4))
def test_a_few_evaluations_are_enough(seed):
    model, x = network()
    result = check_gradient(loss, model, x, wrt="model", seed=seed)
    assert result.verdict == "pass", result.headline
    assert result.context.evaluations <= EVALUATIONS
    assert max(row[1] for row in result.table("resolution").rows) <= 0.5


@pytest.mark.parametrize("factor", [0.0, -1.0, 2.0])
@pytest.mark.parametrize("layer", [0, 8, 30])
def test_a_wrong_layer_is_found(layer, factor):
    model, x = network()
    wrong = scaled(factor)

    class Linear(nn.Linear):
        def forward(self, x):
            return nn.functional.linear(x, wrong(self.weight), self.bias)

    model[layer].__class__ = Linear
    result = check_gradient(loss, model, x, wrt="model")
    assert result.verdict == "fail", result.headline
    assert result.findings[0].where == f"model.{layer}.weight"


def test_one_step_that_is_off_accuses_nobody(monkeypatch):
    model, x = network(width=32)
    plain = check_gradient(loss, model, x, wrt="model")
    displaced = []

    def off(*given):
        found = of_one(*given)
        if found is None:
            return None
        displaced.append(found)
        return replace(found, value=found.value + 3 * found.bound)

    monkeypatch.setattr(growth, "of_one", off)
    result = check_gradient(loss, model, x, wrt="model")
    assert displaced
    assert result.verdict == "pass", result.headline
    assert result.context.evaluations > plain.context.evaluations
