"""The same mistakes in a custom vjp of JAX."""

import numpy as np
import pytest

from pytest_gradcheck import check_gradient

jax = pytest.importorskip("jax")
jnp = jax.numpy

RNG = np.random.default_rng(4)
X, Y = RNG.normal(size=(4, 4)), RNG.normal(size=(4, 4))


def spoilt(change):
    """A product of matrices with a changed backward."""

    @jax.custom_vjp
    def mixed(x, y):
        return jnp.tanh(x) @ jnp.sin(y)

    def backward(kept, w):
        x, y = kept

        def right(w):
            return (w @ jnp.sin(y).T) / jnp.cosh(x) ** 2, (jnp.tanh(x).T @ w) * jnp.cos(y)

        return change(right, w, x)

    mixed.defvjp(lambda x, y: (mixed(x, y), (x, y)), backward)
    return mixed


def on_first(change):
    """Change the gradient of the first input only."""
    return lambda right, w, x: (change(right(w)[0], x), right(w)[1])


MISTAKES = {
    "sign": on_first(lambda g, x: -g),
    "factor": on_first(lambda g, x: 2 * g),
    "element": on_first(lambda g, x: g.at[2, 1].multiply(1.5)),
    "transposed": on_first(lambda g, x: g.T),
    "offset": on_first(lambda g, x: g + 0.5),
    "masked": on_first(lambda g, x: g * (x > 0)),
    "cotangent": lambda right, w, x: right(jnp.ones_like(w)),
    "swapped": lambda right, w, x: right(w)[::-1],
}


@pytest.mark.parametrize("pattern", MISTAKES)
def test_a_mistake_in_a_backward_is_named(pattern):
    arguments = jnp.asarray(X), jnp.asarray(Y)
    result = check_gradient(spoilt(MISTAKES[pattern]), *arguments, label="f")
    assert result.verdict == "fail"
    wrong = [f for f in result.findings if f.code == f"gradient-{pattern}"]
    both = pattern in ("cotangent", "swapped")
    assert [f.where for f in wrong] == (
        ["x", "y"] if both else ["x[2, 1]"] if pattern == "element" else ["x"]
    )


@pytest.mark.parametrize(
    ("backward", "code"),
    [
        (lambda z, w: (w * 2 * z,), None),
        (lambda z, w: (w * 2 * jnp.conj(z),), "gradient-conjugate"),
        (lambda z, w: (w * 2 * z * jnp.array([1, 1, 1.5]),), "gradient-element"),
    ],
    ids=["right", "conjugate", "element"],
)
def test_complex_gradients_in_the_convention_of_jax(backward, code):
    @jax.custom_vjp
    def square(z):
        return z**2

    square.defvjp(lambda z: (z**2, z), backward)
    result = check_gradient(square, jnp.array([1 + 2j, 0.5 - 1j, -1 + 0.3j]))
    assert [f.code for f in result.findings if f.severity == "fail"] == ([code] if code else [])
