"""Leaves of parameters, states and batches of JAX: copied, placed, widened and compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def copied(x: Any) -> Any:
    """A copy in a buffer of its own."""
    if not isinstance(x, jax.Array) or is_key(x):
        return x.copy() if isinstance(x, (jax.Array, np.ndarray)) else x
    return jax.device_put(np.array(x), x.sharding)  # nothing to compile


def placed(x: np.ndarray, like: Any) -> Any:
    """An array in the precision and at the place of another."""
    # Where the other one is: a program is compiled anew for arrays that may lie anywhere.
    return jax.device_put(x.astype(like.dtype), getattr(like, "sharding", None))


def asarray(x: Any) -> Any:
    """An array of JAX, where it is an array."""
    return jnp.asarray(x) if isinstance(x, (jax.Array, np.ndarray)) else x


def loose(x: Any) -> Any:
    """An array that goes where the others of a program are; one out of a callback is on the CPU."""
    if is_key(x):
        data = jnp.asarray(np.asarray(jax.random.key_data(x)))
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
    return jnp.asarray(np.asarray(x)) if isinstance(x, (jax.Array, np.ndarray)) else x


def wide(x: Any) -> np.ndarray:
    """A copy in float64."""
    return np.array(np.asarray(x), dtype=np.float64)


def arrays(tree: Any) -> list[np.ndarray]:
    """All leaves of a nested value in float64, random keys by what they hold."""
    leaves = jax.tree.leaves(tree)
    return [wide(jax.random.key_data(x) if is_key(x) else x) for x in leaves]


def is_key(x: Any) -> bool:
    """Whether a leaf is an array of random keys."""
    dtype = getattr(x, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)


def is_near(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two arrays are the same but for rounding in float32."""
    return bool(np.linalg.norm(a - b) <= 1e-4 * np.linalg.norm(b) + 1e-30)


def equal(one: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> bool:
    """Whether all arrays are the same."""
    pairs = zip(one, other, strict=False)
    return len(one) == len(other) and all(np.array_equal(a, b) for a, b in pairs)


def are_finite(tree: Any) -> bool:
    """Whether all numbers in a value are finite."""
    return all(bool(np.all(np.isfinite(x))) for x in arrays(tree))


def trained(params: Any) -> Any:
    """Parameters as a transformation gets them: None in the place of functions and integers."""
    return jax.tree.map(lambda x: x if is_trained(x) else None, params)


def is_trained(x: Any) -> bool:
    """Whether a leaf is a real or complex number or an array of them."""
    return bool(hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.inexact)) or isinstance(
        x, float
    )


def differentiated(loss: Callable[[Any], Any], params: Any) -> tuple[Any, Any]:
    """A loss and its gradient, in a tree like that of the parameters, by what is trained of it."""
    leaves, tree = jax.tree.flatten(params)
    spots = [i for i, x in enumerate(leaves) if is_trained(x)]

    def filled(values: Sequence[Any]) -> Any:
        given = dict(zip(spots, values, strict=True))
        return tree.unflatten([given.get(i, x) for i, x in enumerate(leaves)])

    # A module holds functions and integers beside its arrays.
    value, grads = jax.value_and_grad(lambda values: loss(filled(values)))(
        [leaves[i] for i in spots]
    )
    return value, filled(grads)
