"""Networks that train and were accused of what they do on purpose."""

import torch
from torch import nn
from torch.nn import functional

from pytest_gradcheck import check_flow

G = torch.Generator().manual_seed(0)
X, Y = torch.randn(64, 16, generator=G), torch.randint(0, 10, (64,), generator=G)


def classified(model, batch):
    return functional.cross_entropy(model(batch[0]), batch[1])


def told(result, *severities):
    return [f.code for f in result.findings if f.severity in (severities or ("fail", "warn"))]


class WithLoss(nn.Module):
    """A module that answers its own loss."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 10))

    def forward(self, x, y):
        return functional.cross_entropy(self.body(x), y)


def test_a_module_that_answers_its_loss_has_no_answer_for_a_sample():
    result = check_flow(None, lambda m, b: m(*b), (X, Y), make=WithLoss, seed=0)
    assert (result.verdict, told(result)) == ("pass", [])
