"""Runs in float64 are compiled whole where that changes nothing, and left alone elsewhere."""

import itertools

import numpy as np
import pytest

from pytest_gradcheck import UsageError, backends, check_gradient
from pytest_gradcheck.backends.reach import Snapshot

jax = pytest.importorskip("jax")
jnp = jax.numpy
POINT = jnp.linspace(0.2, 1.0, 3)


def runs_of(make, x=POINT, **options):
    """Verdict, evaluations, and how often Python ran the function; the counter is no state."""
    counter = itertools.count()
    result = check_gradient(make(counter), x, **options)
    return result.verdict, result.context.evaluations, next(counter)


def test_a_pure_function_is_traced_and_not_run_again_and_again():
    def make(counter):
        def f(x):
            next(counter)
            return jnp.sin(x)

        return f

    verdict, evaluations, calls = runs_of(make, resolution=1e-5, miss_probability=1e-30)
    assert verdict == "pass"
    assert calls <= 0.5 * evaluations


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_the_functions_own_precision_is_left_to_its_own_way_of_running(dtype):
    def f(x):
        # Concrete in every run outside derivatives: tracing would raise here.
        return jnp.sin(x) * float(jax.lax.stop_gradient(x).sum() > 0)

    with jax.enable_x64(dtype == "float64"):
        assert check_gradient(f, POINT.astype(dtype)).verdict == "pass"


@pytest.mark.parametrize("jit", [jax.jit, lambda f: f], ids=["jit", "eager"])
@pytest.mark.parametrize("factor", [1.0, 1.05])
def test_right_and_wrong_rules_with_jit_and_without(jit, factor):
    @jax.custom_vjp
    def f(x):
        return jnp.sin(x)

    f.defvjp(lambda x: (jnp.sin(x), x), lambda x, g: (factor * jnp.cos(x) * g,))
    assert check_gradient(jit(f), POINT).verdict == ("pass" if factor == 1.0 else "fail")


def test_a_branch_on_values_keeps_its_python():
    def make(counter):
        def f(x):
            next(counter)
            return jnp.sin(x) if x.sum() > 0 else jnp.cos(x)

        return f

    verdict, evaluations, calls = runs_of(make)
    assert verdict == "pass"
    assert calls >= evaluations


def in_a_list():
    calls = []

    def f(x):
        calls.append(1)
        return x * (1.0 + (len(calls) > 6))

    return f


def in_a_name():
    calls = 0

    def f(x):
        nonlocal calls
        calls += 1
        return x * (1.0 + (calls > 6))

    return f


def in_an_array():
    calls = np.zeros(1)

    def f(x):
        calls[0] += 1
        return x * (1.0 + (calls[0] > 6))

    return f


class InAnAttribute:
    def __init__(self):
        self.calls = 0

    def __call__(self, x):
        self.calls += 1
        return x * (1.0 + (self.calls > 6))


@pytest.mark.parametrize("make", [in_a_list, in_a_name, in_an_array, InAnAttribute])
def test_state_that_changes_is_never_frozen_by_tracing(make):
    # The value doubles from the seventh call on, which looks like a jump or a kink on the way; a
    # trace made before would never show it.
    assert check_gradient(make(), POINT).findings


def test_a_counter_that_shows_at_once_is_reported():
    calls = []

    def f(x):
        calls.append(1)
        return x * len(calls)

    result = check_gradient(f, POINT)
    assert result.verdict == "undecided"
    assert "unrepeatable" in {finding.code for finding in result.findings}


def test_random_numbers_of_the_host_are_drawn_again_in_each_run():
    result = check_gradient(lambda x: x * np.random.random(), POINT)
    assert result.verdict == "pass"


def test_what_the_first_call_sets_up_is_no_state():
    def make(counter):
        cache = {}

        def f(x):
            next(counter)
            cache.setdefault("scale", 2.0)
            return x * cache["scale"]

        return f

    verdict, evaluations, calls = runs_of(make, resolution=1e-5, miss_probability=1e-30)
    assert verdict == "pass"
    assert calls <= 0.5 * evaluations


def test_outputs_that_are_no_arrays_survive_compiling():
    def f(x):
        return {"loss": jnp.sum(x**2), "name": "f", "count": jnp.argmax(x), "none": None}

    def vjp(cotangent, x):
        assert cotangent["name"] == "f" or cotangent["name"] is None
        return 2 * x * cotangent["loss"]

    assert check_gradient(f, POINT).verdict == "pass"
    assert check_gradient(f, POINT, vjp=vjp).verdict == "pass"


def test_empty_and_integer_outputs_beside_a_real_one():
    result = check_gradient(lambda x: (x**2, jnp.zeros((0, 3)), jnp.argmax(x)), POINT)
    assert result.verdict == "pass"


class Chain:
    """A function as the checks name it: the same method each time."""

    def run(self, point):
        y = jnp.log1p(jnp.exp(jnp.sin(point[0]) * 2))
        return jax.nn.softmax(y) * jnp.cumsum(y) + jnp.log(jnp.exp(y) + 1)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_gradients_in_16_bits_round_as_the_users_own(dtype):
    backend, chain = backends.load("jax"), Chain()
    x = jnp.linspace(-1.0, 1.0, 9).astype(dtype)
    _, pull = jax.vjp(lambda x: chain.run([x]), x)
    with backend.guard() as guard:
        point = [backend.convert(x)]
        backend.forward(chain.run, point)
        guard.rewind()
        backend.evaluate(chain.run, point)
        (gradient,) = backend.vjp(chain.run, point, [backend.convert(jnp.ones_like(x))])
    assert np.array_equal(np.asarray(gradient), np.asarray(pull(jnp.ones_like(x))[0]))


def test_compiled_and_left_alone_agree():
    backend, chain = backends.load("jax"), Chain()
    x, w = np.linspace(-1.0, 1.0, 9), np.cos(np.arange(9.0))
    with backend.guard() as guard:
        narrow = [x.astype("float32")]
        backend.forward(chain.run, narrow)
        guard.rewind()
        backend.evaluate(chain.run, narrow)
        backend.vjp(chain.run, narrow, [w.astype("float32")])
        compiled = backend.evaluate(chain.run, [x]).leaves[0].value
        (gradient,) = backend.vjp(chain.run, [x], [w])
        alone = backend.evaluate(lambda x: chain.run(x), [x]).leaves[0].value
        (expected,) = backend.vjp(lambda x: chain.run(x), [x], [w])
    np.testing.assert_allclose(compiled, alone, rtol=1e-13)
    np.testing.assert_allclose(gradient, expected, rtol=1e-13, atol=1e-15)


def test_an_error_in_a_derivative_is_the_users_own():
    @jax.custom_vjp
    def f(x):
        return x

    def backward(residuals, cotangent):
        raise KeyError("mine")

    f.defvjp(lambda x: (x, None), backward)
    with pytest.raises(UsageError, match="raised KeyError"):
        check_gradient(f, POINT)


def test_large_inputs_are_compiled_as_usual():
    x = jnp.linspace(0.1, 1.0, 20_000)
    assert check_gradient(lambda x: jnp.sin(x).sum(), x).verdict == "pass"


def test_without_a_guard_nothing_is_compiled():
    backend = backends.load("jax")
    (leaf,) = backend.evaluate(lambda x: x[0] * 2, [np.ones(2)]).leaves
    assert leaf.dtype == "float64"


def test_a_snapshot_sees_names_items_attributes_and_numbers():
    held, array, box = [1], np.zeros(2), type("Box", (), {})()
    box.n = 1

    def f():
        return held, array, box

    def same_after(change):
        snapshot = Snapshot([f])
        change()
        return snapshot.is_same()

    assert same_after(lambda: None)
    assert not same_after(lambda: held.append(2))
    assert not same_after(lambda: array.__setitem__(0, 1.0))
    assert not same_after(lambda: setattr(box, "n", 2))
    assert not same_after(lambda: setattr(box, "m", 2))


@pytest.mark.parametrize("branches", [False, True])
def test_a_long_check_in_the_functions_own_precision_runs_a_trace_of_it(branches):
    """What Python decides by values cannot be traced, and is run each time."""

    def make(counter):
        def f(x):
            next(counter)
            still = float(jax.lax.stop_gradient(x[0])) if branches else jax.lax.stop_gradient(x[0])
            return jax.lax.scan(lambda s, a: (s * jnp.sin(a) + a,) * 2, still, x)[1]

        return f

    with jax.enable_x64(True):
        verdict, evaluations, calls = runs_of(make, POINT.astype("float64"))
    assert (verdict, evaluations > 40) == ("fail", True)
    assert (calls > 0.8 * evaluations) == branches


def test_a_trace_gives_the_bits_of_the_function():
    from pytest_gradcheck.backends.jax_replayed import replayed

    def f(x):
        return {"a": jnp.cumsum(jax.nn.softmax(x[0])), "n": 3, "b": jax.jit(jnp.linalg.norm)(x[0])}

    def other(x):
        return x[0] * (1.0 if isinstance(x[0], jax.core.Tracer) else 1.0 + 1e-6)

    point, flatten = [np.linspace(0.1, 2.0, 7)], backends.load("jax").flatten
    with jax.enable_x64(True):
        own = flatten(f([jnp.asarray(point[0])]))
        again = replayed(f, point, own).value(point)
        assert [leaf.path for leaf in again.leaves] == [leaf.path for leaf in own.leaves]
        pairs = zip(own.leaves, again.leaves, strict=True)
        assert all(np.array_equal(a.value, b.value) for a, b in pairs)
        assert replayed(other, point, flatten(other([jnp.asarray(point[0])]))) is None
