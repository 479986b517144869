"""JAX: custom derivative rules, and models of Flax (``nnx`` and ``linen``) and Equinox.

Arrays are float32, as JAX makes them; 64-bit mode need not be switched on. Where a function can
be promoted, its differences are taken in float64 all the same. A check evaluates a function some
dozens of times, so compiling it first (``jit``) pays, as it does in training; small models are
enough, since a wrong formula is wrong in every size.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from flax import linen, nnx
from jax import lax


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


# --- custom derivative rules ------------------------------------------------------------------


@jax.custom_vjp
def log1pexp(x):
    """log(1 + exp(x)), which overflows when computed as written."""
    return jnp.maximum(x, 0) + jnp.log1p(jnp.exp(-jnp.abs(x)))


def log1pexp_forward(x):
    return log1pexp(x), x


def log1pexp_backward(x, cotangent):
    return (cotangent * jax.nn.sigmoid(x),)


log1pexp.defvjp(log1pexp_forward, log1pexp_backward)


@pytest.mark.parametrize("size", [1e-3, 1.0, 200.0])
def test_log1pexp(gradcheck, size):
    gradcheck(log1pexp, size * normal(0, 12))
    gradcheck(jax.jit(log1pexp), size * normal(0, 12))


@jax.custom_vjp
def equilibrium(W, x):
    """The z with z = tanh(W z + x), by iteration: a layer of infinite depth."""
    return lax.fori_loop(0, 80, lambda _, z: jnp.tanh(W @ z + x), jnp.zeros_like(x))


def equilibrium_forward(W, x):
    z = equilibrium(W, x)
    return z, (W, z)


def equilibrium_backward(residuals, cotangent):
    # Implicit function theorem: no step of the iteration is differentiated.
    W, z = residuals
    slope = 1 - z**2
    adjoint = jnp.linalg.solve(jnp.eye(len(z)) - slope[:, None] * W, jnp.diag(slope))
    dx = adjoint.T @ cotangent
    return jnp.outer(dx, z), dx


equilibrium.defvjp(equilibrium_forward, equilibrium_backward)


def test_equilibrium(gradcheck):
    gradcheck(jax.jit(equilibrium), 0.2 * normal(1, 4, 4), normal(2, 4))


def test_rule_inside_a_transformation(gradcheck):
    batched = jax.jit(jax.vmap(equilibrium, in_axes=(None, 0)))
    gradcheck(batched, 0.2 * normal(1, 4, 4), normal(2, 3, 4))


# --- models -----------------------------------------------------------------------------------


class Block(nnx.Module):
    """A residual block: its parameters are found, as those of any ``nnx`` module."""

    def __init__(self, width, rngs):
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.dense = nnx.Linear(width, width, rngs=rngs)
        self.drop = nnx.Dropout(0.2, rngs=rngs)

    def __call__(self, x):
        return x + self.drop(jax.nn.gelu(self.dense(self.norm(x))))


def test_flax_nnx(gradcheck):
    model = Block(4, nnx.Rngs(0))
    model.eval()  # no dropout
    gradcheck(model, normal(3, 3, 4))


def test_flax_nnx_with_dropout(gradcheck):
    # From the same key JAX draws another mask in 64-bit mode, so this one is judged in float32,
    # where differences are coarser; the result says how small an error it could have seen.
    result = gradcheck(nnx.jit(Block.__call__), Block(4, nnx.Rngs(0)), normal(3, 3, 4))
    assert "not promoted" in result.context.precision


class Classifier(linen.Module):
    """A linen module computes with the variables that it is given."""

    @linen.compact
    def __call__(self, x):
        return linen.Dense(4)(linen.relu(linen.Dense(4)(x)))


def test_flax_linen(gradcheck):
    model, x = Classifier(), normal(4, 3, 4)
    gradcheck(jax.jit(model.apply), model.init(jax.random.key(0), x), x)


def test_loss_of_a_flax_model(gradcheck):
    @jax.jit
    def loss(variables, x, labels):
        log_p = jax.nn.log_softmax(model.apply(variables, x))
        return -log_p[jnp.arange(len(labels)), labels].mean()

    model, x, labels = Classifier(), normal(4, 3, 4), jnp.array([0, 2, 1])
    # Labels are integers and pass through; wrt= leaves the floating-point data out as well.
    gradcheck(loss, model.init(jax.random.key(0), x), x, labels, wrt="variables")


def test_equinox(gradcheck):
    model = eqx.nn.MLP(4, 4, width_size=4, depth=2, activation=jnp.tanh, key=jax.random.key(0))
    gradcheck(eqx.filter_jit(model), normal(5, 4))


def test_equinox_recurrent(gradcheck):
    @eqx.filter_jit
    def last_state(cell, sequence):
        state, _ = lax.scan(lambda h, x: (cell(x, h), None), jnp.zeros(4), sequence)
        return state

    cell = eqx.nn.GRUCell(4, 4, key=jax.random.key(0))
    gradcheck(last_state, cell, normal(6, 3, 4))
