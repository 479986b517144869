"""JAX: does the gradient reach every layer? Any function of a pytree, a Flax or an Equinox module.

``make(seed)`` gives fresh parameters; nothing in the function itself has to be edited.
"""

import jax
import jax.numpy as jnp
import pytest

KEY = jax.random.key(0)
X = jax.random.normal(KEY, (64, 16))
Y = jax.random.randint(KEY, (64,), 0, 10)


def cross_entropy(scores, labels):
    return -jnp.mean(jax.nn.log_softmax(scores)[jnp.arange(len(labels)), labels])


# --- plain functions, compiled or not ------------------------------------------------------------


def make(seed):
    keys = jax.random.split(jax.random.key(seed), 3)
    return {
        "in": jax.random.normal(keys[0], (16, 64)) * (2 / 16) ** 0.5,
        "body": jax.random.normal(keys[1], (6, 64, 64)) * (2 / 64) ** 0.5,  # six stacked layers
        "out": jax.random.normal(keys[2], (64, 10)) * (1 / 64) ** 0.5,
    }


@jax.jit
def loss(params, batch):
    x, y = batch
    h = jax.nn.relu(x @ params["in"])
    h, _ = jax.lax.scan(lambda h, w: (jax.nn.relu(h @ w), None), h, params["body"])
    return cross_entropy(h @ params["out"], y)


def test_layers_in_a_scan(gradflow):
    result = gradflow(None, loss, (X, Y), make=make)
    names = [row[0] for row in result.table("layers").rows]
    assert "body[5]" in names


def test_checkpointed(gradflow):
    gradflow(None, jax.checkpoint(loss), (X, Y), make=make)


# --- modules ---------------------------------------------------------------------------------


def test_equinox(gradflow):
    eqx = pytest.importorskip("equinox")

    def build(seed):
        return eqx.nn.MLP(16, 10, 64, 3, activation=jax.nn.gelu, key=jax.random.key(seed))

    gradflow(None, lambda m, b: cross_entropy(jax.vmap(m)(b[0]), b[1]), (X, Y), make=build)


def test_flax(gradflow):
    nnx = pytest.importorskip("flax.nnx")

    class Net(nnx.Module):
        def __init__(self, seed):
            rngs = nnx.Rngs(seed)
            self.one, self.two = nnx.Linear(16, 64, rngs=rngs), nnx.Linear(64, 10, rngs=rngs)

        def __call__(self, x):
            return self.two(jnp.tanh(self.one(x)))

    gradflow(None, lambda m, b: cross_entropy(m(b[0]), b[1]), (X, Y), make=Net)
