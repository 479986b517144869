"""Networks that train and were accused of what they do on purpose."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from pytest_gradcheck import check_flow

optax = pytest.importorskip("optax")

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


@pytest.mark.parametrize("count", [200, 400])
def test_histograms_that_differ_little_are_a_warning(count):
    x = torch.randn(64, count, generator=torch.Generator().manual_seed(0)).softmax(1)

    def make():
        return nn.Sequential(
            nn.Linear(count, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)
        )

    result = check_flow(None, classified, (x, Y), make=make, seed=0)
    assert (result.verdict, told(result)) == ("pass", ["flow-inputs"])


def cox(model, batch):
    """Partial likelihood (Cox 1975), which the same number added to every answer does not move."""
    x, times = batch
    risks = model(x)[:, 0][times.argsort(descending=True)]
    return -(risks - torch.logcumsumexp(risks, 0)).mean()


@pytest.mark.parametrize("count", [64, 4096])
@pytest.mark.parametrize("seed", range(3))
def test_a_bias_that_does_not_move_the_loss_has_no_scale(count, seed):
    own = torch.Generator().manual_seed(0)
    batch = torch.randn(count, 16, generator=own), torch.rand(count, generator=own)
    make = lambda: nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 1))  # noqa: E731
    assert check_flow(None, cox, batch, make=make, seed=seed).verdict == "pass"


class Vectors(nn.Module):
    """Two tables of small vectors and their products (Mikolov and others 2013)."""

    def __init__(self):
        super().__init__()
        self.words, self.contexts = nn.Embedding(30, 16), nn.Embedding(40, 16)
        for table in (self.words, self.contexts):
            nn.init.uniform_(table.weight, -0.5 / 300, 0.5 / 300)

    def forward(self, a, b):
        return (self.words(a) * self.contexts(b)).sum(1)


class Adapted(nn.Module):
    """A matrix of low rank beside another one, which begins at nearly nothing."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Linear(16, 32), nn.Linear(32, 10)
        self.down = nn.Linear(32, 4, bias=False)
        self.up = nn.Parameter(1e-4 * torch.randn(4, 32))

    def forward(self, x):
        h = torch.relu(self.stem(x))
        return self.head(h + self.down(h) @ self.up)


def small_end(factor):
    model = nn.Sequential(
        nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)
    )
    with torch.no_grad():
        model[4].weight.mul_(factor)
    return model


def paired(model, batch):
    a, b, y = batch
    return functional.binary_cross_entropy_with_logits(model(a, b), y)


PAIRS = (
    torch.randint(0, 30, (64,), generator=G),
    torch.randint(0, 40, (64,), generator=G),
    torch.randint(0, 2, (64,), generator=G).float(),
)
SMALL_STARTS = {
    "embeddings": (Vectors, paired, PAIRS, 1e-2),
    "low rank": (Adapted, classified, (X, Y), 1e-3),
    "last layer": (lambda: small_end(0.01), classified, (X, Y), 1e-3),
    "last layer, smaller": (lambda: small_end(1e-3), classified, (X, Y), 1e-3),
}


@pytest.mark.parametrize("name", SMALL_STARTS)
def test_a_step_of_what_starts_near_zero_is_a_warning(name):
    make, loss, batch, rate = SMALL_STARTS[name]
    adam = lambda p: torch.optim.Adam(p, rate)  # noqa: E731
    result = check_flow(None, loss, batch, make=make, optimizer=adam, seed=0)
    assert (result.verdict, told(result)) == ("pass", ["flow-update"])
    far = lambda p: torch.optim.Adam(p, 1000 * rate)  # noqa: E731
    assert "flow-update" in told(
        check_flow(None, loss, batch, make=make, optimizer=far, seed=0), "fail"
    )


def test_scales_of_stacked_layers_are_vectors():
    normal = jax.random.normal

    def make(seed):
        keys = jax.random.split(jax.random.key(seed), 3)
        return {
            "in": 0.35 * normal(keys[0], (16, 32)),
            "w": 0.25 * normal(keys[1], (6, 32, 32)),
            "scale": jnp.full((6, 32), 1e-4),
            "out": 0.2 * normal(keys[2], (32, 10)),
        }

    def loss(p, batch):
        step = lambda h, at: (h + at[1] * jax.nn.relu(h @ at[0]), None)  # noqa: E731
        h, _ = jax.lax.scan(step, batch[0] @ p["in"], (p["w"], p["scale"]))
        return -jnp.mean(jax.nn.log_softmax(h @ p["out"])[jnp.arange(64), batch[1]])

    batch = jnp.asarray(X.numpy()), jnp.asarray(Y.numpy())
    result = check_flow(None, loss, batch, make=make, optimizer=optax.adam(1e-3), seed=0)
    assert (result.verdict, told(result)) == ("pass", [])


class Highway(nn.Module):
    """Layers that let their input by through gates (Srivastava and others 2015)."""

    def __init__(self, bias, factor=1.0):
        super().__init__()
        self.stem, self.head = nn.Linear(16, 32), nn.Linear(32, 10)
        self.layers = nn.ModuleList(nn.Linear(32, 32) for _ in range(4))
        self.gates = nn.ModuleList(nn.Linear(32, 32) for _ in range(4))
        for gate in self.gates:
            nn.init.constant_(gate.bias, bias)
            gate.weight.data.mul_(factor)

    def forward(self, x):
        h = self.stem(x)
        for layer, gate in zip(self.layers, self.gates, strict=True):
            share = torch.sigmoid(gate(h))
            h = share * torch.relu(layer(h)) + (1 - share) * h
        return self.head(h)


@pytest.mark.parametrize("bias", [-7.0, -8.0])
def test_a_gate_that_is_shut_and_opens_is_noted(bias):
    result = check_flow(None, classified, (X, Y), make=lambda: Highway(bias), seed=0)
    assert (result.verdict, told(result)) == ("pass", [])
    assert told(result, "note") == ["flow-saturated"]


@pytest.mark.parametrize(("bias", "factor"), [(-20.0, 1.0), (20.0, 1.0), (0.0, 1e4)])
def test_a_gate_that_does_not_open_is_saturated(bias, factor):
    result = check_flow(None, classified, (X, Y), make=lambda: Highway(bias, factor), seed=0)
    assert told(result, "fail")[0] == "flow-saturated"


def rare(is_entropy):
    """A record whose last bias is at the log odds of one label in a thousand."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(256, 16))
    y = (x[:, :1] > 2.5).astype(float)

    def make(seed):
        rng = np.random.default_rng(seed)
        return {
            "w": 0.35 * rng.normal(size=(16, 64)),
            "v": 0.1 * rng.normal(size=(64, 1)),
            "b": np.full(1, -6.9),
        }

    def loss(p, batch):
        x, y = batch
        z = x @ p["w"]
        h = np.maximum(z, 0)
        out = h @ p["v"] + p["b"]
        q = 1 / (1 + np.exp(-out))
        g_q = (q - y) / (q * (1 - q)) / len(y) if is_entropy else 2 * (q - y) / len(y)
        g = g_q * q * (1 - q)
        g_h = g @ p["v"].T
        record = [("in", z, g_h * (z > 0)), ("in.relu", h, g_h), ("out", out, g)]
        entropy = -np.mean(y * np.log(q) + (1 - y) * np.log(1 - q))
        value = entropy if is_entropy else np.mean((q - y) ** 2)
        moved = {"w": x.T @ (g_h * (z > 0)), "v": h.T @ g, "b": g.sum(0)}
        return value, [*record, ("out.sigmoid", q, g_q)], moved

    return check_flow(None, loss, (x, y), make=make, seed=0)


def test_a_record_whose_cross_entropy_undoes_the_saturation_passes():
    assert told(rare(is_entropy=True)) == []
    assert "flow-saturated" in told(rare(is_entropy=False), "fail")


def test_a_loss_of_derivatives_does_not_feel_the_last_bias():
    def loss(model, batch):
        x = batch[0].clone().requires_grad_()
        (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        return (slope - batch[1]).square().mean()

    make = lambda: nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 1))  # noqa: E731
    x = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    result = check_flow(None, loss, (x, x.flip(1)), make=make, seed=0)
    (finding,) = result.findings
    assert (result.verdict, finding.code, finding.severity) == ("pass", "flow-missing", "warn")
    assert finding.where == "2.bias"


def test_a_bias_and_its_weight_that_get_no_gradient_fail():
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(2, 1), nn.Linear(2, 1)

        def forward(self, x):
            return self.used(x)

    result = check_flow(None, lambda m, x: m(x).square().mean(), torch.ones(8, 2), make=Unused)
    assert (result.verdict, result.findings[0].code) == ("fail", "flow-missing")


def test_the_exponential_of_a_parameter_is_no_layer():
    """A normalising flow: a scale for each feature, and a coupling whose last layer is small."""

    class Step(nn.Module):
        def __init__(self):
            super().__init__()
            self.shift, self.log = nn.Parameter(torch.zeros(6)), nn.Parameter(torch.zeros(6))
            self.net = nn.Sequential(nn.Linear(3, 64), nn.ReLU(), nn.Linear(64, 6))

        def forward(self, x):
            x = (x + self.shift) * torch.exp(self.log)
            a, b = x.chunk(2, 1)
            shift, scale = self.net(a).chunk(2, 1)
            scale = torch.sigmoid(scale + 2)
            told = torch.cat([(b + shift) * scale, a], 1)
            return told, self.log.sum() + scale.log().sum(1)

    class Steps(nn.Module):
        def __init__(self):
            super().__init__()
            self.steps = nn.ModuleList(Step() for _ in range(4))

        def forward(self, x):
            total = 0.0
            for step in self.steps:
                x, log = step(x)
                total = total + log
            return x, total

    def loss(model, x):
        z, log = model(x)
        return (z.square().sum(1) / 2 - log).mean()

    x = torch.randn(128, 6, generator=torch.Generator().manual_seed(0)) * 2 + 1
    for seed in range(3):
        result = check_flow(None, loss, x, make=Steps, seed=seed)
        assert result.verdict == "pass"
        assert not any("exp" in row[0] for row in result.table("layers").rows)


def test_the_members_of_an_ensemble_are_no_samples():
    class Members(nn.Module):
        def __init__(self):
            super().__init__()
            parts = ((nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3)) for _ in range(5))
            self.members = nn.ModuleList(nn.Sequential(*layers) for layers in parts)

        def forward(self, x):
            return torch.stack([member(x) for member in self.members])

    def loss(model, batch):
        scores = model(batch[0]).flatten(0, 1)
        return nn.functional.cross_entropy(scores, batch[1].repeat(5))

    generator = torch.Generator().manual_seed(0)
    batch = torch.randn(64, 8, generator=generator), torch.randint(0, 3, (64,), generator=generator)
    result = check_flow(None, loss, batch, make=Members, seed=0)
    assert (result.verdict, result.findings) == ("pass", ())


def test_rounding_is_no_waking():
    """A norm over one feature lets nothing through, before and after any step."""
    make = lambda: nn.Sequential(  # noqa: E731
        nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 1), nn.LayerNorm(1)
    )
    x = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))
    loss = lambda m, b: (m(b[0]) - b[1]).square().mean()  # noqa: E731
    for dtype in (torch.float32, torch.float64):
        made = lambda kind=dtype: make().to(kind)  # noqa: E731
        wide = x.to(dtype)
        result = check_flow(None, loss, (wide, wide[:, :1]), make=made, seed=0)
        assert (result.verdict, result.findings[0].code) == ("fail", "flow-zero")
