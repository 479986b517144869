"""Interventions on parameters and batches of NumPy: weights rescaled, inputs standardised."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from pytest_gradcheck.backends import tree
from pytest_gradcheck.backends.layers import Layer
from pytest_gradcheck.backends.protocol import Leaf

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these


def gain(seen: Sequence[Layer]) -> float:
    """Middle one of the factors by which products with weights change the size of the data."""
    pairs = [
        (a.activation, b.activation) for a, b in itertools.pairwise(seen) if b.kind == "linear"
    ]
    gains = sorted(b / a for a, b in pairs if a > 0 and b > 0 and math.isfinite(b / a))
    return gains[len(gains) // 2] if gains else 1.0


def scaled(state: Any, factor: float) -> Any:
    """The parameters with every matrix times a factor."""
    flat = tree.flatten(state, Leaf, lambda node: None)
    return flat.rebuild([_times(leaf.value, factor) for leaf in flat.leaves])


def _times(value: Any, factor: float) -> Any:
    is_matrix = isinstance(value, np.ndarray) and value.ndim > 1 and value.dtype.kind == "f"
    return value * value.dtype.type(factor) if is_matrix else value


def added(value: Any, step: np.ndarray | None) -> Any:
    """A value after a step, in its own precision."""
    return value if step is None else value + step.astype(np.asarray(value).dtype)


def standardised(batch: Any) -> Any:
    """The batch with the features of its first matrix at mean 0 and standard deviation 1."""
    flat = tree.flatten(batch, Leaf, lambda node: None)
    values = [leaf.value for leaf in flat.leaves]
    for number, x in enumerate(values):
        if isinstance(x, np.ndarray) and x.ndim > 1 and x.dtype.kind == "f":
            unit = x / (np.abs(x).max() or 1.0)  # whose squares are numbers yet
            spread = unit.std(axis=0, keepdims=True)
            centred = unit - unit.mean(axis=0, keepdims=True)
            values[number] = (centred / np.where(spread > 0, spread, 1)).astype(x.dtype)
            break
    return flat.rebuild(values)
