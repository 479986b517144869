"""States of optax as a check compares and changes them: hyperparameters, keys, counters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pytest_gradcheck.backends import jax_leaves
from pytest_gradcheck.backends.steps import Update


def is_lost(state: Any, start: Sequence[np.ndarray], own: Any) -> bool:
    """Whether a transformation is given the state of the start, where its own went on."""
    leaves = jax_leaves.arrays(state)
    is_first = bool(start) and jax_leaves.equal(leaves, start)
    is_known = own is not None  # nothing, where no update was applied so far
    return is_first and is_known and not jax_leaves.equal(jax_leaves.arrays(own), leaves)


def is_astray(params: Any, before: Sequence[np.ndarray]) -> bool:
    """Whether a transformation is given other parameters than the step."""
    got = jax_leaves.arrays(params)
    return len(got) == len(before) and not jax_leaves.equal(got, before)


def holds(params: Any, like: Sequence[np.ndarray]) -> bool:
    """Whether what a transformation was given as parameters is arrays of these shapes."""
    shapes = [getattr(x, "shape", None) for x in jax.tree.leaves(params)]
    return shapes == [x.shape for x in like]


def holding(params: Any, values: Sequence[np.ndarray]) -> Any:
    """What a transformation was given as parameters (a tree, a state of a module), with others."""
    leaves, tree = jax.tree.flatten(params)
    return tree.unflatten([jax_leaves.placed(*pair) for pair in zip(values, leaves, strict=True)])


def of_examples(grads: Sequence[np.ndarray], like: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Gradients of single examples, along a first axis of their own, as their mean."""
    pairs = zip(grads, like, strict=False)
    are_many = all(g.ndim == x.ndim + 1 and g.shape[1:] == x.shape for g, x in pairs)
    return [np.mean(g, axis=0) for g in grads] if are_many else list(grads)


def filled(
    grads: Sequence[np.ndarray], given: Any, params: Any, like: Sequence[np.ndarray]
) -> list[np.ndarray | None]:
    """Gradients of a part of the parameters, by their paths, with zeros for all others.

    None for those in whose place the tree has None: they are held back from the transformation, as
    by a partition of a module.

    Args:
        grads: The gradients.
        given: The tree that they came in: what is differentiated of a module, say.
        params: All parameters.
        like: Arrays of their shapes.
    """
    names, paths = (_paths(tree) for tree in (given, jax_leaves.trained(params)))
    is_part = len(grads) == len(names) < len(paths) == len(like) and {*names} <= {*paths}
    if not is_part:
        return list(grads)
    known: dict[str, np.ndarray | None] = dict(zip(names, grads, strict=True))
    held_back = {*_paths(given, is_leaf=lambda x: x is None)} - {*names}
    known |= dict.fromkeys(held_back)
    return [known.get(p, np.zeros_like(x)) for p, x in zip(paths, like, strict=True)]


def fits(grads: Sequence[np.ndarray | None], like: Sequence[np.ndarray]) -> bool:
    """Whether gradients have the shapes of the parameters; those that are missing may have any."""
    pairs = zip(grads, like, strict=False)
    return len(grads) == len(like) and all(g is None or g.shape == x.shape for g, x in pairs)


def _paths(tree: Any, is_leaf: Any = None) -> list[str]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)
    return [jax.tree_util.keystr(path) for path, _ in leaves]


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


def is_poisoned(update: Update, state: Any) -> bool:
    """Whether an update was asked for with what is not finite, and has left that in a state."""
    received = (g for g in update.received or () if g is not None)
    if all(bool(np.all(np.isfinite(g))) for g in received):
        return False
    return not jax_leaves.are_finite(state)
