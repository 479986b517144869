"""Parameters of JAX and arrays of a batch that are not finite before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pytest_gradcheck.backends import given
from pytest_gradcheck.backends.jax_loss import Loss, value_of
from pytest_gradcheck.backends.jax_modules import buffers, flatten
from pytest_gradcheck.backends.layers import Origin
from pytest_gradcheck.backends.protocol import Flat, Leaf

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these


def blamed(
    loss: Loss, model: Any, values: Sequence[Any], batch: Any, names: Sequence[str]
) -> Origin | None:
    """The value that is to blame; None where none is.

    Args:
        loss: The user's loss.
        model: The model, for what it holds beside parameters.
        values: Its parameters.
        batch: What the loss is given.
        names: Paths of the parameters.
    """
    opened, held = flatten(batch), buffers(model)
    spots = [n for n, leaf in enumerate(opened.leaves) if leaf.dtype and _is_real(leaf.value)]
    own = [n for n, v in enumerate(values) if _is_real(v)]
    others = [n for n, leaf in enumerate(held.leaves) if leaf.dtype and _is_real(leaf.value)]
    found = [
        *(_of("input", given.of_batch(opened.leaves[n].path), opened.leaves[n]) for n in spots),
        *(given.Given("parameter", names[n], _wide(values[n])) for n in own),
        *(_of("buffer", held.leaves[n].path, held.leaves[n]) for n in others),
    ]
    if not any(one.is_bad for one in found):
        return None

    def outcome(mended: dict[int, np.ndarray]) -> bool:
        lists = [_values(opened), list(values), _values(held)]
        places = [(which, n) for which, some in enumerate((spots, own, others)) for n in some]
        for number, array in mended.items():
            which, n = places[number]
            lists[which][n] = jnp.asarray(array, lists[which][n].dtype)
        flat, other = flatten(held.rebuild(lists[2])), opened.rebuild(lists[0])
        both = jax.value_and_grad(lambda v: value_of(loss, flat, v, other))
        return all(np.all(np.isfinite(_wide(x))) for x in jax.tree.leaves(both(lists[1])))

    is_lost = not np.all(np.isfinite(_wide(value_of(loss, flatten(model), values, batch))))
    return given.blamed(found, outcome, "loss" if is_lost else "gradient")


def _of(what: str, name: str, leaf: Leaf) -> given.Given:
    return given.Given(what, name, _wide(leaf.value))


def _values(flat: Flat) -> list[Any]:
    return [leaf.value for leaf in flat.leaves]


def _is_real(x: Any) -> bool:
    return bool(jnp.issubdtype(x.dtype, jnp.floating))


def _wide(x: Any) -> np.ndarray:
    return np.asarray(x).astype(np.float64)
