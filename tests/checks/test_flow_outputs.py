"""Output stages and gates without a slope are faults where the gradient is lost by them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

from pytest_gradcheck import check_flow
from pytest_gradcheck.backends import layers
from pytest_gradcheck.backends.torch_gates import of_cell, saturated

RNG = np.random.default_rng(0)
X = RNG.normal(size=(64, 16)).astype(np.float32)
LABELS = RNG.integers(0, 10, size=64)
ONE_HOT = np.eye(10, dtype=np.float32)[LABELS]
BATCH = torch.tensor(X), torch.tensor(ONE_HOT)
FUNCTIONS = nn.functional


class Out(nn.Module):
    def __init__(self, act, factor):
        super().__init__()
        self.one, self.two, self.act = nn.Linear(16, 64), nn.Linear(64, 10), act
        with torch.no_grad():
            self.two.weight.mul_(factor)

    def forward(self, x):
        return self.act(self.two(torch.relu(self.one(x))))


def squared(model, batch):
    return FUNCTIONS.mse_loss(model(batch[0]), batch[1])


def of_torch(act, factor, loss=squared, batch=BATCH):
    return check_flow(None, loss, batch, make=lambda: Out(act, factor))


ACTS = {
    "sigmoid": torch.sigmoid,
    "Sigmoid": nn.Sigmoid(),
    "tanh": torch.tanh,
    "softmax": lambda z: z.softmax(1),
    "Softmax": nn.Softmax(1),
}


@pytest.mark.parametrize("name", ACTS)
def test_an_output_stage_that_costs_the_gradient_fails(name):
    result = of_torch(ACTS[name], 1e4)
    first, cause = result.findings[:2]
    assert (result.verdict, first.code, first.where) == ("fail", "flow-saturated", "two")
    assert (cause.code, cause.where) == ("flow-cause-layer", "two")


@pytest.mark.parametrize("name", ACTS)
def test_an_output_stage_with_a_slope_passes(name):
    result = of_torch(ACTS[name], 1.0)
    assert (result.verdict, result.findings) == ("pass", ())


def test_inputs_that_are_too_large_are_the_cause():
    result = of_torch(torch.sigmoid, 1.0, batch=(1e4 * BATCH[0], BATCH[1]))
    codes = [f.code for f in result.findings[:2]]
    assert (result.verdict, codes) == ("fail", ["flow-saturated", "flow-cause-input"])


def test_a_loss_that_undoes_the_saturation_is_no_fault():
    def stable(model, batch):  # a cross entropy that does not go through the slope
        z = model.two(torch.relu(model.one(batch[0])))
        model.act(z)
        return FUNCTIONS.binary_cross_entropy_with_logits(z, batch[1])

    codes = [f.code for f in of_torch(torch.sigmoid, 1e4, stable).findings]
    assert "flow-saturated" not in codes


def test_a_model_that_fits_needs_no_slope():
    """Rare events: nearly all answers are right, by a bias that says so."""

    class Rare(Out):
        def __init__(self):
            super().__init__(torch.sigmoid, 1.0)
            nn.init.constant_(self.two.bias, -9.0)

    loss = lambda m, b: FUNCTIONS.binary_cross_entropy(m(b[0]), torch.zeros(64, 10))  # noqa: E731
    result = check_flow(None, loss, BATCH, make=Rare)
    assert "flow-saturated" not in [f.code for f in result.findings]


def test_attention_is_no_output_stage():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(16, 16), nn.Linear(16, 10)

        def forward(self, x):
            h = self.one(x)
            return self.two(torch.softmax(1e4 * h @ h.T, 1) @ h)

    layers = check_flow(None, squared, BATCH, make=Attention).table("layers").rows
    assert "softmax" not in [row[1] for row in layers]


def jax_make(factor):
    def make(seed):
        rng = np.random.default_rng(seed)
        shapes = {"one": (16, 64), "two": (64, 10)}
        drawn = {k: rng.normal(size=s) * (2 / s[0]) ** 0.5 for k, s in shapes.items()}
        return {k: jnp.asarray(w, jnp.float32) for k, w in drawn.items()} | {
            "two": jnp.asarray(factor * drawn["two"], jnp.float32)
        }

    return make


def by_hand(z):
    e = jnp.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


JAX = {"softmax": jax.nn.softmax, "by hand": by_hand, "sigmoid": jax.nn.sigmoid, "tanh": jnp.tanh}


@pytest.mark.parametrize("name", JAX)
def test_an_output_stage_of_jax(name):
    def loss(p, b):
        return jnp.mean((JAX[name](jax.nn.relu(b @ p["one"]) @ p["two"]) - ONE_HOT) ** 2)

    result = check_flow(None, loss, jnp.asarray(X), make=jax_make(1e4))
    first, cause = result.findings[:2]
    assert (first.code, first.where, cause.code) == ("flow-saturated", "two", "flow-cause-layer")
    result = check_flow(None, loss, jnp.asarray(X), make=jax_make(1.0))
    assert (result.verdict, result.findings) == ("pass", ())


@pytest.mark.parametrize("factor", [1.0, 1e4])
def test_a_recorded_softmax(factor):
    def loss(params, x):
        z = x @ params["one"]
        a = np.maximum(z, 0)
        out = a @ params["two"]
        q = np.exp(out - out.max(1, keepdims=True))
        q /= q.sum(1, keepdims=True)
        g_q = 2 * (q - ONE_HOT) / q.size
        g_out = q * (g_q - (g_q * q).sum(1, keepdims=True))
        g_a = g_out @ params["two"].T
        layers = [("one", z, g_a * (z > 0)), ("one.relu", a, g_a), ("out", out, g_out)]
        return np.mean((q - ONE_HOT) ** 2), [*layers, ("out.softmax", q, g_q)]

    make = jax_make(factor)
    drawn = lambda seed: {k: np.asarray(w, np.float64) for k, w in make(seed).items()}  # noqa: E731
    result = check_flow(None, loss, X.astype(np.float64), make=drawn)
    codes = [f.code for f in result.findings[:1]]
    assert codes == ([] if factor == 1.0 else ["flow-saturated"])


class Recurrent(nn.Module):
    def __init__(self, kind, factor=1.0, **options):
        super().__init__()
        self.run = getattr(nn, kind)(6, 24, batch_first=True, **options)
        self.out = nn.Linear(24, 3)
        with torch.no_grad():
            for p in self.run.parameters():
                p.mul_(factor)

    def forward(self, x):
        return self.out(self.run(x)[0][:, -1])


SEQUENCES = torch.tensor(RNG.normal(size=(16, 12, 6)), dtype=torch.float32)


def of_recurrent(kind, factor=1.0, scale=1.0, **options):
    def loss(model, batch):
        return FUNCTIONS.cross_entropy(model(batch), torch.arange(16) % 3)

    make = lambda: Recurrent(kind, factor, **options)  # noqa: E731
    return check_flow(None, loss, scale * SEQUENCES, make=make)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2}], ids=["one", "two"])
def test_gates_of_fused_layers(kind, options):
    first, cause = of_recurrent(kind, scale=1e4, **options).findings[:2]
    assert (first.code, first.where, cause.code) == ("flow-saturated", "run", "flow-cause-input")
    assert of_recurrent(kind, factor=1e4, **options).findings[0].code == "flow-saturated"
    codes = [f.code for f in of_recurrent(kind, **options).findings]
    assert "flow-saturated" not in codes


def test_gates_are_those_of_the_equations():
    torch.manual_seed(0)
    lstm, gru = nn.LSTM(6, 5, 2, bidirectional=True), nn.GRU(6, 5)
    x = 30 * torch.randn(7, 4, 6)
    given = []
    cell = nn.GRUCell(6, 5)
    for mine, its in zip(cell.parameters(), gru.parameters(), strict=True):
        mine.data = its.data
    h = torch.zeros(4, 5)
    for step in x:
        fed, carried = (
            (step @ cell.weight_ih.T + cell.bias_ih).chunk(3, 1),
            (h @ cell.weight_hh.T + cell.bias_hh).chunk(3, 1),
        )
        r, z = (torch.sigmoid(a + b) for a, b in list(zip(fed, carried, strict=True))[:2])
        n = torch.tanh(fed[2] + r * carried[2])
        given.append(torch.cat([4 * r * (1 - r), 4 * z * (1 - z), 1 - n * n], 1))
        h = cell(step, h)
    share = (torch.stack(given).mean((0, 1)) < 0.01).double().mean()
    assert float(saturated(gru, x)) == pytest.approx(float(share))
    assert 0.0 <= float(saturated(lstm, x)) <= 1.0
    assert saturated(nn.LSTM(6, 5, proj_size=2), x) is None


class Attends(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.attend = nn.MultiheadAttention(16, 2, batch_first=True)
        self.out = nn.Linear(16, 10)
        with torch.no_grad():
            self.attend.in_proj_weight[:32].mul_(factor)

    def forward(self, x):
        return self.out(self.attend(x, x, x)[0].mean(1))


@pytest.mark.parametrize(
    ("factor", "places", "codes"),
    [(1.0, 8, []), (4e3, 8, ["flow-saturated"]), (1.0, 1, [])],
    ids=["plain", "huge", "one place"],
)
def test_attention_whose_query_and_key_get_nothing(factor, places, codes):
    x = torch.tensor(RNG.normal(size=(16, places, 16)), dtype=torch.float32)
    loss = lambda m, b: FUNCTIONS.cross_entropy(m(b), torch.arange(16) % 10)  # noqa: E731
    result = check_flow(None, loss, x, make=lambda: Attends(factor))
    assert [f.code for f in result.findings] == codes
    if codes:
        assert result.findings[0].where == "attend.in_proj_weight"
        assert "query and key" in result.findings[0].message


def test_joint_weights_of_attention_in_jax():
    def make(factor):
        def drawn(seed):
            rng = np.random.default_rng(seed)
            joint = rng.normal(size=(16, 48)) * 0.25
            joint[:, :32] *= factor
            weights = {"joint": joint, "out": rng.normal(size=(16, 10)) * 0.25}
            return {k: jnp.asarray(w, jnp.float32) for k, w in weights.items()}

        return drawn

    def loss(p, x):
        q, k, v = jnp.split(x @ p["joint"], 3, -1)
        h = jax.nn.softmax(q @ k.swapaxes(1, 2) / 4) @ v
        return jnp.mean((h.mean(1) @ p["out"] - 1) ** 2)

    x = jnp.asarray(RNG.normal(size=(16, 8, 16)), jnp.float32)
    assert check_flow(None, loss, x, make=make(1.0)).verdict == "pass"
    assert check_flow(None, loss, x, make=make(4e3)).verdict == "fail"


def test_thirds_of_a_joint_weight_that_get_nothing():
    gradient = np.ones((12, 4))
    gradient[4:8] = 0
    assert layers.silent(gradient) == layers.silent(gradient.T) == ("key",)
    assert layers.silent(0 * gradient) == layers.silent(np.ones((8, 4))) == ()


def test_a_gradient_of_zero_by_a_saturated_answer_is_told_so():
    torch.manual_seed(0)
    model = Out(torch.tanh, 1e6)
    result = check_flow(model, squared, BATCH, seeds=1)
    assert (result.verdict, result.findings[0].code) == ("fail", "flow-saturated")


class Stepped(nn.Module):
    """A cell that is called for each time step."""

    def __init__(self, kind):
        super().__init__()
        self.cell, self.head = kind(8, 32), nn.Linear(32, 5)

    def forward(self, x):
        state = None
        for step in x.unbind(1):
            state = self.cell(step, hx=state)
        return self.head(state[0] if isinstance(state, tuple) else state)


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
@pytest.mark.parametrize("factor", [1.0, 1e4])
def test_gates_of_cells_are_seen_step_by_step(kind, factor):
    own = torch.Generator().manual_seed(0)
    x, y = torch.randn(32, 20, 8, generator=own), torch.randint(0, 5, (32,), generator=own)
    loss = lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1])  # noqa: E731
    result = check_flow(None, loss, (factor * x, y), make=lambda: Stepped(kind), seed=0)
    found = [(f.code, f.where) for f in result.findings if f.severity == "fail"]
    assert found == ([] if factor == 1.0 else [("flow-saturated", "cell")])


def test_gates_of_a_cell_are_those_of_the_fused_layer():
    for cell, fused in ((nn.LSTMCell, nn.LSTM), (nn.GRUCell, nn.GRU), (nn.RNNCell, nn.RNN)):
        one, whole = cell(6, 5), fused(6, 5)
        for name, p in one.named_parameters():
            getattr(whole, f"{name}_l0").data.copy_(p.detach())
        x = 4 * torch.randn(1, 64, 6, generator=torch.Generator().manual_seed(0))
        assert float(of_cell(one, x[0])) == pytest.approx(float(saturated(whole, x)))
    assert of_cell(nn.RNNCell(6, 5, nonlinearity="relu"), x[0]) is None
