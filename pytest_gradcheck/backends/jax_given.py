"""Parameters of JAX and arrays of a batch that are not finite before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pytest_gradcheck.backends import given
from pytest_gradcheck.backends.jax_loss import Loss, value_of
from pytest_gradcheck.backends.jax_modules import flatten
from pytest_gradcheck.backends.layers import Origin
from pytest_gradcheck.backends.protocol import Flat

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these


def blamed(
    loss: Loss, flat: Flat, values: Sequence[Any], batch: Any, names: Sequence[str]
) -> Origin | None:
    """The value that is to blame; None where none is."""
    opened = flatten(batch)
    spots = [n for n, leaf in enumerate(opened.leaves) if leaf.dtype and _is_real(leaf.value)]
    found = [
        given.Given("input", given.of_batch(opened.leaves[n].path), _wide(opened.leaves[n].value))
        for n in spots
    ]
    found += [
        given.Given("parameter", name, _wide(v))
        for name, v in zip(names, values, strict=True)
        if _is_real(v)
    ]
    if len(found) < len(spots) + len(values) or not any(one.is_bad for one in found):
        return None

    def outcome(mended: dict[int, np.ndarray]) -> bool:
        every, own = [leaf.value for leaf in opened.leaves], list(values)
        for n, array in mended.items():
            if n < len(spots):
                every[spots[n]] = jnp.asarray(array, every[spots[n]].dtype)
            else:
                own[n - len(spots)] = jnp.asarray(array, own[n - len(spots)].dtype)
        both = jax.value_and_grad(lambda v: value_of(loss, flat, v, opened.rebuild(every)))
        return all(np.all(np.isfinite(_wide(x))) for x in jax.tree.leaves(both(own)))

    is_lost = not np.all(np.isfinite(_wide(value_of(loss, flat, values, batch))))
    return given.blamed(found, outcome, "loss" if is_lost else "gradient")


def _is_real(x: Any) -> bool:
    return bool(jnp.issubdtype(x.dtype, jnp.floating))


def _wide(x: Any) -> np.ndarray:
    return np.asarray(x).astype(np.float64)
