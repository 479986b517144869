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


def decayed(rate):
    """One adaptive step after the other; it can be traced in the user's own 32-bit mode alone."""

    def longer(state):
        y, t, h = state
        h = jnp.minimum(h, 1 - t)
        error = jnp.abs(rate * h) ** 2 * y + 1e-12
        is_near = error < 1e-2
        y, t = jnp.where(is_near, y * (1 - rate * h), y), jnp.where(is_near, t + h, t)
        return y, t, h * jnp.clip(0.9 * jnp.sqrt(1e-2 / error), 0.2, 5.0)

    return jax.lax.while_loop(lambda state: state[1] < 1.0, longer, (1.0, 0.0, 0.1))[0]


@pytest.mark.parametrize("form", ["modes", "grad", "vjp", "value_and_grad"])
def test_what_a_user_writes_runs_in_the_users_own_mode(form):
    slope = jax.jacfwd(decayed)
    given = {
        "modes": {"modes": ("forward",)},
        "grad": {"grad": slope},
        "vjp": {"vjp": lambda g, rate: g * slope(rate)},
        "value_and_grad": {"value_and_grad": True},
    }[form]
    f = (lambda rate: (decayed(rate), slope(rate))) if form == "value_and_grad" else decayed
    assert check_gradient(f, jnp.float32(2.0), **given).verdict == "pass"


@pytest.mark.parametrize("is_wide", [False, True])
def test_a_hand_written_derivative_makes_arrays_of_the_users_precision(is_wide):
    made = set()

    def slope(x):
        made.add(str(jnp.zeros(()).dtype) + " for " + str(x.dtype))
        return jnp.cos(x)

    with jax.enable_x64(is_wide):
        x = jnp.linspace(0, 1, 5, dtype="float32")
        assert check_gradient(lambda x: jnp.sin(x).sum(), x, grad=slope).verdict == "pass"
    assert made == {f"float{32 << is_wide} for float32", "float64 for float64"}
