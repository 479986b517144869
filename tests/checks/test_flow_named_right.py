"""What is wrong goes by its own name, and what is meant is a note."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

from pytest_gradcheck import check_flow

RNG = np.random.default_rng(0)
X = RNG.normal(size=(32, 16)).astype(np.float32)
LABELS = RNG.integers(0, 10, size=32)
BATCH = torch.tensor(X), torch.tensor(LABELS)


def entropy(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def chain(act=nn.ReLU):
    return nn.Sequential(nn.Linear(16, 64), act(), nn.Linear(64, 64), act(), nn.Linear(64, 10))


def blank(act=nn.ReLU):
    model = chain(act)
    for p in model.parameters():
        nn.init.zeros_(p)
    return model


@pytest.mark.parametrize("act", [nn.ReLU, nn.Tanh])
def test_weights_of_zero_are_named(act):
    for result in (
        check_flow(blank(act), entropy, BATCH),
        check_flow(None, entropy, BATCH, make=lambda: blank(act)),
    ):
        first = result.findings[0]
        assert (result.verdict, first.code, first.where) == ("fail", "flow-symmetric", "0.weight")
        assert "are zero" in first.message
        assert "draw the weights at random" in result.advice[0]


def test_one_layer_that_starts_at_zero_is_none():
    def make():
        model = nn.Linear(16, 10)
        nn.init.zeros_(model.weight)
        nn.init.zeros_(model.bias)
        return model

    assert check_flow(None, entropy, BATCH, make=make).verdict == "pass"


def test_a_checkpoint_is_a_single_realisation():
    torch.manual_seed(0)
    model = chain()
    result = check_flow(None, entropy, BATCH, make=lambda: copy.deepcopy(model))
    assert (result.verdict, [f.code for f in result.findings]) == ("pass", ["flow-single"])
    bad = blank()
    nn.init.xavier_normal_(bad[0].weight)
    result = check_flow(None, entropy, BATCH, make=lambda: copy.deepcopy(bad))
    assert result.verdict == "fail"


@pytest.mark.parametrize(("factor", "verdict"), [(1.0, "pass"), (0.1, "fail")])
def test_norms_alone_are_judged(factor, verdict):
    assert check_flow({f"l{n}": factor ** (9 - n) for n in range(10)}).verdict == verdict


class Experts(nn.Module):
    def __init__(self, count=16, is_lost=False):
        super().__init__()
        self.gate, self.out = nn.Linear(16, count), nn.Linear(32, 10)
        self.experts = nn.ModuleList(nn.Linear(16, 32) for _ in range(count))
        self.lost = nn.Linear(16, 32) if is_lost else None
        nn.init.normal_(self.gate.weight, 0, 0.02)

    def forward(self, x):
        share, chosen = self.gate(x).softmax(1).max(1)
        h = torch.zeros(len(x), 32)
        for n in chosen.unique().tolist():
            rows = (chosen == n).nonzero()[:, 0]
            h = h.index_add(0, rows, share[rows, None] * self.experts[n](x[rows]))
        return self.out(torch.relu(h))


@pytest.mark.parametrize("is_single", [True, False])
def test_an_expert_without_samples_is_a_note(is_single):
    torch.manual_seed(0)
    result = (
        check_flow(Experts(), entropy, BATCH, seeds=1)
        if is_single
        else check_flow(None, entropy, BATCH, make=Experts)
    )
    assert result.verdict == "pass"
    assert "flow-idle" in [f.code for f in result.findings if f.severity == "note"]


def test_a_layer_that_nothing_reaches_is_none():
    result = check_flow(None, entropy, BATCH, make=lambda: Experts(is_lost=True))
    first = result.findings[0]
    assert (first.code, first.where) == ("flow-missing", "lost.weight")


def test_an_expert_without_samples_in_jax():
    def make(seed):
        rng = np.random.default_rng(seed)
        shapes = {"gate": (16, 8), "out": (32, 10), **{f"e{n}": (16, 32) for n in range(8)}}
        return {k: jnp.asarray(0.2 * rng.normal(size=s), jnp.float32) for k, s in shapes.items()}

    def loss(p, batch):
        share = jax.nn.softmax(batch @ p["gate"])
        chosen = (jnp.arange(8) == share.argmax(1)[:, None]) & (jnp.arange(8) != 9)
        h = sum(
            jnp.where(chosen[:, n : n + 1], share[:, n : n + 1] * (batch @ p[f"e{n}"]), 0.0)
            for n in range(8)
        )
        return -jnp.mean(jax.nn.log_softmax(jax.nn.relu(h) @ p["out"])[jnp.arange(8), LABELS[:8]])

    result = check_flow(make(3), loss, jnp.asarray(X[:8]))
    assert result.verdict == "pass"
    assert "flow-idle" in [f.code for f in result.findings]


def recorded(params, batch):
    x, targets = batch
    z = x @ params["in"]
    a = np.maximum(z, 0)
    out = a @ params["out"]
    g = 2 * (out - targets) / len(out)
    layers = [("in", z, g @ params["out"].T * (z > 0)), ("in.relu", a, g @ params["out"].T)]
    return np.mean((out - targets) ** 2), [*layers, ("out", out, g)]


def drawn(seed):
    rng = np.random.default_rng(seed)
    return {"in": 0.35 * rng.normal(size=(16, 64)), "out": 0.125 * rng.normal(size=(64, 1))}


def test_what_a_numpy_loss_is_given_is_blamed():
    x, targets = X.astype(np.float64), X[:, :1].astype(np.float64)
    wrong = x.copy()
    wrong[3, 2] = np.nan
    assert check_flow(None, recorded, (wrong, targets), make=drawn).findings[0].where == (
        "batch[0][3, 2]"
    )
    wrong = targets.copy()
    wrong[5, 0] = np.inf
    assert check_flow(None, recorded, (x, wrong), make=drawn).findings[0].where == "batch[1][5, 0]"
    params = drawn(0)
    params["out"][2, 0] = np.nan
    assert check_flow(params, recorded, (x, targets)).findings[0].where == "out[2, 0]"


def test_the_record_that_is_not_finite_is_the_one_that_is_looked_at():
    rng = np.random.default_rng(0)
    runs = [
        [(name, rng.normal(size=(20, 3)), rng.normal(size=(20, 3))) for name in "abc"]
        for _ in range(6)
    ]
    runs[4][1][1][0, 0] = runs[4][1][2][0, 0] = np.nan
    finding = check_flow(runs).findings[0]
    assert (finding.code, finding.where) == ("flow-nonfinite", "b")


SMOOTH = {
    "gelu": jax.nn.gelu,
    "exact gelu": lambda z: jax.nn.gelu(z, approximate=False),
    "silu": jax.nn.silu,
    "elu": jax.nn.elu,
    "softplus": jax.nn.softplus,
    "mish": jax.nn.mish,
}


def smooth(act, bias, is_stack=False):
    def make(seed):
        rng = np.random.default_rng(seed)
        shapes = {"one": (16, 64), "two": (3, 64, 64) if is_stack else (64, 64), "out": (64, 10)}
        drawn = {k: rng.normal(size=s) * (2 / s[-2]) ** 0.5 for k, s in shapes.items()}
        made = {k: jnp.asarray(w, jnp.float32) for k, w in drawn.items()}
        return made | {"bias": jnp.full((*made["two"].shape[:-2], 64), bias)}

    def loss(p, x):
        step = lambda h, wb: (act(h @ wb[0] + wb[1]), None)  # noqa: E731
        h = x @ p["one"]
        if is_stack:
            h = jax.lax.scan(step, h, (p["two"], p["bias"]))[0]
        else:
            h = step(h, (p["two"], p["bias"]))[0]
        return -jnp.mean(jax.nn.log_softmax(h @ p["out"])[jnp.arange(32), LABELS])

    return check_flow(None, loss, jnp.asarray(X), make=make)


@pytest.mark.parametrize("name", SMOOTH)
def test_smooth_rectifiers_of_jax_that_are_off_are_dead(name):
    result = smooth(SMOOTH[name], -20.0)
    first, cause = result.findings[:2]
    assert (result.verdict, first.code, cause.code) == ("fail", "flow-dead", "flow-cause-bias")
    assert first.where.startswith("two.")
    assert smooth(SMOOTH[name], 0.0).verdict == "pass"


@pytest.mark.parametrize("name", ["gelu", "silu"])
def test_smooth_rectifiers_in_a_scan_are_looked_at_layer_by_layer(name):
    first = smooth(SMOOTH[name], -20.0, is_stack=True).findings[0]
    assert (first.code, first.where) == ("flow-dead", f"two.{name}[0]")


def test_a_parameter_that_jax_does_not_use_stays_missing():
    def make(seed):
        rng = np.random.default_rng(seed)
        return {k: jnp.asarray(0.3 * rng.normal(size=(16, 10))) for k in ("used", "left")}

    def loss(p, x):
        return -jnp.mean(jax.nn.log_softmax(x @ p["used"])[jnp.arange(32), LABELS])

    first = check_flow(None, loss, jnp.asarray(X), make=make).findings[0]
    assert (first.code, first.where) == ("flow-missing", "left")


def test_a_running_statistic_of_nnx_that_is_not_finite_is_blamed():
    nnx = pytest.importorskip("flax.nnx")

    class Normed(nnx.Module):
        def __init__(self, rngs):
            self.one = nnx.Linear(16, 8, rngs=rngs)
            self.norm = nnx.BatchNorm(8, rngs=rngs, use_running_average=True)
            self.two = nnx.Linear(8, 4, rngs=rngs)

        def __call__(self, x):
            return self.two(nnx.relu(self.norm(self.one(x))))

    model = Normed(nnx.Rngs(0))
    model.norm.mean[...] = model.norm.mean[...].at[3].set(jnp.nan)
    finding = check_flow(model, lambda m, b: jnp.mean(m(b) ** 2), jnp.asarray(X)).findings[0]
    assert (finding.code, finding.where) == ("flow-nonfinite", "norm.mean[3]")
    assert "buffer norm.mean[3] is NaN" in finding.message
    assert np.isnan(np.asarray(model.norm.mean[...])[3])


def test_the_message_names_the_layer_that_is_the_cause():
    """Not the one after it, at which the gradient is seen to grow."""

    def make(seed):
        rng = np.random.default_rng(seed)
        turns = [np.linalg.qr(rng.normal(size=(16, 16)))[0] for _ in range(3)]
        shapes = {"x": (8, 48), "o": (16, 3)}
        drawn = {k: s[0] ** -0.5 * rng.normal(size=s) for k, s in shapes.items()}
        return {**drawn, "h": 20.0 * np.concatenate(turns, 1)}

    def loss(p, batch):
        def step(h, u):
            a, b = jnp.split(u @ p["x"], 3, 1), jnp.split(h @ p["h"], 3, 1)
            reset, keep = jax.nn.sigmoid(a[0] + b[0]), jax.nn.sigmoid(a[1] + b[1])
            return (1 - keep) * jnp.tanh(a[2] + reset * b[2]) + keep * h, None

        last = jax.lax.scan(step, jnp.zeros((8, 16)), batch)[0]
        return -jnp.mean(jax.nn.log_softmax(last @ p["o"])[:, 0])

    steps = np.random.default_rng(0).normal(size=(25, 8, 8))
    first = check_flow(None, loss, steps, make=make, backend="jax", seed=0).findings[0]
    assert (first.code, first.where) == ("flow-exploding", "h")
    assert first.message.startswith("the gradient grows at h: ")
