"""Batches of functional steps: nested values of arrays, whose first axis counts samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pytest_gradcheck.backends import tree
from pytest_gradcheck.backends.protocol import Flat, Leaf

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these


def joined(batches: Sequence[Any], concatenated: Callable[[Sequence[Any]], Any]) -> Any:
    """Batches put together along their first axis; None where their form does not allow it."""
    flats = [_opened(b) for b in batches]
    if len({len(f.leaves) for f in flats}) > 1:
        return None
    columns = list(zip(*([leaf.value for leaf in f.leaves] for f in flats), strict=True))
    if not all(np.ndim(v) for column in columns for v in column) or not columns:
        return None
    try:
        return flats[0].rebuild([concatenated(column) for column in columns])
    except (TypeError, ValueError):  # other axes differ
        return None


def differ(batches: Sequence[Any]) -> bool:
    """Whether batches differ in the shapes of their arrays, or have no arrays."""
    forms = [[np.shape(leaf.value) for leaf in _opened(batch).leaves] for batch in batches]
    return any(form != forms[0] or not any(form) for form in forms)


def size(batch: Any) -> int:
    """Length of the first array; 1 where there is none."""
    for leaf in _opened(batch).leaves:
        if np.ndim(leaf.value):
            return len(leaf.value)
    return 1


def is_same(one: Any, other: Any) -> bool:
    """Whether two batches hold the same numbers, in what both of them have."""
    return all(_equal(a.value, b.value) for a, b in tree.shared(_opened(one), _opened(other)))


def _opened(batch: Any) -> Flat:
    return tree.flatten(batch, Leaf, lambda node: None)


def _equal(a: Any, b: Any) -> bool:
    if np.ndim(a) or np.ndim(b):
        one, other = np.asarray(a), np.asarray(b)
        is_float = one.dtype.kind in "fc"
        return bool(np.array_equal(one, other, equal_nan=is_float))
    return True
