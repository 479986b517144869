"""Healthy models pass, and each fault is named with its layer and its cause."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

from pytest_gradcheck import check_flow

RNG = np.random.default_rng(0)
X = RNG.normal(size=(64, 8)).astype(np.float32)
Y = RNG.integers(0, 4, 64)
BATCH = (torch.tensor(X), torch.tensor(Y))


def loss(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def net(depth=6, act=nn.ReLU, gain=1.0, bias=0.0, odd=None, width=32):
    def make():
        parts = []
        for k in range(depth - 1):
            layer = nn.Linear(8 if k == 0 else width, width)
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.constant_(layer.bias, bias if odd in (None, k) else 0.0)
            with torch.no_grad():
                layer.weight.mul_(gain if odd in (None, k) else 1.0)
            parts += [layer, act()]
        return nn.Sequential(*parts, nn.Linear(width, 4))

    return make


def check(make, loss=loss, batch=BATCH, **more):
    return check_flow(None, loss, batch, make=make, seed=1, **more)


def codes(result, *severities):
    wanted = severities or ("fail", "warn", "note")
    return [f.code.removeprefix("flow-") for f in result.findings if f.severity in wanted]


@pytest.mark.parametrize("act", [nn.ReLU, nn.Tanh, nn.GELU, nn.SELU, nn.LeakyReLU])
@pytest.mark.parametrize("depth", [2, 8])
def test_a_healthy_network_passes(act, depth):
    result = check(net(depth, act))
    assert result.verdict == "pass", result.headline
    assert codes(result) == []
    assert "from end to end, 5 initialisations" in result.headline


def test_deep_critical_networks_pass():
    assert check(net(40, width=64)).verdict == "pass"


FAULTS = {
    # name: model, symptom, layer, cause
    "sigmoid": (net(10, nn.Sigmoid), "vanishing", None, "activation"),
    "too small": (net(10, gain=0.05), "vanishing", None, "init"),
    "tanh too small": (net(10, nn.Tanh, 0.05), "vanishing", None, "init"),
    "tanh too large": (net(20, nn.Tanh, 5.0), "exploding", None, "init"),
    "too large": (net(10, gain=8.0), "first-loss", None, "init"),
    "dead": (net(5, bias=-20.0), "dead", None, "bias"),
    "one dead": (net(6, bias=-50.0, odd=2), "dead", "5", None),
    "one layer tiny": (net(8, gain=1e-5, odd=3), "vanishing", "6", "layer"),
    "one layer huge": (net(8, gain=1e4, odd=3), "first-loss", "6", "layer"),
    "saturated": (net(4, nn.Tanh, 1e3, odd=1), "saturated", "2", "layer"),
    "narrow": (net(16, width=4), "dead", None, None),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named_with_layer_and_cause(name):
    make, symptom, layer, cause = FAULTS[name]
    result = check(make)
    assert result.verdict == "fail", result.headline
    assert codes(result, "fail")[0] == symptom
    if layer is not None:
        assert result.findings[0].where == layer
    if cause is not None:
        assert f"cause-{cause}" in codes(result)
        assert result.table("interventions").rows[-1][-1] is True


def test_both_numbers_of_the_cause_are_told():
    result = check(net(10, nn.Sigmoid))
    finding = next(f for f in result.findings if f.code == "flow-cause-activation")
    assert finding.number("growth") == pytest.approx(1.0, abs=0.3)
    assert finding.number("growth_before") == result.findings[0].number("growth") < 0.5
    first = result.findings[0]
    assert first.number("low") < first.number("attenuation") < first.number("high") < 0.01


def test_one_culprit_is_told_from_a_uniform_decay_with_its_statistics():
    result = check(net(8, gain=1e-5, odd=3))
    one = next(f for f in result.findings if f.code == "flow-vanishing")
    assert one.where == "6"
    assert one.number("break_share") > 0.9
    assert one.number("break_p") < 1e-3
    even = check(net(10, nn.Sigmoid)).findings[0]
    assert even.where == "0"
    assert even.number("break_share") < 0.5
    assert even.number("break_p") > 0.01


def test_inputs_that_are_not_scaled_are_the_cause():
    for make, symptom in ((net(4), "first-loss"), (net(4, nn.Tanh), "saturated")):
        result = check(make, batch=(1000 * BATCH[0], BATCH[1]))
        assert codes(result, "fail")[0] == symptom
        assert "cause-input" in codes(result)
        assert result.advice[0].startswith("standardise the inputs")


class Parts(nn.Module):
    """Three layers and a forward that is given."""

    def __init__(self, run):
        super().__init__()
        self.one, self.two, self.head = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 4)
        self.run = run

    def forward(self, x):
        return self.run(self, x)


def plain(m, x):
    return m.head(torch.relu(m.two(torch.relu(m.one(x)))))


STRUCTURE = {
    "detached": (
        lambda m, x: m.head(m.two(torch.relu(m.one(x)).detach())),
        "missing",
        "one.weight",
    ),
    "left out": (lambda m, x: m.head(torch.relu(m.one(x))), "missing", "two.weight"),
    "zeroed": (lambda m, x: m.head(torch.relu(m.two(0 * m.one(x)) + 1)), "zero", "one.weight"),
}


@pytest.mark.parametrize("name", STRUCTURE)
def test_what_does_not_reach_a_parameter_is_named(name):
    run, symptom, where = STRUCTURE[name]
    result = check(lambda: Parts(run))
    assert (result.verdict, codes(result, "fail")[0]) == ("fail", symptom)
    assert result.findings[0].where == where


def frozen():
    model = Parts(plain)
    model.one.requires_grad_(False)
    return model


def test_frozen_parameters_are_to_be_declared():
    result = check(frozen)
    assert (result.verdict, codes(result)) == ("fail", ["frozen"])
    assert check(frozen, frozen="one").verdict == "pass"
    assert check(frozen, frozen=["one.*"]).verdict == "pass"
    assert check(lambda: Parts(STRUCTURE["left out"][0]), frozen="two").verdict == "pass"


def test_units_that_are_copies_are_found():
    def make():
        model = Parts(plain)
        for layer in (model.one, model.two):
            nn.init.constant_(layer.weight, 0.1 + torch.rand(1).item())
            nn.init.constant_(layer.bias, 0.1)
        return model

    result = check(make)
    assert codes(result, "fail")[0] == "symmetric"
    assert result.findings[0].where == "one.weight"


class Residual(nn.Module):
    """A block whose branch starts at zero, and a head that does."""

    def __init__(self, branch, head):
        super().__init__()
        self.one, self.two, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4)
        for layer in [self.two] * branch + [self.head] * head:
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x):
        return self.head(x + self.two(torch.tanh(self.one(x))))


@pytest.mark.parametrize(("branch", "head"), [(True, False), (False, True)])
def test_what_starts_at_zero_and_wakes_is_no_fault(branch, head):
    result = check(lambda: Residual(branch, head))
    assert (result.verdict, codes(result)) == ("pass", ["asleep"])


def test_what_starts_at_zero_and_sleeps_on_is_one():
    result = check(net(5, gain=0.0))
    assert result.verdict == "fail"
    assert codes(result, "fail")[0] == "symmetric"


class Cells(nn.Module):
    """A recurrent cell, step by step."""

    def __init__(self, gain):
        super().__init__()
        self.cell, self.head = nn.RNNCell(8, 16, nonlinearity="relu"), nn.Linear(16, 4)
        nn.init.orthogonal_(self.cell.weight_hh, gain)

    def forward(self, x):
        h = torch.zeros(len(x), 16)
        for _ in range(12):
            h = self.cell(x, h)
        return self.head(h)


def test_a_recurrence_that_explodes_fails_and_one_that_fades_is_noted():
    result = check(lambda: Cells(4.0))
    assert codes(result, "fail")[0] == "time-growing"
    assert result.findings[0].where == "cell"
    result = check(lambda: Cells(0.2))
    assert (result.verdict, codes(result)) == ("pass", ["time-fading"])


def test_an_optimizer_that_steps_too_far_fails():
    for rate, verdict in ((1e-3, "pass"), (10.0, "fail"), (1e-12, "fail")):
        result = check(net(3), optimizer=lambda p, rate=rate: torch.optim.Adam(p, rate))
        assert result.verdict == verdict
        assert codes(result) == (["update"] if verdict == "fail" else [])


def test_a_warm_up_from_zero_is_no_fault():
    def optimizer(parameters):
        made = torch.optim.Adam(parameters, 1e-3)
        torch.optim.lr_scheduler.LambdaLR(made, lambda step: min(1.0, step / 100))
        return made

    result = check(net(3), optimizer=optimizer)
    assert (result.verdict, codes(result, "warn")) == ("pass", ["update"])


class Adds(torch.autograd.Function):
    """A backward that adds a constant."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return g + 1e-3


def test_a_gradient_that_does_not_scale_with_the_loss_fails():
    result = check(lambda: Parts(lambda m, x: Adds.apply(plain(m, x))))
    assert codes(result, "fail") == ["loss-scale"]


def test_a_model_that_changes_from_run_to_run_is_not_accused_of_it():
    norm = nn.utils.parametrizations.spectral_norm
    result = check(lambda: nn.Sequential(norm(nn.Linear(8, 16)), nn.ReLU(), nn.Linear(16, 4)))
    assert (result.verdict, codes(result)) == ("pass", [])


def test_samples_that_see_one_another_are_told():
    def mixed(m, x):
        h = m.one(x)
        return m.head(m.two(h - h.mean(0, keepdim=True)))

    result = check(lambda: Parts(mixed))
    assert (result.verdict, codes(result)) == ("pass", ["batch-dependence"])
    assert result.findings[0].severity == "warn"

    def normed():
        return nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))

    assert check(normed).findings[0].severity == "note"


def test_a_verdict_at_the_limit_stays_open():
    middle = check(net(10, nn.Sigmoid)).findings[0].number("attenuation")
    result = check(net(10, nn.Sigmoid), vanish=middle)
    assert result.verdict == "undecided"
    assert len(result.table("initialisations").rows) == 20
    assert result.headline.startswith("undecided: perhaps vanishing gradient")


def test_limits_decide():
    assert check(net(10, nn.Sigmoid), vanish=1e-9).verdict == "pass"
    assert check(net(8), vanish=0.999, explode=1.001).verdict in ("fail", "undecided")
    assert check(net(4), dead=1e-6).verdict in ("fail", "undecided")


# --- the other backends -----------------------------------------------------------------------


def draws(depth, gain=1.0, bias=0.0):
    def make(seed):
        rng = np.random.default_rng(seed)
        sizes = [8, *[32] * (depth - 1), 4]
        return [
            {"w": rng.normal(0, gain * (2 / a) ** 0.5, (a, b)).astype(np.float32),
             "b": np.full(b, bias, np.float32)}
            for a, b in itertools.pairwise(sizes)
        ]  # fmt: skip

    return make


def jax_loss(act):
    def run(params, batch):
        h, y = batch
        for p in params[:-1]:
            h = act(h @ p["w"] + p["b"])
        h = h @ params[-1]["w"] + params[-1]["b"]
        return -jnp.mean(jax.nn.log_softmax(h)[jnp.arange(len(y)), y])

    return run


def jax_make(make):
    return lambda seed: jax.tree.map(jnp.asarray, make(seed))


JAX = {
    "healthy": (draws(6), jax.nn.relu, None, None),
    "sigmoid": (draws(10), jax.nn.sigmoid, "vanishing", "activation"),
    "too small": (draws(10, 0.05), jnp.tanh, "vanishing", "init"),
    "too large": (draws(20, 5.0), jnp.tanh, "exploding", "init"),
    "dead": (draws(5, 1.0, -20.0), jax.nn.relu, "dead", "bias"),
}


@pytest.mark.parametrize("name", JAX)
def test_jax_functions(name):
    make, act, symptom, cause = JAX[name]
    result = check(jax_make(make), jax_loss(act), (jnp.asarray(X), jnp.asarray(Y)))
    assert result.verdict == ("pass" if symptom is None else "fail"), result.headline
    assert symptom is None or codes(result, "fail")[0] == symptom
    assert cause is None or f"cause-{cause}" in codes(result)
    assert result.context.backend == "jax"


def numpy_loss(act, slope):
    def run(params, batch):
        h, y = batch
        record, inputs, outs = [], [], []
        for k, p in enumerate(params):
            inputs.append(h)
            z = h @ p["w"] + p["b"]
            h = z if k == len(params) - 1 else act(z)
            outs.append((z, h))
        e = np.exp(h - h.max(1, keepdims=True))
        q = e / e.sum(1, keepdims=True)
        g = (q - np.eye(4)[y]) / len(y)
        gradients = []
        for k in reversed(range(len(params))):
            if k < len(params) - 1:
                g = g @ params[k + 1]["w"].T
                record.append((f"{k}.relu" if act is relu else f"{k}.sigmoid", outs[k][1], g))
                g = g * slope(outs[k][1])
            record.append((str(k), outs[k][0], g))
            gradients.append({"w": inputs[k].T @ g, "b": g.sum(0)})
        return float(-np.mean(np.log(q[np.arange(len(y)), y]))), record[::-1], gradients[::-1]

    return run


def relu(z):
    return np.maximum(z, 0)


def test_numpy_records():
    healthy = numpy_loss(relu, lambda a: a > 0)
    assert check(draws(6), healthy, (X, Y), backend="numpy").verdict == "pass"
    result = check(draws(10, 0.05), healthy, (X, Y), backend="numpy")
    assert codes(result)[:2] == ["vanishing", "cause-init"]
    sigmoid = numpy_loss(lambda z: 1 / (1 + np.exp(-z)), lambda a: a * (1 - a))
    result = check(draws(10), sigmoid, (X, Y), backend="numpy")
    assert codes(result, "fail") == ["vanishing"]
    assert result.findings[0].number("growth") == pytest.approx(0.35, abs=0.05)


def test_gradients_that_are_already_there():
    assert check_flow({"a": np.eye(3), "b": np.eye(3)}).verdict == "pass"
    assert codes(check_flow({"a": 1e-9 * np.eye(3), "b": np.eye(3)}), "fail") == ["vanishing"]
    assert codes(check_flow({"a": None, "b": np.eye(3)}), "fail") == ["missing"]
    assert codes(check_flow({"a": np.zeros((3, 3)), "b": np.eye(3)}), "fail")[0] == "zero"
    assert codes(check_flow({"a": np.full((3, 3), np.nan), "b": np.eye(3)}), "fail") == [
        "nonfinite"
    ]
