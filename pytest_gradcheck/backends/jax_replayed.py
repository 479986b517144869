"""A function traced once and run primitive by primitive, as the user's own calls run it.

Each call of a function that is not jitted makes its loops anew, and JAX compiles each of them for
half a second. The trace has one loop for all runs. Its primitives are those of the call, and so are
the last bits, which is asked for before it takes the place of the function.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from pytest_gradcheck.backends.jax_arrays import handed, hosted
from pytest_gradcheck.backends.jax_modules import flatten
from pytest_gradcheck.backends.protocol import Array, Flat, Function

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

PATIENCE = 16  # runs of a function before its trace pays; most functions that are right take fewer


class Replayed:
    """A function that was traced.

    Args:
        closed: Its primitives.
        flat: Its output at some point: what no trace holds is the same everywhere.
    """

    def __init__(self, closed: Any, flat: Flat) -> None:
        self._closed, self._flat = closed, flat

    def value(self, point: Sequence[Array]) -> Flat:
        """The output taken apart."""
        given = [handed(x) for x in point]
        values = iter(jax.core.eval_jaxpr(self._closed.jaxpr, self._closed.consts, *given))
        leaves = (
            replace(leaf, value=next(values)) if isinstance(leaf.value, jax.Array) else leaf
            for leaf in self._flat.leaves
        )
        return Flat(tuple(leaves), self._flat.rebuild)


def replayed(f: Function, point: Sequence[Array], own: Flat) -> Replayed | None:
    """The trace of a function; None where it cannot be traced or gives other bits than its own."""

    def arrays(x: list[Array]) -> list[Array]:
        return [leaf.value for leaf in flatten(f(x)).leaves if isinstance(leaf.value, jax.Array)]

    try:
        trace = Replayed(jax.make_jaxpr(arrays)([handed(x) for x in point]), own)
        again = trace.value(point)
    except Exception:  # the user's own code: whatever it raises, it raises again when left alone
        return None
    pairs = zip(own.leaves, again.leaves, strict=True)
    return trace if all(_are_equal(a.value, b.value) for a, b in pairs) else None


def _are_equal(a: Any, b: Any) -> bool:
    return a is b or np.asarray(hosted(a)).tobytes() == np.asarray(hosted(b)).tobytes()
