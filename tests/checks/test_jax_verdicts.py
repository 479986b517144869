"""Known answers in JAX."""

import numpy as np
import pytest

from pytest_gradcheck import check_gradient

jax = pytest.importorskip("jax")
jnp = jax.numpy


def test_complex_inputs_and_outputs():
    w = jnp.array([1 + 2j, 0.5 - 1j])
    assert check_gradient(lambda z: z**2 * jnp.conj(z), w).verdict == "pass"


@pytest.mark.parametrize("factor", [1.0, 1.05])
def test_jax_custom_vjp(factor):
    @jax.custom_vjp
    def f(x):
        return jnp.sin(x)

    f.defvjp(lambda x: (jnp.sin(x), x), lambda x, g: (factor * jnp.cos(x) * g,))
    for dtype in ("float32", "bfloat16"):
        verdict = check_gradient(f, jnp.linspace(0, 1, 5, dtype=dtype)).verdict
        assert verdict == ("pass" if factor == 1.0 else "fail")
    assert check_gradient(jax.jit(f), jnp.linspace(0, 1, 5)).verdict == (
        "pass" if factor == 1.0 else "fail"
    )


def test_jax_numpy_inputs_go_with_jax():
    result = check_gradient(lambda x, y: jnp.sum(x * y), jnp.ones(3), np.ones(3, "float32"))
    assert result.verdict == "pass"
    assert result.context.backend == "jax"


@pytest.mark.parametrize("seed", range(3))
def test_a_solver_that_stops_at_float32_is_right_in_float32(seed):
    from jax.experimental.ode import odeint

    def f(x):
        return odeint(lambda y, t: -y * y, x, jnp.linspace(0.0, 1.0, 3)).sum()

    result = check_gradient(f, jnp.array([0.3, 0.5, 0.7]), seed=seed)
    assert (result.verdict, result.headline) == ("pass", result.headline)
