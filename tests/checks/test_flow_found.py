"""Healthy networks that were accused, and faults that were missed or named wrongly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen
from torch import nn
from torch.nn import functional

from pytest_gradcheck import check_flow

G = torch.Generator().manual_seed(0)
X, Y = torch.randn(64, 16, generator=G), torch.randint(0, 10, (64,), generator=G)


def classified(model, batch):
    return functional.cross_entropy(model(batch[0]), batch[1])


def codes(result, *severities):
    return [f.code for f in result.findings if f.severity in (severities or ("fail",))]


class Residual(nn.Module):
    """Residual blocks, each of which begins with the same module."""

    def __init__(self, count, shared):
        super().__init__()
        self.stem, self.shared, self.head = nn.Linear(16, 64), shared, nn.Linear(64, 10)
        self.blocks = nn.ModuleList(nn.Linear(64, 64) for _ in range(count))
        self.norm = nn.BatchNorm1d(64)
        for part in (self.stem, *self.blocks, self.head):
            nn.init.kaiming_normal_(part.weight)
            nn.init.zeros_(part.bias)

    def forward(self, x):
        h = self.stem(x)
        for block in self.blocks:
            h = h + torch.relu(block(self.shared(h)))
        return self.head(self.norm(h))


SHARED = {
    "dropout": lambda: nn.Dropout(0.1),
    "identity": nn.Identity,
    "layer norm": lambda: nn.LayerNorm(64),
    "batch norm": lambda: nn.BatchNorm1d(64),
}


@pytest.mark.parametrize("name", SHARED)
def test_a_shared_module_without_weights_is_no_recurrence(name):
    result = check_flow(None, classified, (X, Y), make=lambda: Residual(16, SHARED[name]()), seed=0)
    assert not {"flow-time-growing", "flow-time-fading"} & {f.code for f in result.findings}
    assert codes(result) == []


class Unrolled(nn.Module):
    """A recurrence by hand; ``gain`` is that of its step."""

    def __init__(self, gain, layers):
        super().__init__()
        self.stem, self.head = nn.Linear(16, 32), nn.Linear(32, 10)
        self.cell = nn.Sequential(nn.Linear(32, 32), *layers)
        nn.init.orthogonal_(self.cell[0].weight, gain)

    def forward(self, x):
        h = self.stem(x)
        for _ in range(12):
            h = self.cell(h)
        return self.head(h)


@pytest.mark.parametrize("layers", [(), (nn.Dropout(0.1),), (nn.Identity(),)])
def test_weights_that_are_used_again_on_their_own_output_are_a_recurrence(layers):
    result = check_flow(None, classified, (X, Y), make=lambda: Unrolled(2.0, layers), seed=0)
    growing = [f for f in result.findings if f.code == "flow-time-growing"]
    assert [f.where.partition(".")[0] for f in growing][:1] == ["cell"]


def test_weights_that_are_used_side_by_side_are_no_recurrence():
    class Heads(nn.Module):
        """The same layer on inputs of very different sizes."""

        def __init__(self):
            super().__init__()
            self.one, self.head = nn.Linear(4, 32), nn.Linear(128, 10)

        def forward(self, x):
            parts = [self.one(p) for p in x.chunk(4, 1)]
            scales = (1.0, 0.1, 0.01, 1e-4)
            return self.head(torch.cat([s * p for s, p in zip(scales, parts, strict=True)], 1))

    result = check_flow(None, classified, (X, Y), make=Heads, seed=0)
    assert not {"flow-time-growing", "flow-time-fading"} & {f.code for f in result.findings}


def two_layers():
    return nn.Sequential(nn.Linear(16, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 10))


def weighted(model, batch):
    return (batch[2] * functional.cross_entropy(model(batch[0]), batch[1], reduction="none")).mean()


WORDS = {float("nan"): "is NaN", float("inf"): "is infinite"}


@pytest.mark.parametrize("value", WORDS)
@pytest.mark.parametrize("where", ["batch[0][3, 2]", "batch[2][5]", "3.weight[1, 0]", "buffer"])
def test_what_was_not_finite_before_is_named_in_torch(where, value):
    x, w, model = X.clone(), torch.rand(64, generator=G), two_layers()
    spot = {"batch[0][3, 2]": x[3], "batch[2][5]": w[4:], "3.weight[1, 0]": model[3].weight.data[1]}
    if where == "buffer":
        model.eval()[1].running_mean[7], where = value, "1.running_mean[7]"
    else:
        spot[where][{"batch[0][3, 2]": 2, "batch[2][5]": 1}.get(where, 0)] = value
    finding = check_flow(model, weighted, (x, Y, w), seed=0).findings[0]
    assert (finding.code, finding.where) == ("flow-nonfinite", where)
    assert f"{where} {WORDS[value]} and reaches the " in finding.message


@pytest.mark.parametrize("value", WORDS)
@pytest.mark.parametrize("where", ["batch['x'][3, 2]", "batch['y'][5]", "b[4, 1]"])
def test_what_was_not_finite_before_is_named_in_jax(where, value):
    rng = np.random.default_rng(0)
    params = {"a": rng.normal(size=(16, 32)) / 4, "b": rng.normal(size=(32, 1)) / 6}
    batch = {"x": rng.normal(size=(64, 16)), "y": rng.normal(size=64)}
    array, index = {
        "batch['x'][3, 2]": (batch["x"], (3, 2)),
        "batch['y'][5]": (batch["y"], (5,)),
        "b[4, 1]": (params["b"], (4, 0)),
    }[where]
    array[index], where = value, where.replace("[4, 1]", "[4, 0]")
    params, batch = jax.tree.map(jnp.float32, (params, batch))

    def loss(p, b):
        return jnp.mean((jax.nn.relu(b["x"] @ p["a"]) @ p["b"] - b["y"][:, None]) ** 2)

    finding = check_flow(params, loss, batch, seed=0).findings[0]
    assert (finding.code, finding.where) == ("flow-nonfinite", where)
    assert f"{where} {WORDS[value]} and reaches the " in finding.message


class Masked(nn.Module):
    def __init__(self, fill):
        super().__init__()
        self.one, self.two = nn.Linear(16, 16), nn.Linear(16, 10)
        self.register_buffer("mask", torch.full((16,), -torch.inf))
        self.mask[0] = fill

    def forward(self, x):
        return self.two(torch.softmax(self.one(x) + self.mask, 1))


@pytest.mark.parametrize(("fill", "born"), [(0.0, "log"), (-torch.inf, "softmax")])
def test_a_mask_is_not_blamed_for_a_birth_nor_what_the_loss_leaves_out(fill, born):
    def masked(model, batch):
        x, y, gaps = batch
        value = classified(model, (x, y)) + gaps.nan_to_num().sum()
        return torch.log(-1 - value.abs()) if born == "log" else value

    gaps = torch.full((64,), torch.nan)
    finding = check_flow(None, masked, (X, Y, gaps), make=lambda: Masked(fill), seed=0).findings[0]
    assert finding.code == "flow-nonfinite"
    assert born in finding.where


def test_a_given_model_is_looked_at_also_where_fresh_ones_are_drawn():
    model = two_layers().eval()
    model[1].running_var.fill_(-1.0)
    finding = (result := check_flow(model, classified, (X, Y), seed=0)).findings[0]
    assert (result.verdict, finding.code, finding.where) == (
        "fail",
        "flow-nonfinite",
        "1.batch_norm",
    )
    assert "in the model as it is given" in finding.message


def test_given_parameters_are_looked_at_where_others_are_made_in_jax():
    def make(seed):
        draws = np.random.default_rng(seed)
        sizes = {"a": (16, 32), "b": (32, 1)}
        return {n: jnp.asarray(draws.normal(size=s) / 4, jnp.float32) for n, s in sizes.items()}

    def loss(p, b):
        return jnp.mean((jax.nn.relu(b @ p["a"]) @ p["b"]) ** 2)

    given, batch = make(0), jnp.asarray(X.numpy())
    given["b"] = given["b"].at[4, 0].set(jnp.nan)
    finding = check_flow(given, loss, batch, make=make, seed=1).findings[0]
    assert finding.message == (
        "parameter b[4, 0] is NaN and reaches the loss, in the model as it is given"
    )
    assert check_flow({"a": given["a"]}, loss, batch, make=make, seed=1).verdict == "pass"


class Dropped(nn.Module):
    """Blocks that run by chance, or never where the chance is 0."""

    def __init__(self, chance):
        super().__init__()
        self.stem, self.head, self.chance = nn.Linear(16, 32), nn.Linear(32, 10), chance
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(32, 32), nn.ReLU()) for _ in range(6))

    def forward(self, x):
        h = self.stem(x)
        for block in self.blocks:
            if torch.rand(()) < self.chance:
                h = h + block(h)
        return self.head(h)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("chance", [0.5, 0.8])
@pytest.mark.parametrize("is_made", [True, False])
def test_a_layer_that_is_left_out_by_chance_is_not_missing(is_made, chance, seed):
    given = None if is_made else Dropped(chance)
    make = (lambda: Dropped(chance)) if is_made else None
    result = check_flow(given, classified, (X, Y), make=make, seed=seed)
    assert codes(result) == []


def test_a_layer_that_is_always_left_out_is_missing():
    result = check_flow(None, classified, (X, Y), make=lambda: Dropped(0.0), seed=0)
    assert codes(result)[0] == "flow-missing"


class Fixup(nn.Module):
    """A branch whose last layer is zero, and a head that is (Zhang, Dauphin and Ma 2019)."""

    def __init__(self, zeros):
        super().__init__()
        self.stem, self.head = nn.Linear(16, 32), nn.Linear(32, 10)
        self.branch = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32))
        for part in (self.branch[2], self.head)[:zeros]:
            nn.init.zeros_(part.weight)
            nn.init.zeros_(part.bias)

    def forward(self, x):
        h = self.stem(x)
        return self.head(h + self.branch(h))


class Rezero(nn.Module):
    """Branches times a number that starts at zero (Bachlechner et al. 2021)."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Linear(16, 32), nn.Linear(32, 10)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32)) for _ in range(6)
        )
        self.gains = nn.Parameter(torch.zeros(6))

    def forward(self, x):
        h = self.stem(x)
        for gain, block in zip(self.gains, self.blocks, strict=True):
            h = h + gain * block(h)
        return self.head(h)


STARTS = {
    "branch": lambda: Fixup(1),
    "branch and head": lambda: Fixup(2),
    "rezero": Rezero,
}


def test_a_zero_that_training_leaves_is_a_note_where_the_rest_is_open():
    """Five blocks with a norm whose scale is zero, narrow enough that one draw decides little."""
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(16, 8, 8, 3)), jnp.float32)

    class Block(linen.Module):
        @linen.compact
        def __call__(self, x):
            x = linen.Conv(8, (3, 3))(x)
            for _ in range(4):
                h = linen.relu(linen.GroupNorm(4)(linen.Conv(8, (3, 3))(x)))
                zero = linen.GroupNorm(4, scale_init=linen.initializers.zeros)
                x = linen.relu(x + zero(linen.Conv(8, (3, 3))(h)))
            return linen.Dense(10)(x.mean((1, 2)))

    def scored(params, batch):
        scores = jax.nn.log_softmax(model.apply(params, batch[0]))
        return -jnp.take_along_axis(scores, batch[1][:, None], 1).mean()

    model = Block()
    params = model.init(jax.random.key(0), images)
    result = check_flow(params, scored, (images, jnp.asarray(Y[:16].numpy())), seed=0)
    assert "flow-zero" not in [f.code for f in result.findings]
    assert "one small step" in next(f.message for f in result.findings if f.code == "flow-asleep")


@pytest.mark.parametrize("is_made", [True, False])
@pytest.mark.parametrize("name", STARTS)
def test_a_start_at_zero_that_training_leaves_is_a_note(name, is_made):
    given, make = (None, STARTS[name]) if is_made else (STARTS[name](), None)
    result = check_flow(given, classified, (X, Y), make=make, seed=0)
    assert "flow-zero" not in [f.code for f in result.findings]
    assert "flow-asleep" in codes(result, "note")
    assert result.verdict == "pass" or not is_made


@pytest.mark.parametrize("is_made", [True, False])
def test_a_start_of_several_zeros_is_a_note_in_jax(is_made):
    """A diffusion transformer's: zero modulation and zero head (Peebles and Xie 2023)."""

    def make(seed):
        draws = np.random.default_rng(seed)
        sizes = {"stem": (16, 32), "time": (4, 32), "one": (32, 64), "two": (64, 32)}
        drawn = {n: draws.normal(size=s) / s[0] ** 0.5 for n, s in sizes.items()}
        zeros = {"shift": jnp.zeros((32, 32)), "gate": jnp.zeros((32, 32)), "head": np.zeros(32)}
        return jax.tree.map(jnp.float32, drawn | zeros)

    def loss(p, x):
        h, t = x @ p["stem"], jax.nn.silu(x[:, :4] @ p["time"])
        h = h + (t @ p["gate"]) * (jax.nn.gelu((h + t @ p["shift"]) @ p["one"]) @ p["two"])
        return jnp.mean((h @ p["head"] - x[:, 0]) ** 2)

    given, maker = (None, make) if is_made else (make(0), None)
    result = check_flow(given, loss, jnp.asarray(X.numpy()), make=maker, seed=0)
    assert (result.verdict, codes(result)) == ("pass", [])
    assert "two small steps" in next(f.message for f in result.findings if f.code == "flow-asleep")


def test_zeros_that_training_does_not_leave_still_fail():
    def make():
        model = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 32), nn.Linear(32, 10))
        for part in (model[0], model[2], model[3]):
            nn.init.zeros_(part.weight)
            nn.init.zeros_(part.bias)
        return model

    model = make()
    assert check_flow(model, classified, (X, Y), seed=0).verdict == "fail"


class Scaled(nn.Module):
    """A block of ConvNeXt with its layer scale (Liu et al. 2022), of one shape or another."""

    def __init__(self, *shape):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 16, 2, 2), nn.Linear(16, 10)
        self.scale = nn.Parameter(torch.full(shape, 1e-6))
        self.branch = nn.Sequential(
            nn.Conv2d(16, 16, 3, 1, 1, groups=16),
            nn.GroupNorm(1, 16),
            nn.Conv2d(16, 64, 1),
            nn.GELU(),
            nn.Conv2d(64, 16, 1),
        )

    def forward(self, x):
        h = self.stem(x)
        return self.head((h + self.scale * self.branch(h)).mean((2, 3)))


@pytest.mark.parametrize("shape", [(16, 1, 1), (1, 16, 1, 1)])
def test_a_scale_for_each_channel_may_move_by_much(shape):
    images = torch.randn(16, 3, 8, 8, generator=G)
    result = check_flow(
        None,
        classified,
        (images, Y[:16]),
        make=lambda: Scaled(*shape),
        optimizer=lambda p: torch.optim.AdamW(p, 1e-3),
        seed=0,
    )
    assert codes(result, "fail", "warn") == []


RECORDS = {
    "flat": ({f"l{n}": np.eye(1) for n in range(10)}, "flow-vanishing", "fade"),
    "growing": ({f"l{n}": 0.8**n * np.eye(1) for n in range(10)}, "flow-exploding", "grow"),
}


@pytest.mark.parametrize("name", RECORDS)
def test_what_is_open_is_told_once_by_its_interval(name):
    record, code, verb = RECORDS[name]
    result = check_flow(record)
    assert (result.verdict, codes(result)) == ("undecided", [code])
    message = result.findings[0].message
    assert "per layer" not in result.headline + message
    assert f"it may {verb} too far" in message
    numbers = dict(result.findings[0].numbers)
    assert f"{numbers['low']:.1e} to {numbers['high']:.1e} in all" in result.headline
