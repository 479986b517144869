"""The first loss beside that of a constant answer: only where the loss is known for certain."""

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
N, K = 64, 5
X = RNG.normal(size=(N, 8)).astype(np.float32)
LABELS = RNG.integers(0, K, N)
RARE = np.where(np.arange(N) == 0, 1, 0)  # one of 64
SMOOTH = RNG.normal(size=(N, 1)).astype(np.float32)


def make(out, bias=0.0):
    def made(seed):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, out))
        nn.init.constant_(model[-1].bias, bias)
        return model

    return made


def check(loss, y, out, bias=0.0):
    batch = (torch.tensor(X), torch.tensor(y))
    run = lambda model, batch: loss(model(batch[0]), batch[1])  # noqa: E731  # of answer and target
    return check_flow(None, run, batch, make=make(out, bias), seed=1)


def told(result):
    return [(f.code.removeprefix("flow-"), f.severity) for f in result.findings]


def square(z, y):
    return (z - y).square().mean()


HEALTHY = {
    "classes": (F.cross_entropy, LABELS, K),
    "a sum": (lambda z, y: F.cross_entropy(z, y, reduction="sum"), LABELS, K),
    "binary": (
        lambda z, y: F.binary_cross_entropy_with_logits(z[:, 0], y.float()),
        LABELS % 2,
        1,
    ),
    "numbers": (square, SMOOTH, 1),
    "numbers, a sum": (lambda z, y: (z - y).square().sum(), SMOOTH, 1),
    "one class": (F.cross_entropy, 0 * LABELS, K),  # whose entropy is zero
    "one number": (square, 0 * SMOOTH + 0.5, 1),
    # what is another loss: nothing is known, and nothing said
    "weighted": (lambda z, y: F.cross_entropy(z, y, torch.arange(1.0, K + 1)), RARE, K),
    "smoothed": (lambda z, y: F.cross_entropy(z, y, label_smoothing=0.1), RARE, K),
    "an offset": (lambda z, y: F.cross_entropy(z, y) + 7.0, RARE, K),
    "scaled": (lambda z, y: 1e3 * F.cross_entropy(z, y), RARE, K),
    "two parts": (lambda z, y: square(z, y) + z.abs().mean(), SMOOTH + 40, 1),
    "absolute": (lambda z, y: (z - y).abs().mean(), SMOOTH + 40, 1),
    "huber": (F.huber_loss, SMOOTH + 40, 1),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_nothing_is_said_of_a_loss_that_is_as_it_should_be_or_not_known(name):
    assert told(check(*HEALTHY[name])) == []


FAR = {
    "targets far from zero": (square, SMOOTH + 40, 1, "the variance of the targets"),
    "summed": (lambda z, y: (z - y).square().sum() / 2, SMOOTH + 40, 1, "the variance"),
    "rare classes": (F.cross_entropy, RARE, K, "the entropy of the labels"),
}


@pytest.mark.parametrize("name", FAR)
def test_a_constant_answer_that_is_far_better_is_told(name):
    loss, y, out, words = FAR[name]
    result = check(loss, y, out)
    assert (result.verdict, told(result)) == ("pass", [("constant", "warn")])
    assert words in result.findings[0].message


def test_a_bias_at_the_mean_of_the_targets_is_the_cure():
    assert told(check(square, SMOOTH + 8, 1)) == [("constant", "warn")]
    assert told(check(square, SMOOTH + 8, 1, bias=8.0)) == []


def test_labels_among_the_inputs_are_told():
    """A residual of one-hot labels: what no fresh model can know."""
    inputs = np.concatenate([X, 10 * np.eye(K, dtype=np.float32)[LABELS]], 1)

    class Leaks(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, K))

        def forward(self, x):
            return self.body(x[:, :8]) + x[:, 8:]

    batch = (torch.tensor(inputs), torch.tensor(LABELS))
    loss = lambda m, b: F.cross_entropy(m(b[0]), b[1])  # noqa: E731  # the usual one
    result = check_flow(None, loss, batch, make=Leaks, seed=1)
    assert (result.verdict, told(result)) == ("pass", [("label-leak", "warn")])
    model = Leaks()
    with torch.no_grad():
        model.body[0].weight.mul_(3.0)  # as a trained one: no draw of its own initialisation
    assert "label-leak" not in [code for code, _ in told(check_flow(model, loss, batch))]


def jax_make(seed):
    rng = np.random.default_rng(seed)
    sizes = [(8, 32), (32, 1)]
    return [jnp.asarray(rng.normal(size=s) * (2 / s[0]) ** 0.5, jnp.float32) for s in sizes]


def numpy_make(seed):
    return [np.asarray(w) for w in jax_make(seed)]


def jax_loss(params, batch):
    x, y = batch
    return jnp.mean((jax.nn.relu(x @ params[0]) @ params[1] - y) ** 2)


def numpy_loss(params, batch):
    x, y = batch
    z = x @ params[0]
    h = np.maximum(z, 0)
    out = h @ params[1]
    g = 2 * (out - y) / len(y)
    g_h = g @ params[1].T
    layers = [("0", z, g_h * (z > 0)), ("0.relu", h, g_h), ("1", out, g)]
    return float(np.mean((out - y) ** 2)), layers


@pytest.mark.parametrize(("loss", "make"), [(jax_loss, jax_make), (numpy_loss, numpy_make)])
def test_jax_and_numpy_alike(loss, make):
    for shift, expected in ((0, []), (40, [("constant", "warn")])):
        backend = "jax" if loss is jax_loss else "numpy"
        batch = (X, SMOOTH + np.float32(shift))
        result = check_flow(None, loss, batch, make=make, seed=1, backend=backend)
        assert (result.verdict, told(result)) == ("pass", expected)


def test_a_constant_costs_what_it_does_by_hand():
    scores = RNG.normal(size=(N, K))
    logs = np.log(np.exp(scores).sum(1))
    cost = logs - scores[np.arange(N), LABELS]
    shares = np.bincount(LABELS, minlength=K) / N
    entropy = -(shares * np.log(shares)).sum()
    for loss, least in ((cost.mean(), entropy), (cost.sum(), N * entropy)):
        found = targets.constant(loss, scores, [X, LABELS])
        assert (found.kind, found.loss) == ("labels", pytest.approx(least))
    probabilities = np.exp(scores - logs[:, None])
    assert targets.constant(cost.mean(), probabilities, [LABELS]).loss == pytest.approx(entropy)
    some = np.where(np.arange(N) < 8, -100, LABELS)  # left out, as torch does
    assert targets.constant(cost[8:].mean(), scores, [some]).kind == "labels"
    wide = RNG.normal(size=(N, 3)) * [1, 2, 3]
    found = targets.constant(np.square(wide).mean(), np.zeros((N, 3)), [wide])
    assert found.loss == pytest.approx(wide.var(0).mean())


UNKNOWN = {
    "no loss": (None, SMOOTH, [SMOOTH]),
    "not finite": (np.nan, SMOOTH, [SMOOTH]),
    "no answer": (1.0, None, [SMOOTH]),
    "an answer that is not finite": (1.0, SMOOTH * np.inf, [SMOOTH]),
    "no targets": (1.0, SMOOTH, [X, np.array(["a", "b"]), np.float32(3.0)]),
    "labels out of range": (1.0, RNG.normal(size=(N, K)), [LABELS + 9]),
    "a single sample": (1.0, SMOOTH[:1], [SMOOTH[:1]]),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_where_nothing_is_certain_there_is_nothing(name):
    assert targets.constant(*UNKNOWN[name]) is None


ONE_HOT = np.eye(K, dtype=np.float32)[LABELS]
FORMS = {  # of a loss of probabilities: of each answer or of each class, with labels in two forms
    "one-hot labels": (nn.Sigmoid, F.binary_cross_entropy, ONE_HOT, K),
    "labels, made one-hot": (
        nn.Sigmoid,
        lambda p, y: F.binary_cross_entropy(p, F.one_hot(y, K).float()),
        LABELS,
        K,
    ),
    "one answer": (
        nn.Sigmoid,
        lambda p, y: F.binary_cross_entropy(p[:, 0], y.float()),
        LABELS % 2,
        1,
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_loss_of_probabilities_is_held_against_even_odds(name):
    """An answer of zero, which costs the most there is, would excuse any start."""
    end, loss, y, out = FORMS[name]

    def made(seed, scale):
        model = nn.Sequential(*make(out)(seed), end())
        with torch.no_grad():
            model[2].weight.mul_(scale)
        return model

    batch = (torch.tensor(X), torch.tensor(y))
    run = lambda model, batch: loss(model(batch[0]), batch[1])  # noqa: E731  # of answer and target
    for scale, expected in ((1.0, []), (300.0, ["first-loss"])):
        result = check_flow(None, run, batch, make=lambda seed, s=scale: made(seed, s), seed=1)
        found = [f for f in result.findings if f.severity == "fail"]
        assert [f.code.removeprefix("flow-") for f in found] == expected
        assert all("times that of even odds" in f.message for f in found)


def test_even_odds_by_hand():
    scores = RNG.normal(size=(N, K))
    on = ONE_HOT.astype(float)
    each = np.logaddexp(0, scores) - on * scores
    for target in (ONE_HOT, LABELS):
        found = targets.constant(each.mean(), scores, [target])
        assert (found.kind, found.even) == ("labels", pytest.approx(np.log(2)))
        assert np.isnan(found.loss)
    sure = np.where(on == 1, 0.0, 1.0)  # of the wrong class: torch takes logarithms from -100 on
    assert targets.constant(100.0, sure, [ONE_HOT]).even == pytest.approx(np.log(2))
