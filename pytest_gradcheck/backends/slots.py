"""The state of an optimizer as groups of arrays, each group shaped like the parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from pytest_gradcheck.backends.protocol import Flat

MOST = 4  # arrays that a rule keeps for a parameter
DEPTH = 2  # objects inside of objects

Group = list[np.ndarray]


def arrays(state: Any, flatten: Callable[[Any], Flat], depth: int = DEPTH) -> Iterator[np.ndarray]:
    """Every array of a state, also those that an object of a class of one's own keeps."""
    for leaf in flatten(state).leaves:
        if leaf.dtype:
            yield np.array(leaf.value, dtype=np.float64)
        elif depth and not isinstance(leaf.value, type):
            for value in vars(leaf.value).values() if hasattr(leaf.value, "__dict__") else ():
                yield from arrays(value, flatten, depth - 1)


def is_same(one: Any, other: Any, flatten: Callable[[Any], Flat]) -> bool:
    """Whether two states hold the same, down to their counters."""
    a, b = list(_values(one, flatten, DEPTH)), list(_values(other, flatten, DEPTH))
    return len(a) == len(b) and all(_equal(x, y) for x, y in zip(a, b, strict=True))


def _values(state: Any, flatten: Callable[[Any], Flat], depth: int) -> Iterator[Any]:
    for leaf in flatten(state).leaves:
        value = leaf.value
        if (
            depth
            and hasattr(value, "__dict__")
            and not (callable(value) or hasattr(value, "dtype"))
        ):
            for inner in vars(value).values():
                yield from _values(inner, flatten, depth - 1)
        else:
            yield value


def _equal(one: Any, other: Any) -> bool:
    if one is other:
        return True
    try:
        return bool(np.array_equal(np.asarray(one), np.asarray(other)))
    except Exception:  # what is no array, a random key, says nothing
        return False


def grouped(arrays: Sequence[np.ndarray], shapes: Sequence[tuple[int, ...]]) -> list[Group]:
    """All groups in the order of a state: moment by moment, or parameter by parameter.

    Args:
        arrays: Every array of the state.
        shapes: Those of the parameters, in their order.
    """
    found = []
    start = 0
    while start + len(shapes) <= len(arrays):
        group = list(arrays[start : start + len(shapes)])
        if [x.shape for x in group] == list(shapes):
            found.append(group)
            start += len(shapes)
        else:
            start += 1
    for count in range(2, MOST + 1):
        found += _together(arrays, shapes, count)
    return found


def _together(
    arrays: Sequence[np.ndarray], shapes: Sequence[tuple[int, ...]], count: int
) -> list[Group]:
    """The groups where everything of a parameter stands together: its moments, one by one."""
    wanted = [shape for shape in shapes for _ in range(count)]
    for start in range(len(arrays) - len(wanted) + 1):
        part = arrays[start : start + len(wanted)]
        if len(shapes) > 1 and [x.shape for x in part] == wanted:
            return [list(part[k::count]) for k in range(count)]
    return []
