"""JAX's random numbers of a loss that is computed in float64: those that it draws in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pytest_gradcheck.backends import jax_draws
from pytest_gradcheck.backends.jax_arrays import enable_x64

KEY = np.array([3, 4], np.uint32)
DRAWN = {
    "uniform": lambda x: jax.random.uniform(KEY, x.shape),
    "of a precision": lambda x: jax.random.uniform(KEY, x.shape, x.dtype, minval=-1.0),
    "by name": lambda x: jax.random.normal(key=KEY, shape=x.shape, dtype=x.dtype),
    "truncated": lambda x: jax.random.truncated_normal(KEY, -2.0, 2.0, x.shape),
    "Gumbel": lambda x: jax.random.gumbel(KEY, x.shape),
    "exponential": lambda x: jax.random.exponential(KEY, x.shape),
    "Laplace": lambda x: jax.random.laplace(KEY, x.shape),
    "logistic": lambda x: jax.random.logistic(KEY, x.shape),
    "Cauchy": lambda x: jax.random.cauchy(KEY, x.shape),
    "whole numbers": lambda x: jax.random.randint(KEY, x.shape, 0, 1000),
    "chances": lambda x: jax.random.bernoulli(KEY, 0.3, x.shape),
    "chances of an array": lambda x: jax.random.bernoulli(KEY, 0.3 * x),
    "signs": lambda x: jax.random.rademacher(KEY, x.shape),
    "signs of a precision": lambda x: jax.random.rademacher(KEY, x.shape, x.dtype),
    "classes": lambda x: jax.random.categorical(KEY, jnp.arange(40) * 0.1 * x, axis=-1),
    "classes by a list": lambda x: jax.random.categorical(KEY, jnp.log(jnp.asarray([0.2, 0.8]))),
    "some of many": lambda x: jax.random.choice(KEY, 40, (9,)),
    "some of an array": lambda x: jax.random.choice(KEY, 0.5 * x * jnp.arange(40), (9,), axis=1),
    "some, none of them twice": lambda x: jax.random.choice(KEY, 40, (9,), replace=False),
    "some by chances": lambda x: jax.random.choice(KEY, 40, (9,), p=x[0] / 40),
    "an order": lambda x: jax.random.permutation(KEY, 20),
    "inside of a program": jax.jit(lambda x: x * jax.random.normal(KEY, x.shape)),
}


@pytest.mark.parametrize("name", DRAWN)
def test_the_same_numbers_are_drawn(name):
    expected = np.asarray(DRAWN[name](jnp.ones((3, 40))))
    with enable_x64(True):
        ones = jnp.ones((3, 40), jnp.float64)
        with jax_draws.narrow():
            seen = np.asarray(DRAWN[name](ones))
    assert expected.dtype.kind != "f" or seen.dtype == np.float64
    np.testing.assert_allclose(seen, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["uniform", "chances", "inside of a program"])
def test_whoever_draws_in_64_bits_draws_what_they_did(name):
    """Also a program that was compiled while other numbers were drawn, or before."""
    with enable_x64(True):
        ones = jnp.ones((3, 40), jnp.float64)
        before = np.asarray(DRAWN[name](ones))
        with jax_draws.narrow():
            DRAWN[name](ones)
        np.testing.assert_array_equal(before, DRAWN[name](ones))


def broken_off():
    own = jax.random.normal
    with jax_draws.narrow():
        assert jax.random.normal is not own
        raise ZeroDivisionError


def test_what_stood_there_stands_there_again():
    own = {name: getattr(jax.random, name) for name in dir(jax.random)}
    with pytest.raises(ZeroDivisionError):
        broken_off()
    assert all(getattr(jax.random, name) is value for name, value in own.items())


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_another_precision_is_drawn_as_it_is(dtype):
    expected = jax.random.normal(KEY, (9,), dtype)
    with enable_x64(True), jax_draws.narrow():
        seen = jax.random.normal(KEY, (9,), dtype)
    assert seen.dtype == dtype
    np.testing.assert_array_equal(seen, expected)
