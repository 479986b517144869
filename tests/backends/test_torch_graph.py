"""Which layers feed which: graphs that can be written down by hand."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from pytest_gradcheck.backends import torch_flow

X = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self, run):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.bag = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
        self.run = run

    def forward(self, x):
        return self.run(self, x)


def fed(run):
    """Names of the layers that feed each one."""
    seen, _ = torch_flow.measure(Net(run), lambda m, b: m(b).square().sum(), X)
    names = [y.name for y in seen.layers]
    return {y.name: {names[p] for p in y.parents} for y in seen.layers}


GRAPHS = {
    # name: forward, who feeds whom
    "chain": (lambda m, x: m.c(m.b(m.a(x))), {"a": set(), "b": {"a"}, "c": {"b"}}),
    "sum": (lambda m, x: m.c(m.a(x) + m.b(x)), {"a": set(), "b": set(), "c": {"a", "b"}}),
    "skip": (
        lambda m, x: m.c((h := m.a(x)) + m.b(h)),
        {"a": set(), "b": {"a"}, "c": {"a", "b"}},
    ),
    "detached": (lambda m, x: m.b(m.a(x).detach()), {"a": set(), "b": set()}),
    "in place": (
        lambda m, x: m.b(m.a(x).mul_(2).relu_()),
        {"a": set(), "a.relu": {"a"}, "b": {"a.relu"}},
    ),
    "shared": (lambda m, x: m.a(m.b(m.a(x))), {"a": set(), "b": {"a"}, "a#2": {"b"}}),
    "container": (
        lambda m, x: m.c(m.bag(m.a(x))),
        {"a": set(), "bag.0": {"a"}, "bag.1": {"bag.0"}, "c": {"bag.1"}},
    ),
    "parts": (
        lambda m, x: m.b(torch.cat([m.a(x)[:, :2].exp(), x[:, 2:]], 1)),
        {"a": set(), "a.exp": {"a"}, "b": {"a.exp"}},
    ),
    "checkpoint": (
        lambda m, x: m.c(checkpoint(m.bag, m.a(x), use_reentrant=False)),
        {"a": set(), "bag.0": {"a"}, "bag.1": {"bag.0"}, "c": {"bag.1"}},
    ),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_who_feeds_whom(name):
    run, wanted = GRAPHS[name]
    assert fed(run) == wanted


def test_a_checkpoint_that_records_no_graph_is_bridged():
    found = fed(lambda m, x: m.c(checkpoint(m.bag, m.a(x), use_reentrant=True)))
    assert found["c"] == {"a"}


def test_a_long_chain_needs_no_deep_stack():
    found = fed(lambda m, x: m.c([x := x + 0.0 * m.a(x) for _ in range(3000)][-1]))
    assert len(found) == 3001
    assert found["c"] == {"a"} | {f"a#{n}" for n in range(2, 3001)}
