"""What a clip gives back, read: the gradients in it, and the norm beside them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from pytest_gradcheck.backends.protocol import Flat, Leaf
from pytest_gradcheck.errors import UsageError

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these


def read(
    got: Any, flatten: Callable[[Any], Flat], like: Sequence[Leaf]
) -> tuple[list[Any] | None, float | None]:
    """The gradients in what a clip gave back, in the order of those it got, and the norm.

    Args:
        got: What it gave back: gradients, a number, or several things of which one holds gradients.
        flatten: Takes a nested value apart.
        like: The gradients it got. Those it gives back have their shapes, or lack the first axis
            of each (where examples are summed), and stand at the same paths in any order.

    Returns:
        The gradients, None where there are none (they were clipped in place); the number, None
        where there is none, or more than one of which nobody knows what it is.

    Raises:
        UsageError: It gave back a function, or what has to be awaited.
    """
    got = listed(got)
    parts = [got, *got] if isinstance(got, (list, tuple)) else [got]
    parts = [listed(part) for part in parts]
    for part in parts:
        require_values(part)
    for i, part in enumerate(parts):
        found = None if is_number(part) else _matched(flatten(part).leaves, like)
        if found is not None:
            rest = parts[1:i] + parts[i + 1 :] if i else []
            return found, _one_number(rest)
    return None, _one_number(parts)


def listed(value: Any) -> Any:
    """A list in the place of an iterator, which can be read once."""
    return list(value) if isinstance(value, Iterator) else value


def is_number(value: Any) -> bool:
    """Whether a value is one number, alone or as an array without axes; no flag and no count."""
    if isinstance(value, float):
        return True
    return "float" in str(getattr(value, "dtype", "")) and not np.ndim(value)


def lost(got: Any, flatten: Callable[[Any], Flat], like: Sequence[Leaf]) -> str:
    """How many arrays came back for how many gradients, in words; empty where none are theirs."""
    shapes = [tuple(np.shape(leaf.value)) for leaf in flatten(listed(got)).leaves]
    arrays = [shape for shape in shapes if shape]
    if not arrays or len(shapes) == len(like) or not set(arrays) <= {x.shape for x in like}:
        return ""
    return f"gives back {len(shapes)} arrays where it got {len(like)} gradients"


def require_values(part: Any) -> None:
    """See that a clip gave back values, and no function.

    Raises:
        UsageError: It gave back a function, or what has to be awaited.
    """
    if inspect.iscoroutine(part):
        part.close()
        raise UsageError("the clip is a coroutine function: hand over one that returns gradients")
    is_made = all(inspect.isroutine(getattr(part, name, None)) for name in ("init", "update"))
    if inspect.isroutine(part) or is_made:
        raise UsageError(
            "the clip gave back another function: it makes clips, so hand over what it makes, or "
            "call the argument that it takes max_norm or clip_value"
        )


def _matched(leaves: Sequence[Leaf], like: Sequence[Leaf]) -> list[Any] | None:
    """Values in the order of those they are like; None where they are not."""
    kept = [leaf for leaf in leaves if leaf.value is not None]
    if len(kept) != len(like):
        return None
    places = {leaf.path: leaf for leaf in kept}
    if set(places) == {leaf.path for leaf in like}:
        kept = [places[leaf.path] for leaf in like]
    shapes = [tuple(np.shape(leaf.value)) for leaf in kept]
    whole = [leaf.shape for leaf in like]
    summed = [shape[1:] for shape in whole]
    is_like = shapes == whole or (all(whole) and shapes == summed)
    return [leaf.value for leaf in kept] if is_like else None


def _one_number(parts: Sequence[Any]) -> float | None:
    numbers = [float(part) for part in parts if is_number(part)]
    return numbers[0] if len(numbers) == 1 else None
