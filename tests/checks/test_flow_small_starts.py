"""Models that start with something small on purpose, and learn how large it is to be."""

import jax
import jax.numpy as jnp
import pytest
import torch
from torch import nn

from pytest_gradcheck import check_flow

F = nn.functional
G = torch.Generator().manual_seed(0)
X = torch.randn(64, 16, generator=G)
LABELS = torch.randint(0, 10, (64,), generator=G)
IMAGES = torch.rand(16, 3, 16, 16, generator=G)
TOKENS = torch.randint(0, 256, (64,), generator=G)
COLOURS = torch.rand(64, 3, generator=G)


def classify(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def told(make, loss, batch, **more):
    result = check_flow(None, loss, batch, make=make, seed=0, **more)
    return result.verdict, [f.code for f in result.findings]


class Block(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.n1, self.n2 = nn.LayerNorm(32), nn.LayerNorm(32)
        self.a = nn.MultiheadAttention(32, 4, batch_first=True)
        self.f = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))
        self.g1, self.g2 = (nn.Parameter(torch.full((32,), size)) for _ in range(2))

    def forward(self, x):
        h = self.n1(x)
        x = x + self.g1 * self.a(h, h, h)[0]
        return x + self.g2 * self.f(self.n2(x))


class Vision(nn.Module):
    """A vision transformer that is read at its class token."""

    def __init__(self, size=1.0, depth=1.0):
        super().__init__()
        self.patches = nn.Conv2d(3, 32, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 32) * 1e-6)
        self.place = nn.Parameter(torch.randn(1, 17, 32) * 0.02)
        self.blocks = nn.Sequential(*(Block(size) for _ in range(3)))
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, 10)
        for part in self.modules():
            if isinstance(part, nn.Linear):
                nn.init.trunc_normal_(part.weight, std=0.02)
                nn.init.zeros_(part.bias)
        with torch.no_grad():
            self.patches.weight.mul_(depth)

    def forward(self, x):
        h = self.patches(x).flatten(2).mT
        h = torch.cat([self.token.expand(len(x), -1, -1), h], 1) + self.place
        return self.head(self.norm(self.blocks(h))[:, 0])


@pytest.mark.parametrize("size", [1e-4, 1e-5])
def test_gates_near_zero_before_a_class_token_are_a_choice(size):
    batch = IMAGES, LABELS[:16]
    assert told(lambda: Vision(size), classify, batch) == ("pass", ["flow-small-start"])
    assert told(Vision, classify, batch) == ("pass", [])


class Table(nn.Module):
    """A table of embeddings before a small network."""

    def __init__(self, size, bias):
        super().__init__()
        self.table = nn.Embedding(256, 8)
        nn.init.uniform_(self.table.weight, -size, size)
        layers = nn.Linear(8, 64, bias=bias), nn.ReLU(), nn.Linear(64, 3, bias=bias)
        self.net = nn.Sequential(*layers)

    def forward(self, x):
        return self.net(self.table(x))


def regress(model, batch):
    return F.mse_loss(model(batch[0]), batch[1])


@pytest.mark.parametrize("size", [1e-2, 1e-3, 1e-4])
@pytest.mark.parametrize("bias", [True, False])
def test_a_table_that_starts_small_is_no_input_and_no_loss(size, bias):
    found = told(lambda: Table(size, bias), regress, (TOKENS, COLOURS))
    assert found == ("pass", ["flow-small-start"] if bias else [])


def drawn(size, bias):
    def make(seed):
        keys = jax.random.split(jax.random.key(seed), 4)
        table = jax.random.uniform(keys[0], (256, 8), minval=-size, maxval=size)
        weights = {
            "w": jax.random.normal(keys[1], (8, 64)) * 0.35,
            "v": jax.random.normal(keys[2], (64, 3)) * 0.17,
            "b": jax.random.normal(keys[3], (64,)) * 0.2,
        }
        return {"table": table} | (weights if bias else {k: weights[k] for k in "wv"})

    return make


def looked_up(p, batch):
    h = p["table"][batch[0]] @ p["w"] + p.get("b", 0.0)
    return jnp.mean((jax.nn.relu(h) @ p["v"] - batch[1]) ** 2)


@pytest.mark.parametrize("size", [1e-3, 1e-4])
@pytest.mark.parametrize("bias", [True, False])
def test_a_table_of_jax_alike(size, bias):
    batch = jnp.asarray(TOKENS.numpy()), jnp.asarray(COLOURS.numpy())
    found = told(drawn(size, bias), looked_up, batch)
    assert found == ("pass", ["flow-small-start"] if bias else [])


class Adapted(nn.Module):
    """A frozen body with an adapter beside a skip."""

    def __init__(self, size):
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)
        )
        self.adapter = nn.Sequential(nn.Linear(64, 8), nn.GELU(), nn.Linear(8, 64))
        for p in self.body.parameters():
            p.requires_grad_(False)
        for layer in self.adapter[::2]:
            nn.init.normal_(layer.weight, 0, size)
            nn.init.zeros_(layer.bias)

    def forward(self, x):
        h = self.body[:2](x)
        return self.body[2:](h + self.adapter(h))


@pytest.mark.parametrize("size", [1e-2, 1e-3])
def test_an_adapter_near_the_identity_is_a_choice(size):
    found = told(lambda: Adapted(size), classify, (X, LABELS), frozen="body.*")
    assert found == ("pass", [])


def test_a_last_layer_near_zero_before_a_frozen_critic_is_a_choice():
    torch.manual_seed(0)
    critic = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 1))
    for p in critic.parameters():
        p.requires_grad_(False)

    def make():
        layers = [nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4)]
        for p in layers[-1].parameters():
            nn.init.uniform_(p, -3e-3, 3e-3)
        return nn.Sequential(*layers, nn.Tanh())

    loss = lambda actor, x: -critic(torch.cat([x, actor(x)], 1)).mean()  # noqa: E731  # DDPG's
    assert told(make, loss, X) == ("pass", [])


def test_weights_that_are_too_small_everywhere_are_found_beside_small_gates():
    """The gates alone are not what the gradient fades by."""

    class Deep(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate = nn.Parameter(torch.full((64,), 1e-2))
            layers = [m for _ in range(8) for m in (nn.Linear(64, 64), nn.Tanh())]
            self.net = nn.Sequential(nn.Linear(16, 64), *layers, nn.Linear(64, 10))
            for layer in layers[::2]:
                nn.init.normal_(layer.weight, std=0.02)

        def forward(self, x):
            return self.net[1:](self.gate * self.net[0](x))

    verdict, codes = told(Deep, classify, (X, LABELS))
    assert verdict == "fail"
    assert "flow-vanishing" in codes


def test_one_layer_in_the_middle_that_is_too_small_is_found():
    def make():
        layers = [m for _ in range(6) for m in (nn.Linear(64, 64), nn.Tanh())]
        with torch.no_grad():
            layers[4].weight.mul_(1e-4)
        return nn.Sequential(nn.Linear(16, 64), *layers, nn.Linear(64, 10))

    verdict, codes = told(make, classify, (X, LABELS))
    assert (verdict, codes[0]) == ("fail", "flow-vanishing")


@pytest.mark.parametrize("way", ["index", "function", "plane"])
def test_a_table_that_is_a_parameter_is_no_input(way):
    class Field(nn.Module):
        def __init__(self):
            super().__init__()
            shape = (1, 8, 16, 16) if way == "plane" else (256, 8)
            self.table = nn.Parameter(torch.empty(shape).uniform_(-1e-4, 1e-4))
            self.net = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 3))

        def forward(self, x):
            if way == "index":
                return self.net(self.table[x])
            if way == "function":
                return self.net(F.embedding(x, self.table))
            spots = torch.stack([x.sin(), (2.0 * x).cos()], 1)[None, None]
            return self.net(F.grid_sample(self.table, spots, align_corners=True)[0, :, 0].T)

    assert told(Field, regress, (TOKENS, COLOURS)) == ("pass", [])


@pytest.mark.parametrize("size", [0.0, 1e-4, 1e-2])
def test_a_branch_beside_the_raw_input_may_start_small(size):
    class Deformed(nn.Module):
        def __init__(self):
            super().__init__()
            self.d = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 16))
            self.m = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 10))
            nn.init.normal_(self.d[-1].weight, std=size)
            nn.init.zeros_(self.d[-1].bias)

        def forward(self, x):
            return self.m(x + self.d(x))

    expected = ["flow-asleep"] if not size else []
    assert told(Deformed, classify, (X, LABELS)) == ("pass", expected)


@pytest.mark.parametrize("steps", [5, 20])
@pytest.mark.parametrize("start", ["default", "zero"])
def test_a_block_that_is_integrated_over_time_may_be_small(steps, start):
    class Ode(nn.Module):
        def __init__(self):
            super().__init__()
            self.f = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 16))
            self.head = nn.Linear(16, 10)
            if start == "zero":
                nn.init.zeros_(self.f[-1].weight)

        def forward(self, x):
            for _ in range(steps):
                x = x + self.f(x) / steps
            return self.head(x)

    verdict, codes = told(Ode, classify, (X, LABELS))
    assert (verdict, set(codes) - {"flow-asleep"}) == ("pass", set())


@pytest.mark.parametrize("size", [0.2, 0.05, 0.01])
def test_gates_in_a_row_that_nothing_goes_round_fade(size):
    class Chain(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(32, 32) for _ in range(8))
            self.gates = nn.ParameterList(torch.full((32,), size) for _ in range(8))
            self.first, self.last = nn.Linear(16, 32), nn.Linear(32, 10)
            for layer in self.layers:
                nn.init.orthogonal_(layer.weight)

        def forward(self, x):
            x = self.first(x)
            for layer, gate in zip(self.layers, self.gates, strict=True):
                x = gate * torch.tanh(layer(x))
            return self.last(x)

    verdict, codes = told(Chain, classify, (X, LABELS))
    assert (verdict, codes[0]) == ("fail", "flow-vanishing")


@pytest.mark.parametrize("size", [1e-4, 1e-6, 1e-8])
def test_a_first_update_is_not_judged_beside_a_start_that_wakes(size):
    def make():
        layers = nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 10)
        with torch.no_grad():
            layers[-1].weight.mul_(size)
        return nn.Sequential(*layers)

    verdict, codes = told(make, classify, (X, LABELS), optimizer=lambda p: torch.optim.SGD(p, 0.1))
    assert (verdict, codes[0]) == ("pass", "flow-asleep")


def test_biases_of_one_number_are_no_gates():
    def made(bias):
        layers = [m for _ in range(8) for m in (nn.Linear(64, 64), nn.Tanh())]
        for layer in layers[::2]:
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.constant_(layer.bias, bias)
        return nn.Sequential(nn.Linear(16, 64), *layers, nn.Linear(64, 10))

    for bias in (0.0, 1e-3, 1e-2):
        verdict, codes = told(lambda b=bias: made(b), classify, (X, LABELS))
        assert (verdict, codes[0]) == ("fail", "flow-vanishing")


@pytest.mark.parametrize("name", ["sin", "tanh"])
def test_a_factor_before_the_activation_is_no_way_round(name):
    """What a layer puts out is small beside what the next is given, and yet nothing was added."""

    class Siren(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(16 if not k else 64, 64) for k in range(10))
            self.head = nn.Linear(64, 10)
            for layer in self.layers[1:]:
                nn.init.uniform_(layer.weight, -3e-3, 3e-3)

        def forward(self, x):
            for layer in self.layers:
                x = getattr(torch, name)(30 * layer(x))
            return self.head(x)

    verdict, codes = told(Siren, classify, (X, LABELS))
    assert (verdict, codes[0]) == ("fail", "flow-vanishing")
