"""Parameters and arrays of a batch that are not finite before NumPy computes anything."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from pytest_gradcheck.backends import given, tree
from pytest_gradcheck.backends.layers import Origin
from pytest_gradcheck.backends.protocol import Leaf

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these


def blamed(
    state: Any, batch: Any, is_finite: Callable[[Any, Any], bool], reaches: str
) -> Origin | None:
    """The value that is to blame; None where none is.

    Args:
        state: The parameters.
        batch: What the loss is given.
        is_finite: Whether loss and gradients of other parameters and another batch are finite.
        reaches: What is not finite without.
    """
    flats = [tree.flatten(value, Leaf, lambda node: None) for value in (batch, state)]
    spots = [
        (which, n)
        for which, flat in enumerate(flats)
        for n, leaf in enumerate(flat.leaves)
        if isinstance(leaf.value, np.ndarray) and leaf.value.dtype.kind == "f"
    ]
    leaves = [flats[which].leaves[n] for which, n in spots]
    pairs = list(zip(spots, leaves, strict=True))
    names = [y.path if which else given.of_batch(y.path) for (which, _), y in pairs]
    found = [
        given.Given("parameter" if which else "input", name, y.value.astype(np.float64))
        for (which, _), name, y in zip(spots, names, leaves, strict=True)
    ]

    def outcome(mended: dict[int, np.ndarray]) -> bool:
        values = [[leaf.value for leaf in flat.leaves] for flat in flats]
        for number, array in mended.items():
            which, n = spots[number]
            values[which][n] = array.astype(values[which][n].dtype)
        other, own = (flat.rebuild(v) for flat, v in zip(flats, values, strict=True))
        return is_finite(own, other)

    return given.blamed(found, outcome, reaches) if any(one.is_bad for one in found) else None
