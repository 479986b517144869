"""Weights of a small recurrence in JAX."""

import jax


def drawn(gain):
    """From a seed: recurrent weights of a given gain, those of inputs, and those of the answer."""

    def make(seed):
        keys = jax.random.split(jax.random.key(seed), 3)
        return {
            "h": gain * jax.random.orthogonal(keys[0], 32),
            "x": 0.35 * jax.random.normal(keys[1], (8, 32)),
            "o": 0.2 * jax.random.normal(keys[2], (32, 5)),
        }

    return make
