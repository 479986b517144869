"""Layers of JAX go by the names that a user gave them, and what feeds which is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pytest_gradcheck import check_flow
from pytest_gradcheck.backends.jax_probe import JaxProbe

RNG = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


X, Y, IMAGES = normal(16, 4), normal(16, 3), normal(16, 6, 6, 3)
TOKENS = jnp.asarray(RNG.integers(0, 10, (16, 5)))


def squared(run):
    return lambda model, batch: jnp.mean((run(model, batch[0]) - batch[1]) ** 2)


def measured(model, run, x=X):
    probe = JaxProbe(model, squared(run), (x, Y))
    with probe.guard():
        return probe.measure(model)


def names(model, run, x=X):
    return [y.name for y in measured(model, run, x).layers]


def linen_names(module, x=X, jit=False):
    variables = module.init(jax.random.key(0), x)
    rest = {k: v for k, v in variables.items() if k != "params"}

    def run(params, x):
        out = module.apply({"params": params, **rest}, x, mutable=list(rest))
        return out[0]

    return names(variables["params"], jax.jit(run) if jit else run, x)


BLOCK = ["Dense_0", "Dense_0.gelu", "Dense_1"]


@pytest.mark.parametrize("jit", [False, True])
def test_flax_linen(jit):
    nn = pytest.importorskip("flax.linen")

    class Block(nn.Module):
        @nn.compact
        def __call__(self, x):
            h = nn.gelu(nn.Dense(16)(nn.LayerNorm()(x)))
            return x + nn.Dense(x.shape[-1])(h)

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = Block()(nn.Dense(8, name="inp")(x))
            x = nn.remat(Block)(name="again")(nn.relu(x))
            return nn.Dense(3, name="head")(x)

    blocks = [f"{block}.{name}" for block in ("Block_0", "again") for name in BLOCK]
    expected = ["inp", *blocks[:3], "Block_0.Dense_1.relu", *blocks[3:], "head"]
    assert linen_names(Net(), jit=jit) == expected


def test_flax_linen_scan_attention_and_convolution():
    nn = pytest.importorskip("flax.linen")

    class Step(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return nn.tanh(nn.Dense(4, name="inner")(x)), None

    class Stack(nn.Module):
        @nn.compact
        def __call__(self, x):
            stack = nn.scan(
                Step, variable_axes={"params": 0}, split_rngs={"params": True}, length=2
            )
            return nn.Dense(3, name="head")(stack(name="steps")(x, None)[0])

    stacked = [f"steps.{name}[{n}]" for n in (0, 1) for name in ("inner", "inner.tanh")]
    assert linen_names(Stack()) == [*stacked, "head"]

    class Attends(nn.Module):
        @nn.compact
        def __call__(self, x):
            h = nn.Embed(10, 8, name="embed")(x)
            h = nn.LayerNorm()(nn.MultiHeadDotProductAttention(num_heads=2, name="attention")(h, h))
            return nn.Dense(3, name="head")(h.mean(1))

    parts = [f"attention.{name}" for name in ("query", "key", "value", "out")]
    assert linen_names(Attends(), TOKENS) == ["embed", *parts, "head"]

    class Convolves(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.BatchNorm(use_running_average=False)(nn.Conv(8, (3, 3))(x)))
            return nn.Dense(3)(nn.relu(x.mean((1, 2))))

    convolution = ["Conv_0", "Conv_0.relu", "Conv_0.relu#2", "Dense_0"]  # pooled and rectified
    assert linen_names(Convolves(), IMAGES) == convolution


def test_flax_nnx():
    nnx = pytest.importorskip("flax.nnx")

    class Block(nnx.Module):
        def __init__(self, rngs):
            self.norm = nnx.LayerNorm(4, rngs=rngs)
            self.up, self.down = nnx.Linear(4, 8, rngs=rngs), nnx.Linear(8, 4, rngs=rngs)

        def __call__(self, x):
            return x + self.down(nnx.relu(self.up(self.norm(x))))

    class Net(nnx.Module):
        def __init__(self, remat, rngs):
            self.one, self.two = Block(rngs), Block(rngs)
            self.head = nnx.Linear(4, 3, rngs=rngs)
            self.remat = remat

        def __call__(self, x):
            run = nnx.remat(lambda block, x: block(x)) if self.remat else lambda block, x: block(x)
            return self.head(run(self.two, run(self.one, x)))

    blocks = [f"{b}.{n}" for b in ("one", "two") for n in ("up", "up.relu", "down")]
    for remat in (False, True):
        assert names(Net(remat, nnx.Rngs(0)), lambda m, x: m(x)) == [*blocks, "head"]


def test_equinox():
    eqx = pytest.importorskip("equinox")

    class Block(eqx.Module):
        norm: eqx.nn.LayerNorm
        lin: eqx.nn.Linear

        def __init__(self, key):
            self.norm, self.lin = eqx.nn.LayerNorm(4), eqx.nn.Linear(4, 4, key=key)

        def __call__(self, x):
            return x + jax.nn.relu(self.lin(self.norm(x)))

    class Net(eqx.Module):
        blocks: list
        head: eqx.nn.Linear

        def __init__(self, key):
            one, two, head = jax.random.split(key, 3)
            self.blocks, self.head = [Block(one), Block(two)], eqx.nn.Linear(4, 3, key=head)

        def __call__(self, x):
            for block in self.blocks:
                x = block(x)
            return self.head(x)

    blocks = [f"blocks.{k}.{n}" for k in (0, 1) for n in ("lin", "lin.relu")]
    model = Net(jax.random.key(0))
    runs = (
        lambda m, x: jax.vmap(m)(x),
        lambda m, x: jax.vmap(eqx.filter_checkpoint(m))(x),
        lambda m, x: eqx.filter_jit(lambda m, x: jax.vmap(m)(x))(m, x),
    )
    for run in runs:
        assert names(model, run) == [*blocks, "head"]


PLAIN = {"one": {"w": normal(4, 6), "b": jnp.zeros(6)}, "head": normal(6, 3)}


def plain(weight):
    return lambda p, x: jnp.tanh(x @ weight(p["one"]["w"]) + p["one"]["b"]) @ p["head"]


@jax.custom_vjp
def linear(w, x):
    return x @ w


linear.defvjp(lambda w, x: (x @ w, (w, x)), lambda r, g: (r[1].T @ g, g @ r[0].T))

WAYS = {
    "as it is": plain(lambda w: w),
    "scaled": plain(lambda w: 2 * w),
    "normalised": plain(lambda w: w / jnp.linalg.norm(w, axis=0)),
    "masked": plain(lambda w: w * (jnp.arange(6) > 2)),
    "cast": plain(lambda w: w.astype(jnp.bfloat16).astype(jnp.float32)),
    "transposed": plain(lambda w: w.T.reshape(6, 4).T),
    "rule by hand": lambda p, x: jnp.tanh(linear(p["one"]["w"], x)) @ p["head"],
}


@pytest.mark.parametrize("way", WAYS)
def test_plain_pytrees_whatever_is_done_to_a_weight(way):
    assert names(PLAIN, WAYS[way]) == ["one", "one.tanh", "head"]


def test_functions_of_parameters_alone_are_no_layers():
    """A gate, a scale or a temperature that is kept positive has no samples that it could be
    dead or saturated for."""
    params = {"gate": jnp.full(3, 20.0), "scale": jnp.full(3, -20.0), "head": normal(4, 3)}

    def run(p, x):
        gate = jax.nn.sigmoid(p["gate"]) + jnp.tanh(p["gate"])
        return (x @ p["head"]) * gate + jax.nn.relu(p["scale"])

    assert names(params, run) == ["head"]


def test_the_input_of_the_first_layer_is_measured_and_standardised():
    eqx = pytest.importorskip("equinox")
    model = eqx.nn.MLP(4, 3, 8, 1, key=jax.random.key(0))
    probe = JaxProbe(model, squared(lambda m, x: jax.vmap(m)(x)), (100 * X, Y))
    assert probe.measure(model).source == pytest.approx(100 * float(jnp.sqrt((X**2).mean())))
    assert probe.measure(model, ("input", -1)).source == pytest.approx(
        probe.measure(model).source
    )  # told as it is
    weight = np.asarray(model.layers[0].weight, np.float64)
    wide = np.asarray(X, np.float64)
    standard = (wide - wide.mean(0)) / wide.std(0)
    expected = standard @ weight.T + np.asarray(model.layers[0].bias)
    changed = probe.measure(model, ("input", -1)).layers[0]
    assert changed.activation == pytest.approx(np.sqrt((expected**2).mean()), rel=1e-4)


def test_what_feeds_which_is_known():
    params = {"a": normal(4, 6), "left": normal(6, 3), "right": normal(6, 3)}

    def run(p, x):
        h = jnp.tanh(x @ p["a"])
        return h @ p["left"] + 1e-9 * (h @ p["right"])

    one = measured(params, run)
    assert [y.parents for y in one.layers] == [(), (0,), (1,), (1,)]


def test_two_heads_of_unequal_weight_are_no_fault():
    """What a side branch has less of is no weaker for that: as in torch."""

    def make(seed):
        keys = jax.random.split(jax.random.key(seed), 4)
        sizes = {"a": (8, 32), "b": (32, 32), "main": (32, 1), "extra": (32, 1)}
        return {
            name: jax.random.normal(key, s) * (2 / s[0]) ** 0.5
            for key, (name, s) in zip(keys, sizes.items(), strict=True)
        }

    def loss(p, batch):
        h = jax.nn.relu(jax.nn.relu(batch[0] @ p["a"]) @ p["b"])
        main, extra = h @ p["main"], h @ p["extra"]
        return jnp.mean((main - batch[1]) ** 2) + 1e-4 * jnp.mean((extra - batch[1]) ** 2)

    batch = (normal(32, 8), normal(32, 1))
    assert check_flow(None, loss, batch, make=make, seed=1).verdict == "pass"
