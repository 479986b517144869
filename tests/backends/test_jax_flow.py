"""What a pass of a JAX function shows: adjoints as by hand, through every kind of call."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pytest_gradcheck.backends.jax_probe import JaxProbe

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(16, 4)), jnp.float32)
Y = jnp.asarray(RNG.normal(size=(16, 3)), jnp.float32)
PARAMS = {
    "one": {"w": jnp.asarray(RNG.normal(size=(4, 6)), jnp.float32), "b": jnp.ones(6)},
    "two": {"w": jnp.asarray(RNG.normal(size=(6, 3)), jnp.float32), "b": jnp.zeros(3)},
}


def network(params, x, act=jnp.tanh):
    h = act(x @ params["one"]["w"] + params["one"]["b"])
    return h @ params["two"]["w"] + params["two"]["b"]


def loss(params, batch):
    return jnp.mean((network(params, batch[0]) - batch[1]) ** 2)


def seen(loss, params=PARAMS, batch=(X, Y), change=None):
    probe = JaxProbe(params, loss, batch)
    with probe.guard():
        return probe.measure(params, change)


def layer(one, name):
    return next(y for y in one.layers if y.name == name)


def rms(x):
    return float(np.sqrt(np.mean(np.asarray(x, np.float64) ** 2)))


def by_hand():
    z = X @ PARAMS["one"]["w"] + PARAMS["one"]["b"]
    tail = lambda a: jnp.mean((a @ PARAMS["two"]["w"] - Y) ** 2)  # noqa: E731
    adjoint_of_z = jax.grad(lambda z: tail(jnp.tanh(z)))(z)
    adjoint_of_a = jax.grad(tail)(jnp.tanh(z))
    return z, adjoint_of_z, adjoint_of_a


WAYS = {
    "plain": loss,
    "jit": jax.jit(loss),
    "checkpoint": jax.checkpoint(loss),
    "inner jit": lambda p, b: jnp.mean((jax.jit(network)(p, b[0]) - b[1]) ** 2),
    "vmap": lambda p, b: jnp.mean((jax.vmap(lambda x: network(p, x))(b[0]) - b[1]) ** 2),
}


@pytest.mark.parametrize("way", WAYS)
def test_adjoints_are_those_by_hand(way):
    z, adjoint_of_z, adjoint_of_a = by_hand()
    one = seen(WAYS[way])
    assert [y.name for y in one.layers] == ["one", "one.tanh", "two"]
    assert layer(one, "one").activation == pytest.approx(rms(z), rel=1e-5)
    assert layer(one, "one").gradient == pytest.approx(rms(adjoint_of_z), rel=1e-5)
    assert layer(one, "one.tanh").gradient == pytest.approx(rms(adjoint_of_a), rel=1e-5)
    told = {p.name: p.gradient for p in one.parameters}
    gradients = jax.grad(loss)(PARAMS, (X, Y))
    assert told["one.w"] == pytest.approx(rms(gradients["one"]["w"]), rel=1e-5)
    assert one.loss == pytest.approx(float(loss(PARAMS, (X, Y))), rel=1e-6)
    assert one.plain_loss == pytest.approx(float(jnp.mean(Y**2)), rel=1e-6)


def test_a_scan_over_time_shows_the_adjoint_of_each_step():
    w = {"h": 0.5 * jnp.eye(4), "x": jnp.eye(4)}
    steps = jnp.ones((5, 2, 4))

    def run(params, batch):
        def step(h, x):
            return h @ params["h"] + x @ params["x"], h

        return jax.lax.scan(step, jnp.zeros((2, 4)), batch)[0].sum()

    one = seen(run, w, steps)
    fades = dict(one.fades)
    # the adjoint halves with every step back, and the last product has that of the sum
    assert fades["h"] == pytest.approx(4 * math.log10(0.5), abs=1e-5)


def test_a_scan_over_stacked_layers_is_layer_by_layer():
    stacked = jnp.stack([jnp.eye(4), 2 * jnp.eye(4), 3 * jnp.eye(4)])

    def run(params, batch):
        return jax.lax.scan(lambda h, w: (h @ w, None), batch, params["w"])[0].sum()

    one = seen(run, {"w": stacked}, X)
    assert [y.name for y in one.layers] == ["w[0]", "w[1]", "w[2]"]
    assert [y.gradient for y in one.layers] == pytest.approx([6.0, 3.0, 1.0])


def test_rules_by_hand_are_kept():
    @jax.custom_vjp
    def twice(x):
        return x

    twice.defvjp(lambda x: (x, None), lambda _, g: (10.0 * g,))
    plain = seen(loss)
    other = seen(lambda p, b: jnp.mean((twice(network(p, b[0])) - b[1]) ** 2))
    assert layer(other, "one").gradient == pytest.approx(
        10 * layer(plain, "one").gradient, rel=1e-5
    )


def test_branches_and_loops_without_layers_change_nothing():
    def run(params, batch):
        out = network(params, batch[0])
        out = jax.lax.cond(out.sum() > -1e9, lambda x: 2 * x, lambda x: x, out)
        count = jax.lax.while_loop(lambda k: k < 3, lambda k: k + 1, 0)
        return jnp.mean(out**2) * count

    assert layer(seen(run), "one").gradient > 0


@pytest.mark.parametrize(
    ("act", "op"),
    [
        (jax.nn.relu, "relu"),
        (lambda x: jnp.maximum(x, 0), "relu"),
        (jax.nn.sigmoid, "logistic"),
        (jax.nn.silu, "silu"),
        (jax.nn.elu, "elu"),
    ],
)
def test_activations_go_by_the_layer_that_feeds_them(act, op):
    one = seen(lambda p, b: jnp.mean((network(p, b[0], act) - b[1]) ** 2))
    assert [y.name for y in one.layers] == ["one", f"one.{op}", "two"]
    assert layer(one, f"one.{op}").kind == "activation"


def test_the_tanh_inside_a_gelu_is_no_layer_that_saturates():
    one = seen(lambda p, b: jnp.mean((network(p, 100 * b[0], jax.nn.gelu) - b[1]) ** 2))
    assert [y.name for y in one.layers] == ["one", "one.gelu", "two"]
    assert math.isnan(layer(one, "one.gelu").saturated)


def test_an_unused_parameter_has_no_gradient():
    one = seen(lambda p, b: jnp.mean(p["one"]["w"] ** 2))
    told = {p.name: p.gradient for p in one.parameters}
    assert told["one.w"] > 0
    assert math.isnan(told["two.w"])


def test_equinox_and_flax_modules_go_by_their_names():
    eqx = pytest.importorskip("equinox")
    nnx = pytest.importorskip("flax.nnx")
    mlp = eqx.nn.MLP(4, 3, 6, 1, activation=jax.nn.tanh, key=jax.random.key(0))
    one = seen(lambda m, b: jnp.mean((jax.vmap(m)(b[0]) - b[1]) ** 2), mlp)
    assert [y.name for y in one.layers if y.kind == "linear"] == ["layers.0", "layers.1"]

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.one, self.two = nnx.Linear(4, 6, rngs=rngs), nnx.Linear(6, 3, rngs=rngs)

        def __call__(self, x):
            return self.two(jnp.tanh(self.one(x)))

    one = seen(lambda m, b: jnp.mean((m(b[0]) - b[1]) ** 2), Net(nnx.Rngs(0)))
    assert [y.name for y in one.layers] == ["one", "one.tanh", "two"]


@pytest.mark.parametrize("change", ["activation", "init", "bias", "input", "normalise", "skip"])
def test_a_change_is_made_on_the_way(change):
    plain, other = seen(loss), seen(loss, change=(change, -1))
    if change == "skip":  # one activation has nothing to skip
        assert [y.gradient for y in other.layers] == [y.gradient for y in plain.layers]
        return
    assert [y.gradient for y in other.layers] != [y.gradient for y in plain.layers]
    assert {"init": layer(other, "one").activation}.get(change, 1.0) == pytest.approx(1.0, rel=1e-4)


def test_double_precision_is_seen_as_it_is():
    with jax.enable_x64(True) if hasattr(jax, "enable_x64") else jax.experimental.enable_x64():
        wide = jax.tree.map(lambda p: jnp.asarray(p, jnp.float64), PARAMS)
        probe = JaxProbe(wide, loss, (X, Y))
        with probe.guard():
            assert probe.dtype == "float64"
            assert probe.measure(wide).loss > 0


class Parts(tuple):
    """Stands in for how JAX 0.11 tells the parts of a scan's arguments."""

    def unpack(self):
        return tuple(self)


def test_a_scan_tells_its_parts_in_either_way():
    from pytest_gradcheck.backends.jax_contracts import scan_counts

    assert scan_counts({"num_consts": 2, "num_carry": 1}) == (2, 1)
    assert scan_counts({"ft_in": Parts([(None, None), (None,), (None,)])}) == (2, 1)
