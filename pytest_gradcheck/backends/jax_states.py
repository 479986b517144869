"""States of optax as a check compares and changes them: hyperparameters, keys, counters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pytest_gradcheck.backends import jax_leaves


def is_lost(state: Any, start: Sequence[np.ndarray], own: Any) -> bool:
    """Whether a transformation is given the state of the start, where its own went on."""
    leaves = jax_leaves.arrays(state)
    is_first = bool(start) and jax_leaves.equal(leaves, start)
    return is_first and not jax_leaves.equal(jax_leaves.arrays(own), leaves)


def is_astray(params: Any, before: Sequence[np.ndarray]) -> bool:
    """Whether a transformation is given other parameters than the step."""
    got = jax_leaves.arrays(params)
    return len(got) == len(before) and not jax_leaves.equal(got, before)


def of_examples(grads: Sequence[np.ndarray], like: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Gradients of single examples, along a first axis of their own, as their mean."""
    pairs = zip(grads, like, strict=False)
    are_many = all(g.ndim == x.ndim + 1 and g.shape[1:] == x.shape for g, x in pairs)
    return [np.mean(g, axis=0) for g in grads] if are_many else list(grads)


def filled(
    grads: Sequence[np.ndarray], given: Any, params: Any, like: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """Gradients of a part of the parameters, by their paths, with zeros for all others.

    Args:
        grads: The gradients.
        given: The tree that they came in: what is differentiated of a module, say.
        params: All parameters.
        like: Arrays of their shapes.
    """
    names, paths = (_paths(tree) for tree in (given, jax_leaves.trained(params)))
    is_part = len(grads) == len(names) < len(paths) == len(like) and {*names} <= {*paths}
    known = dict(zip(names, grads, strict=True)) if is_part else {}
    pairs = zip(paths, like, strict=False)
    return [known.get(p, np.zeros_like(x)) for p, x in pairs] if is_part else list(grads)


def _paths(tree: Any) -> list[str]:
    return [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]


def with_hyperparameters(state: Any, given: Any) -> Any:
    """A state with the hyperparameters of another, which a step may set itself."""

    def chosen(path: Any, own: Any, other: Any) -> Any:
        is_hyper = any(getattr(part, "name", "") == "hyperparams" for part in path)
        return other if is_hyper else own

    try:
        return jax.tree_util.tree_map_with_path(chosen, state, given)
    except ValueError:  # another structure: the step handed over something else
        return state


def stirred(state: Any) -> Any:
    """A state whose random keys are other ones."""

    def other(x: Any) -> Any:
        is_old = getattr(x, "dtype", None) == np.uint32 and np.shape(x) == (2,)
        return jax.random.fold_in(jnp.asarray(x), 1) if jax_leaves.is_key(x) or is_old else x

    return jax.tree.map(other, state)
