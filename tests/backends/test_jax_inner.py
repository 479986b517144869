"""Branches, loops and rules by hand of JAX are looked into."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from pytest_gradcheck import UsageError, check_flow
from pytest_gradcheck.backends.jax_probe import JaxProbe

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(32, 4)), jnp.float32)


def make(seed):
    rng = np.random.default_rng(seed)
    shapes = (("one", (4, 6)), ("mid", (6, 6)), ("two", (6, 3)))
    return {k: jnp.asarray(rng.normal(size=s) * 0.5, jnp.float32) for k, s in shapes}


def loss_of(run):
    return lambda p, b: jnp.mean((run(p, b @ p["one"]) @ p["two"]) ** 2)


def seen(run):
    params = make(0)
    probe = JaxProbe(params, loss_of(run), X)
    with probe.guard():
        return probe.measure(params)


def asked(run):
    return check_flow(None, loss_of(run), X, make=make, frozen=["mid"])


def rms(x):
    return float(np.sqrt(np.mean(np.asarray(x, np.float64) ** 2)))


def plain(p, h):
    return jax.nn.relu(h @ p["mid"])


CHOICES = {
    "cond": lambda p, h: lax.cond(h.sum() < 1e9, plain, lambda p, h: jnp.tanh(h), p, h),
    "other": lambda p, h: lax.cond(h.sum() > 1e9, lambda p, h: jnp.tanh(h), plain, p, h),
    "switch": lambda p, h: lax.switch(
        (h.sum() < 1e9).astype(int) + 1, [lambda p, h: h, lambda p, h: -h, plain], p, h
    ),
    "jit": jax.jit(lambda p, h: lax.cond(h.sum() < 1e9, plain, lambda p, h: jnp.tanh(h), p, h)),
}


@pytest.mark.parametrize("name", CHOICES)
def test_the_branch_that_runs_shows_the_same_as_without_a_choice(name):
    one, other = seen(CHOICES[name]), seen(plain)
    assert [y.name for y in one.layers] == ["one", "mid", "mid.relu", "two"]
    for a, b in zip(one.layers, other.layers, strict=True):
        assert a.activation == pytest.approx(b.activation, rel=1e-5)
        assert a.gradient == pytest.approx(b.gradient, rel=1e-4)
        assert a.parents == b.parents
    assert one.plain_loss == pytest.approx(other.plain_loss, abs=1e-7)
    assert one.source == pytest.approx(other.source)


def test_dead_units_of_a_branch_are_seen():
    run = lambda p, h: lax.cond(h.sum() < 1e9, lambda h: jax.nn.relu(h @ p["mid"] - 99), jnp.sin, h)  # noqa: E731
    result = asked(run)
    assert (result.verdict, result.findings[0].code) == ("fail", "flow-dead")
    assert result.findings[0].where == "mid.relu"


def test_the_last_product_may_lie_in_a_branch():
    def loss(p, b):
        h = jnp.tanh(b @ p["one"])
        out = lax.cond(h.sum() > 1e9, lambda h: h @ p["two"], lambda h: -h @ p["two"], h)
        return jnp.mean((out - 3.0) ** 2)

    params = make(0)
    one = JaxProbe(params, loss, X).measure(params)
    assert one.plain_loss == pytest.approx(9.0)


def test_a_choice_in_a_scan_counts_only_where_it_runs():
    def run(p, h):
        def step(c, i):
            return lax.switch(i, [lambda c: jax.nn.relu(c @ p["mid"]), jnp.tanh], c), None

        return lax.scan(step, h, jnp.array([0, 1, 0]))[0]

    one = seen(run)
    layer = next(y for y in one.layers if y.name == "mid")
    p = make(0)
    h = X @ p["one"]
    first = h @ p["mid"]
    last = jnp.tanh(jax.nn.relu(first)) @ p["mid"]
    assert layer.activation == pytest.approx(rms(jnp.stack([first, last])), rel=1e-5)
    assert layer.size == 2 * first.size


def turned(p, h):
    """Four turns of a layer beside the path of the gradient."""
    step = lambda c: (c[0] + 1, jnp.tanh(c[1] @ lax.stop_gradient(p["mid"])))  # noqa: E731
    return h * lax.while_loop(lambda c: c[0] < 4, step, (0, lax.stop_gradient(h)))[1]


def test_a_while_is_shown_turn_by_turn():
    p, sizes = make(0), []
    h = X @ p["one"]
    for _ in range(4):
        h = jnp.tanh(h @ p["mid"])
        sizes.append(rms(h))
    turns = [t for t in seen(turned).turns if t.name == "mid.tanh"]
    assert [t.number for t in turns] == [1, 2, 3, 4]
    assert [t.activation for t in turns] == pytest.approx(sizes, rel=1e-5)
    result = asked(turned)
    assert result.verdict == "pass"
    assert ("mid", 1) in [row[:2] for row in result.table("turns").rows]


def test_of_many_turns_the_first_and_the_last_are_shown():
    step = lambda c: (c[0] + 1, jnp.tanh(c[1]))  # noqa: E731
    run = lambda p, h: (  # noqa: E731
        h * lax.while_loop(lambda c: c[0] < 100, step, (0, lax.stop_gradient(h)))[1]
    )
    numbers = [t.number for t in seen(run).turns]
    assert numbers == [*range(1, 16), 100]


def test_a_while_inside_a_rule_by_hand_is_shown():
    @jax.custom_vjp
    def solve(w, h):
        step = lambda c: (c[0] + 1, jnp.tanh(c[1] @ w))  # noqa: E731
        return lax.while_loop(lambda c: c[0] < 3, step, (0, h))[1]

    def backward(kept, g):
        w, h = kept
        return h.T @ g, g @ w.T

    solve.defvjp(lambda w, h: (solve(w, h), (w, h)), backward)
    one = seen(lambda p, h: solve(p["mid"], h))
    assert [t.number for t in one.turns if t.name == "mid"] == [1, 2, 3]
    assert all(y.gradient > 0 for y in one.layers)


@jax.custom_vjp
def lost(h):
    return 2 * jnp.log(-1 - jnp.abs(h)) + 1


lost.defvjp(lambda h: (lost(h), None), lambda _, g: (g,))


def looped(step, start=0):
    """A loop beside the path of the gradient, whose counter starts at a number."""
    return lambda p, h: (
        h * lax.while_loop(lambda c: c[0] < 60, step, (start, lax.stop_gradient(jnp.abs(h))))[1]
    )


BIRTHS = {
    "branch": (
        lambda p, h: lax.cond(h.sum() > 1e9, jnp.sin, lambda h: jnp.log(-1 - jnp.abs(h)), h),
        "one.log",
        "nan is born forward",
    ),
    "branch, backward": (
        lambda p, h: lax.cond(
            h.sum() > 1e9, jnp.sin, lambda h: jnp.where(h > 99, jnp.log(h - h), h), h
        ),
        "one.log",
        "born backward",
    ),
    "turn of a while": (
        looped(lambda c: (c[0] + 1, jnp.sqrt(2.5 - c[0]) + 0 * c[1])),
        "one.sqrt",
        "in turn 4 of its loop",
    ),
    "late turn of a while": (
        looped(lambda c: (c[0] + 1, jnp.cos(jnp.sqrt(40.5 - c[0]) + 0 * c[1]))),
        "one.sqrt",
        "in turn 42 of its loop",
    ),
    "turn of a scan": (
        lambda p, h: lax.scan(lambda c, i: (jnp.sqrt(1.5 - i) * c, None), h, jnp.arange(5.0))[0],
        "one.sqrt",
        "in turn 3 of its loop",
    ),
    "branch of a scan": (
        lambda p, h: lax.scan(
            lambda c, i: (lax.cond(i == 1, lambda c: jnp.log(-1 - c * c), jnp.sin, c), None),
            h,
            jnp.arange(3),
        )[0],
        "one.log",
        "in turn 2 of its loop",
    ),
    "rule by hand": (lambda p, h: lost(h), "one.log", "nan is born forward"),
}


@pytest.mark.parametrize("name", BIRTHS)
def test_what_is_not_finite_is_born_inside(name):
    run, where, words = BIRTHS[name]
    finding = asked(run).findings[0]
    assert (finding.code, finding.where) == ("flow-nonfinite", where)
    assert words in finding.message


def test_what_does_not_run_is_not_to_blame():
    run = lambda p, h: lax.cond(h.sum() < 1e9, jnp.sin, lambda h: jnp.log(-1 - jnp.abs(h)), h)  # noqa: E731
    assert "flow-nonfinite" not in [f.code for f in asked(run).findings]


def test_a_loop_without_a_derivative_is_refused_in_words():
    run = lambda p, h: lax.while_loop(lambda c: c.sum() < 1e3, lambda c: 2 * jnp.abs(c) + 1, h)  # noqa: E731
    with pytest.raises(UsageError, match="Reverse-mode differentiation does not work"):
        asked(run)


def called(h):
    shape = jax.ShapeDtypeStruct(h.shape, h.dtype)
    return jax.pure_callback(lambda a: np.tanh(a), shape, h, vmap_method="sequential")


def test_a_callback_on_the_path_is_refused_in_words():
    with pytest.raises(UsageError, match="Pure callbacks do not support"):
        asked(lambda p, h: called(h))


def test_a_callback_beside_the_path_is_run():
    assert asked(lambda p, h: h * called(lax.stop_gradient(h))).verdict == "pass"


def test_what_is_stopped_has_no_gradient():
    one = seen(lambda p, h: h + jax.nn.relu(lax.stop_gradient(h) @ p["mid"]))
    other = seen(lambda p, h: h + lax.stop_gradient(jnp.tanh(h @ p["mid"])))
    still = seen(lambda p, h: h + jax.nn.relu(lax.stop_gradient(h)))
    for name, pass_, is_known in (
        ("mid", one, True),
        ("mid", other, True),
        ("one.relu", still, False),
    ):
        layer = next(y for y in pass_.layers if y.name == name)
        assert math.isnan(layer.gradient) is not is_known
