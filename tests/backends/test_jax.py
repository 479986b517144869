"""JAX: what the user's function is given, where arrays live, and in which mode it runs."""

import subprocess
import sys
import textwrap

import numpy as np
import pytest

from pytest_gradcheck import backends, check_gradient

jax = pytest.importorskip("jax")
jnp = jax.numpy
BACKEND = backends.load("jax")


def require_jax(*values):
    assert all(isinstance(value, jax.Array) for value in values)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "complex64"])
@pytest.mark.parametrize("shape", [(), (3,)])
def test_the_function_gets_jax_arrays(dtype, shape):
    def f(x, scale, index):
        require_jax(x, scale, index)
        return x.at[...].multiply(scale * (index + 1))

    x, scale = jnp.full(shape, 0.5, dtype), jnp.asarray(2.0, dtype)
    assert check_gradient(f, x, scale, jnp.asarray(1), wrt=0).verdict == "pass"


def test_numpy_inputs_become_jax_arrays_beside_jax_ones():
    def f(x, y):
        require_jax(x, y)
        return x * y.at[0].set(1.0)

    assert check_gradient(f, jnp.ones(3), np.ones(3, "float32")).verdict == "pass"


def test_hand_written_derivatives_get_jax_arrays_and_the_structure_of_the_output():
    def f(x):
        return {"double": 2 * x, "name": "f", "count": 3}

    def vjp(cotangent, x):
        require_jax(cotangent["double"], x)
        return cotangent["double"].at[...].multiply(2)

    assert check_gradient(f, jnp.ones(3), vjp=vjp).verdict == "pass"


def test_every_form_of_a_hand_written_derivative():
    x = jnp.linspace(0.5, 1.0, 3)
    for wrong, verdict in ((1.0, "pass"), (1.1, "fail")):
        given = (
            {"grad": lambda x, w=wrong: w * jnp.cos(x)},
            {"vjp": lambda g, x, w=wrong: w * g * jnp.cos(x)},
            {"jac": lambda x, w=wrong: w * jnp.cos(x)},
        )
        for form in given:
            assert check_gradient(lambda x: jnp.sin(x).sum(), x, **form).verdict == verdict

        def both(x, w=wrong):
            return jnp.sin(x).sum(), w * jnp.cos(x)

        assert check_gradient(both, x, value_and_grad=True).verdict == verdict


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "complex64"])
def test_arrays_of_the_cpu_are_kept_by_numpy(dtype):
    with BACKEND.guard():
        x = BACKEND.convert(jnp.ones(3), dtype)
        (y,) = BACKEND.evaluate(lambda x: x[0] * 2, [x]).leaves
        (g,) = BACKEND.vjp(lambda x: x[0] * 2, [x], [y.value])
        (t,) = BACKEND.jvp(lambda x: x[0] * 2, [x], [x])
        for value in (x, y.value, g, t, BACKEND.normal(x, 1)):
            assert isinstance(value, np.ndarray)
            assert str(value.dtype) == dtype
        assert (y.dtype, y.device) == (dtype, "cpu")


def test_bfloat16_stays_with_jax_since_numpy_would_widen_it():
    with BACKEND.guard():
        x = BACKEND.convert(jnp.ones(3), "bfloat16")
        require_jax(x, BACKEND.normal(x, 1), BACKEND.vjp(lambda x: x[0] * 2, [x], [x])[0])
        assert isinstance(BACKEND.convert(x, "float64"), np.ndarray)


def test_arrays_stay_where_a_default_device_is_named():
    with jax.default_device(jax.devices("cpu")[0]), BACKEND.guard():
        x = BACKEND.convert(np.ones(3, "float32"))
        require_jax(x, BACKEND.evaluate(lambda x: x[0] * 2, [x]).leaves[0].value)
    with jax.default_device(jax.devices("cpu")[0]):
        assert check_gradient(jnp.sin, jnp.ones(3)).verdict == "pass"


def test_arrays_on_several_devices_stay_there():
    script = """
        import jax, jax.numpy as jnp, numpy as np
        from jax.sharding import Mesh, NamedSharding, PartitionSpec
        from pytest_gradcheck import check_gradient
        sharding = NamedSharding(Mesh(np.array(jax.devices()), ("i",)), PartitionSpec("i"))

        def f(x):
            assert isinstance(x, jax.core.Tracer) or len(x.devices()) == 2
            return jnp.sin(x)

        result = check_gradient(f, jax.device_put(jnp.linspace(0, 1, 4), sharding))
        assert result.verdict == "pass", result
    """
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", textwrap.dedent(script)]
    subprocess.run(command, check=True, env={"PATH": "", **flags})


def test_a_function_may_donate_what_it_is_given():
    x = jnp.linspace(0.0, 1.0, 3)
    donating = jax.jit(lambda x, y: x * y, donate_argnums=0)
    assert check_gradient(donating, x, jnp.ones(3)).verdict == "pass"
    assert float(x.sum()) == 1.5


@pytest.mark.parametrize("mode", [False, True])
def test_each_precision_runs_in_its_mode_and_the_mode_comes_back(mode):
    def f(x):
        assert jax.config.jax_enable_x64 == (mode or x.dtype == jnp.float64)
        return x * jnp.asarray(np.full(3, 2.0)).astype(x.dtype)

    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", mode)
    try:
        assert check_gradient(f, jnp.ones(3, "float32")).verdict == "pass"
        assert jax.config.jax_enable_x64 == mode
    finally:
        jax.config.update("jax_enable_x64", before)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_inner_products_pair_as_jax_does(dtype):
    a, b = np.array([1 + 2j, 3j]), np.array([2 - 1j, 1.0])
    assert BACKEND.inner(a, b) == pytest.approx((a * b).sum().real)
    x = jnp.arange(3.0, dtype="bfloat16")
    assert BACKEND.inner(x, np.ones(3, dtype)) == 3.0


def test_labels_and_random_keys_pass_through_as_they_are():
    def f(x, label, key):
        require_jax(label, key)
        return x[label] * jax.random.normal(key, (), x.dtype)

    result = check_gradient(f, jnp.ones(3), jnp.array(1), jax.random.key(0))
    assert result.verdict == "pass"
