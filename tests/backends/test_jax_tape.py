"""What NumPy computes in JAX's place is what JAX computes, forward and backward."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pytest_gradcheck import check_flow
from pytest_gradcheck.backends import jax_tape
from pytest_gradcheck.backends.jax_contracts import equations
from pytest_gradcheck.backends.jax_primitives import _ANY, _FLOATS, _MAKERS, _REDUCTIONS
from pytest_gradcheck.backends.jax_probe import JaxProbe
from pytest_gradcheck.backends.jax_tape import Tape, is_small

RNG = np.random.default_rng(0)
X = RNG.uniform(0.2, 0.9, (3, 4)).astype(np.float32)
Y = RNG.uniform(-0.9, -0.2, (3, 4)).astype(np.float32)
lax = jax.lax

FUNCTIONS = {
    "arithmetic": lambda x, y: (x + y * 2 - x / y) ** 2,
    "elementwise": lambda x, y: sum(
        f(x) for f in (jnp.exp, jnp.exp2, jnp.log, jnp.log1p, jnp.expm1, jnp.tanh, jnp.sin, jnp.cos)
    ),
    "roots": lambda x, y: jnp.sqrt(x) + lax.rsqrt(x) + jnp.power(x, x) + jax.nn.sigmoid(y) + y**3,
    "powers": lambda x, y: x**-2 + x**5 + lax.square(y),
    "signs": lambda x, y: jnp.abs(y) * jnp.sign(y) + jnp.maximum(x, y) - jnp.minimum(x, 0.5) - (-y),
    "steps": lambda x, y: x * (jnp.floor(3 * x) + jnp.ceil(y)) + jnp.where(jnp.isfinite(x), x, y),
    "comparisons": lambda x, y: (
        x * (x < y) + x * (x > 0.5) + y * (x >= y) + x * (x <= y) + x * (x == y) + y * (x != y)
    ),
    "logic": lambda x, y: jnp.where(~((x < 0.5) & (y < -0.5)) | (x > 0.8), x, y),
    "clip": lambda x, y: lax.clamp(0.3, x, 0.6) + jnp.clip(y, -0.5, 0.0),
    "reductions": lambda x, y: x.sum(0) + y.max(0) + x.min() + jnp.prod(x, 0),
    "predicates": lambda x, y: x * jnp.all(x > 0, 0) + y * jnp.any(y > -0.3, 1, keepdims=True),
    "shapes": lambda x, y: (x.T.reshape(2, 6)[:, ::2], jnp.concatenate([x, y], 1)[:, 1:7:3]),
    "axes": lambda x, y: jnp.squeeze(x[None] + lax.expand_dims(y, (0,)), 0),
    "indices": lambda x, y: x[jnp.arange(3), jnp.array([0, 3, 1])] + lax.iota(jnp.float32, 3),
    "casts": lambda x, y: x * jnp.arange(4).astype(x.dtype) + (x > y).astype(x.dtype),
    "products": lambda x, y: (x @ y.T, jnp.einsum("ab,cb->cab", x, y), jnp.tensordot(x, y, 2)),
    "stacks": lambda x, y: jnp.einsum("abc,acd->abd", x[:, :, None] * y[:, None], y[:, :, None]),
    "calls": lambda x, y: jax.nn.relu(y + 0.5) + jax.nn.silu(x) + jax.checkpoint(jnp.tanh)(x),
    "constants": lambda x, y: jax.lax.stop_gradient(x) * y + jnp.array(x, copy=True),
    "left to JAX": lambda x, y: jnp.cumsum(x, 0) + jnp.sort(y, 1) + jax.nn.gelu(x, False),
    "softmax": lambda x, y: jax.nn.log_softmax(x) * jax.nn.softmax(y),
}


def total(f):
    def run(values):
        out = f(*values)
        outs = out if isinstance(out, tuple) else (out,)
        weights = (jnp.cos(jnp.arange(o.size, dtype=o.dtype)).reshape(o.shape) for o in outs)
        return sum(jnp.sum(o * w) for o, w in zip(outs, weights, strict=True))

    return run


@pytest.mark.parametrize("name", FUNCTIONS)
def test_value_and_gradient_are_jaxs_own(name):
    f = total(FUNCTIONS[name])
    closed = jax.make_jaxpr(f)([X, Y])
    assert is_small(closed)
    (value,), _, gradients = Tape(closed, 2).run([X, Y], 3.0)
    expected, pulled = jax.value_and_grad(f)([jnp.asarray(X), jnp.asarray(Y)])
    np.testing.assert_allclose(value, expected, rtol=2e-5, atol=1e-5)
    assert value.dtype == np.float32
    for mine, theirs in zip(gradients, pulled, strict=True):
        np.testing.assert_allclose(mine, 3 * theirs, rtol=1e-4, atol=1e-5)
        assert (mine.dtype, mine.shape) == (theirs.dtype, theirs.shape)


def test_every_primitive_of_the_tables_was_among_them():
    used = set()
    for f in FUNCTIONS.values():
        for run in (total(f), jax.grad(total(f))):
            closed = jax.make_jaxpr(run)([X, Y])
            used |= {eqn.primitive.name for eqn in equations(closed.jaxpr)}
    # named differently, or used, by other releases of JAX
    others = {"copy", "copy_p", "expand_dims", "squeeze", "stop_gradient", "square"}
    assert {*_ANY, *_FLOATS, *_REDUCTIONS, *_MAKERS} - others <= used


def test_whole_numbers_are_left_to_jax():
    def f(v):
        whole = jnp.arange(3) // 2 - jnp.int32(-7) // 2 + 2 ** jnp.arange(3)
        return jnp.sum(v[0]) * whole.sum()

    (value,), _, _ = Tape(jax.make_jaxpr(f)([X]), 1).run([X], 1.0)
    assert value == pytest.approx(float(f([X])), rel=1e-6)


def test_rules_of_the_users_own_are_never_mistaken_for_one_another():
    """Functions that compute the same, with other rules; JAX's own is kept between calls."""

    def ruled(factor):
        run = jax.custom_jvp(lambda x: jnp.maximum(x, 0))
        run.defjvps(lambda g, out, x: factor * g)
        return run

    for f, slope in ((ruled(2.0), 2.0), (ruled(3.0), 3.0), (jax.nn.relu, 1.0), (jax.nn.relu, 1.0)):
        closed = jax.make_jaxpr(lambda v, f=f: jnp.sum(f(v[0])))([X])
        _, _, (gradient,) = Tape(closed, 1).run([X], 1.0)
        np.testing.assert_array_equal(gradient, np.full_like(X, slope))


NOT_HERE = {
    "a scan": lambda v: lax.scan(lambda c, x: (c * x.sum(), None), 1.0, v[0])[0],
    "a loop": lambda v: lax.while_loop(lambda x: x < 3, lambda x: x + 1, v[0].sum()),
    "a branch": lambda v: lax.cond(v[0].sum() > 0, jnp.sum, jnp.prod, v[0]),
    "half precision": lambda v: v[0].astype(jnp.bfloat16).sum().astype(jnp.float32),
    "a print": lambda v: (jax.debug.print("{}", v[0].sum()), v[0].sum())[1],
    "a convolution": lambda v: lax.conv(v[0][None, None], v[0][None, None], (1, 1), "SAME").sum(),
    "random keys": lambda v: jax.random.normal(jax.random.key(0), (3, 4)).sum() * v[0].sum(),
    "much work": lambda v: jnp.sum(jnp.tile(v[0], (1000, 1000))),
}


@pytest.mark.parametrize("name", NOT_HERE)
def test_what_is_not_small_or_plain_is_compiled(name):
    assert not is_small(jax.make_jaxpr(NOT_HERE[name])([X]))


def network(params, batch):
    x, y = batch
    for p in params[:-1]:
        x = jax.nn.relu(x @ p["w"] + p["b"])
    x = x @ params[-1]["w"]
    return -jnp.mean(jax.nn.log_softmax(x)[jnp.arange(len(y)), y])


def drawn(seed):
    rng = np.random.default_rng(seed)
    sizes = [(4, 8), (8, 8), (8, 3)]
    return [
        {"w": jnp.asarray(rng.normal(size=s), jnp.float32), "b": jnp.full(s[1], 0.1)} for s in sizes
    ]


BATCH = (jnp.asarray(RNG.normal(size=(32, 4)), jnp.float32), jnp.asarray(RNG.integers(0, 3, 32)))
CHANGES = [None, *((c, -1) for c in JaxProbe.changes if c != "layer"), ("layer", 1)]


def measured(change, factor=1.0):
    probe = JaxProbe(None, network, BATCH, drawn)
    return probe.measure(probe.draw(3), change, factor)


@pytest.mark.parametrize("change", CHANGES)
def test_a_pass_is_that_of_the_compiled_program(change, monkeypatch):
    mine = measured(change, 8.0)
    monkeypatch.setattr(jax_tape, "WORK", -1.0)
    theirs = measured(change, 8.0)
    assert [y.name for y in mine.layers] == [y.name for y in theirs.layers]
    all_of = lambda one: (*one.layers, *one.parameters)  # noqa: E731  # both have a gradient
    for a, b in zip(all_of(mine), all_of(theirs), strict=True):
        assert a.gradient == pytest.approx(b.gradient, rel=1e-4, abs=1e-7, nan_ok=True)
    for a, b in zip(mine.layers, theirs.layers, strict=True):
        assert a.activation == pytest.approx(b.activation, rel=1e-5)
        assert a.dead == pytest.approx(b.dead, nan_ok=True)
    assert mine.loss == pytest.approx(theirs.loss, rel=1e-5)
    assert mine.plain_loss == pytest.approx(theirs.plain_loss, rel=1e-5, nan_ok=True)


def test_a_small_check_compiles_no_program(monkeypatch):
    def refused(*args, **options):
        raise AssertionError("compiled")

    measured(None)  # what JAX itself compiles for single primitives
    monkeypatch.setattr(jax, "jit", refused)
    assert check_flow(None, network, BATCH, make=drawn, seed=1).verdict in ("pass", "fail")
