"""Losses that train and are wrong, told by their value."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

from pytest_gradcheck import check_flow
from pytest_gradcheck.backends import targets

F = nn.functional
RNG = np.random.default_rng(0)
N, K = 32, 4
X = RNG.normal(size=(N, 8)).astype(np.float32)
NUMBERS = RNG.normal(size=N).astype(np.float32)
LABELS = RNG.integers(0, K, N)


def model(out, end=None):
    def make():
        parts = [nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, out)]
        return nn.Sequential(*parts, *([end()] if end else []))

    return make


def codes(loss, y, out, end=None):
    run = lambda m, batch: loss(m(batch[0]), batch[1])  # noqa: E731  # of answer and target
    batch = (torch.tensor(X), torch.tensor(y))
    result = check_flow(None, run, batch, make=model(out, end), seed=0)
    return result.verdict, [f.code for f in result.findings]


def softmax():
    return nn.Softmax(1)


WRONG = {
    "broadcast": (lambda p, y: (p - y).square().mean(), NUMBERS, 1, None, "flow-crossed"),
    "broadcast, a sum": (lambda p, y: (p - y).square().sum(), NUMBERS, 1, None, "flow-crossed"),
    "broadcast, absolute": (lambda p, y: (p - y).abs().mean(), NUMBERS, 1, None, "flow-crossed"),
    "broadcast labels": (lambda p, y: (p - y).square().mean(), LABELS, 1, None, "flow-crossed"),
    "broadcast the other way": (
        lambda p, y: (p[:, 0] - y).square().mean(),
        NUMBERS[:, None],
        1,
        None,
        "flow-crossed",
    ),
    "broadcast, a root": (
        lambda p, y: (p - y).square().mean().sqrt(),
        NUMBERS,
        1,
        None,
        "flow-crossed",
    ),
    "scores for logarithms": (F.nll_loss, LABELS, K, None, "flow-unlogged"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_loss_that_is_wrong_by_its_value_fails(name):
    loss, y, out, end, code = WRONG[name]
    verdict, found = codes(loss, y, out, end)
    assert (verdict, found) == ("fail", [code])


def test_probabilities_for_logarithms_may_be_meant():
    """As an expected reward, which is no mistake."""
    assert codes(F.nll_loss, LABELS, K, softmax) == ("pass", ["flow-unlogged"])


def test_a_softmax_taken_twice_is_a_warning():
    assert codes(F.cross_entropy, LABELS, K, softmax) == ("pass", ["flow-squashed"])


def test_a_softmax_inside_the_loss_before_the_cross_entropy_is_the_same_mistake():
    twice = lambda z, y: F.cross_entropy(torch.softmax(z, 1), y)  # noqa: E731  # short
    assert codes(twice, LABELS, K) == ("pass", ["flow-squashed"])

    def drawn(seed):
        rng = np.random.default_rng(seed)
        return [rng.normal(size=s) * s[0] ** -0.5 for s in ((8, 32), (32, K))]

    def scores(p, x):
        return jnp.maximum(x @ p[0], 0) @ p[1]

    def right(p, batch):
        return -jnp.mean(jax.nn.log_softmax(scores(p, batch[0]))[np.arange(N), batch[1]])

    def wrong(p, batch):
        found = jax.nn.softmax(scores(p, batch[0]))
        return -jnp.mean(jax.nn.log_softmax(found)[np.arange(N), batch[1]])

    for loss, told in ((right, []), (wrong, ["flow-squashed"])):
        result = check_flow(None, loss, (X, LABELS), make=drawn, seed=0, backend="jax")
        assert [f.code for f in result.findings] == told


RIGHT = {
    "a root": (lambda p, y: (p[:, 0] - y).square().mean().sqrt(), NUMBERS, 1, None),
    "numbers": (lambda p, y: (p[:, 0] - y).square().mean(), NUMBERS, 1, None),
    "a column": (lambda p, y: (p - y).square().mean(), NUMBERS[:, None], 1, None),
    "one number": (lambda p, y: (p - y).square().mean(), 0 * NUMBERS + 1, 1, None),
    "likelihood": (F.nll_loss, LABELS, K, lambda: nn.LogSoftmax(1)),
    "of probabilities": (lambda p, y: F.nll_loss(p.log(), y), LABELS, K, softmax),
    "scores": (F.cross_entropy, LABELS, K, None),
    "logarithms through a softmax": (F.cross_entropy, LABELS, K, lambda: nn.LogSoftmax(1)),
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_loss_that_is_right_is_not_told(name):
    assert codes(*RIGHT[name]) == ("pass", [])


def test_jax_and_numpy_alike():
    def drawn(seed):
        rng = np.random.default_rng(seed)
        return [rng.normal(size=s) * s[0] ** -0.5 for s in ((8, 32), (32, 1))]

    def jax_loss(p, batch):
        return jnp.mean((jnp.tanh(batch[0] @ p[0]) @ p[1] - batch[1]) ** 2)

    def numpy_loss(p, batch):
        a = np.tanh(batch[0] @ p[0])
        out = a @ p[1]
        gap = out - batch[1]
        g = 2 * gap.sum(1, keepdims=True) / gap.size
        layers = [("0", batch[0] @ p[0], g @ p[1].T * (1 - a**2)), ("1", out, g)]
        return np.mean(gap**2), layers

    for loss, backend in ((jax_loss, "jax"), (numpy_loss, "numpy")):
        result = check_flow(None, loss, (X, NUMBERS), make=drawn, seed=0, backend=backend)
        assert result.findings[0].code == "flow-crossed"


def test_many_samples_are_not_crossed():
    many = RNG.normal(size=targets.CROSSED + 1)
    loss = np.mean((many[:, None] - many[::-1]) ** 2)
    assert targets.constant(loss, many[:, None], [many[::-1].copy()]) is None


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize("loss", [F.huber_loss, F.smooth_l1_loss])
def test_robust_losses_are_told_too(loss):
    assert codes(loss, NUMBERS, 1) == ("fail", ["flow-crossed"])
    assert codes(loss, NUMBERS[:, None], 1) == ("pass", [])
    far = NUMBERS[:, None] + 9  # all answers on one side
    assert "flow-crossed" not in codes(loss, far, 1)[1]


def test_classes_may_stand_before_places():
    class Pixels(nn.Module):
        def __init__(self, end):
            super().__init__()
            self.one, self.two, self.end = nn.Conv2d(3, 16, 3), nn.Conv2d(16, K, 3), end

        def forward(self, x):
            return self.end(2.0 * self.two(torch.relu(self.one(x))))

    generator = torch.Generator().manual_seed(0)
    batch = (
        torch.randn(8, 3, 8, 8, generator=generator),
        torch.randint(0, K, (8, 4, 4), generator=generator),
    )
    for end, loss, expected in (
        (nn.Identity(), F.cross_entropy, []),
        (nn.LogSoftmax(1), F.nll_loss, []),
        (nn.Softmax(1), F.cross_entropy, ["flow-squashed"]),
        (nn.Softmax(1), F.nll_loss, ["flow-unlogged"]),
        (nn.Identity(), F.nll_loss, ["flow-unlogged"]),
    ):
        run = lambda m, b, f=loss: f(m(b[0]), b[1])  # noqa: E731  # of answer and target
        result = check_flow(None, run, batch, make=lambda e=end: Pixels(e), seed=0)
        assert [f.code for f in result.findings] == expected
        is_wrong = expected == ["flow-unlogged"] and isinstance(end, nn.Identity)
        assert result.verdict == ("fail" if is_wrong else "pass")


def test_logarithms_of_what_is_no_distribution_are_logarithms():
    assert codes(F.nll_loss, LABELS, K, nn.LogSigmoid) == ("pass", [])


def test_a_loss_of_the_model_around_it_is_told_which_one_it_is_given():
    mine, batch = model(1)(), (torch.tensor(X), torch.tensor(NUMBERS))
    result = check_flow(mine, lambda m, b: F.mse_loss(mine(b[0])[:, 0], b[1]), batch)
    assert [f.code for f in result.findings] == ["flow-detached"]
    assert "the model that it is called with (a copy of yours" in result.advice[0]
