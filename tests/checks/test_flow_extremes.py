"""Numbers whose squares or products no float can hold, and records of zeros, are judged right."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_gradcheck import check_flow
from pytest_gradcheck.backends.descent import descent
from pytest_gradcheck.backends.jax_arrays import enable_x64
from pytest_gradcheck.backends.layers import Layer
from pytest_gradcheck.checks.flow.flows import in_squares, log_flow, power


def records(sizes, seeds=5):
    """Recorded layers, one for each pair of sizes of output and gradient."""

    def one(seed):
        rng = np.random.default_rng(seed)
        for k, (a, g) in enumerate(sizes):
            x = np.maximum(rng.normal(size=(64, 16)), 0)
            yield f"{k}.relu", x * a, rng.normal(size=x.shape) * g

    return [list(one(seed)) for seed in range(seeds)]


def gradients(sizes, seeds=5):
    def one(seed):
        rng = np.random.default_rng(seed)
        return {str(k): rng.normal(size=(8, 8)) * g for k, g in enumerate(sizes)}

    return [one(seed) for seed in range(seeds)]


def first(result):
    codes = (f.code.removeprefix("flow-") for f in result.findings if f.severity == "fail")
    return next(codes, result.verdict)


@pytest.mark.parametrize("g", [1e200, 1e-200, 1e300, 1e-320, 1.0])
@pytest.mark.parametrize("a", [1e200, 1e-200, 1.0])
def test_the_same_size_everywhere_is_healthy_whatever_it_is(a, g):
    result = check_flow(records([(a, g)] * 6))
    assert result.verdict == "pass"
    ends = [row[1] for row in result.table("initialisations").rows]
    assert all(0.5 < end < 2 for end in ends), ends  # measured, and not left out
    assert check_flow(gradients([g] * 4)).verdict == "pass"


WRONG = {
    "vanishing": [1e-200, 1e-150, 1e-100, 1e-50, 1.0],
    "vanishing far": [1e-300, 1e-150, 1.0, 1e150, 1e300],
    "vanishing low": [1e-310, 1e-308, 1e-306, 1e-304],
    "exploding": [1e200, 1e150, 1e100, 1e50, 1.0],
    "exploding far": [1e300, 1e150, 1.0, 1e-150, 1e-300],
    "exploding high": [1e305, 1e303, 1e301, 1e299],
    "zero": [0.0, 1e-200, 1.0],
    "zero all": [0.0, 0.0, 0.0],
}


@pytest.mark.parametrize("name", WRONG)
def test_what_vanishes_or_explodes_far_away_is_found(name):
    symptom = name.partition(" ")[0]
    assert first(check_flow(records([(1.0, g) for g in WRONG[name]]))) == symptom
    assert first(check_flow(gradients(WRONG[name]))) == symptom
    assert first(check_flow(gradients(WRONG[name])[0])) == symptom  # a single one


def test_a_product_that_overflows_is_no_reason_to_pass():
    """Gradients and outputs that are large together, or small together."""
    for a in (1e200, 1e-200):
        assert first(check_flow(records([(a, 1e-100 * g) for g in WRONG["vanishing"]]))) == (
            "vanishing"
        )
        assert first(check_flow(records([(a, 1e100 * g) for g in WRONG["exploding"]]))) == (
            "exploding"
        )


def test_records_of_zeros_are_dead():
    assert first(check_flow(records([(0.0, 1.0)] * 4))) == "dead"
    assert first(check_flow(records([(0.0, 0.0)] * 4))) == "dead"


def test_a_last_layer_of_zeros_is_seen_as_one():
    """No flow anywhere, and gradients that are: a choice that one step of training wakes."""
    zero = lambda seed: scaled(1.0, seed) | {"b": np.zeros((32, 1))}  # noqa: E731  # one layer
    result = check_flow(None, loss_times(1.0), BATCH, make=zero, backend="numpy")
    assert (result.verdict, first(result)) == ("pass", "pass")
    assert result.findings[0].code == "flow-asleep"


def scaled(factor, seed):
    rng = np.random.default_rng(seed)
    return {
        "a": factor * rng.normal(size=(8, 32)) / 2,
        "b": rng.normal(size=(32, 1)) / 5,
    }


def loss_times(factor):
    def loss(params, batch):
        x, y = batch
        z = x @ params["a"]
        h = np.maximum(z, 0)
        out = h @ params["b"]
        g = 2 * factor * (out - y) / len(y)
        g_z = (g @ params["b"].T) * (z > 0)
        layers = [("a", z, g_z), ("a.relu", h, g @ params["b"].T), ("b", out, g)]
        value = factor * float(np.mean((out - y) ** 2))
        return value, layers, {"a": x.T @ g_z, "b": h.T @ g}

    return loss


RNG = np.random.default_rng(1)
BATCH = (RNG.normal(size=(64, 8)), RNG.normal(size=(64, 1)))


@pytest.mark.parametrize("factor", [1e200, 1e-200, 1e300, 1e-300])
def test_the_scale_of_the_loss_does_not_matter(factor):
    plain, other = (
        check_flow(None, loss_times(f), BATCH, make=lambda seed: scaled(1.0, seed), backend="numpy")
        for f in (1.0, factor)
    )
    assert (plain.verdict, plain.headline) == (other.verdict, other.headline)


def test_jax_in_double_precision_is_judged_alike():
    def loss(params, batch):
        h = batch[0]
        for w in params:
            h = jnp.tanh(h @ w)
        return jnp.mean(h**2)

    def make(seed):
        rng = np.random.default_rng(seed)
        return [jnp.asarray(rng.normal(size=(8, 8)) / 8**0.5) for _ in range(4)]

    with enable_x64(True):
        batch = (jnp.asarray(BATCH[0]),)
        told = {
            check_flow(
                None, lambda p, b, f=f: f * loss(p, b), batch, make=make, seed=1, label="f"
            ).headline
            for f in (1.0, 1e200, 1e-200)
        }
        assert len(told) == 1, told
        tiny = lambda seed: [1e-30 * w for w in make(seed)]  # noqa: E731  # weights
        assert first(check_flow(None, loss, batch, make=tiny, seed=1)) == "vanishing"


@settings(deadline=None)
@given(st.lists(st.floats(-600, 600), min_size=1, max_size=6), st.floats(-300, 300))
def test_sums_of_squares_move_with_their_parts(logs, by):
    assert in_squares([x + by for x in logs]) == pytest.approx(in_squares(logs) + by, abs=1e-9)
    assert max(logs) <= in_squares(logs) + 1e-12 <= max(logs) + 0.5 * np.log10(len(logs)) + 1e-9


@given(st.floats(-300, 300), st.floats(-300, 300))
def test_a_flow_is_a_product(a, g):
    layer = Layer(name="x", size=4, activation=10.0**a, gradient=10.0**g)
    assert log_flow(layer) == pytest.approx(a + g + np.log10(2), abs=1e-9)
    assert 0 < power(log_flow(layer)) < np.inf


@pytest.mark.parametrize("size", [1e200, 1e-200, 1.0])
def test_a_step_takes_a_tenth_of_the_loss_away(size):
    gradients = [size * RNG.normal(size=(3, 4)), size * RNG.normal(size=5)]
    steps = descent(gradients, size)
    change = sum(float(np.sum(g / size * s)) for g, s in zip(gradients, steps, strict=True))
    assert change == pytest.approx(-0.1)
    assert not any(np.any(s) for s in descent([np.zeros(3)], 1.0))
    assert jax.tree.leaves(descent([], 1.0)) == []
