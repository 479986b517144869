"""Nested values of plain Python taken apart into leaves with paths, and put together again.

Dicts, lists, tuples, named tuples and dataclasses are walked; what a framework nests in its own
way (modules, pytrees) it opens itself through ``expand``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any

from pytest_gradcheck.backends.protocol import Flat, Leaf

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

Rebuild = Callable[[Sequence[Any]], Any]
Expand = Callable[[Any], "tuple[list[tuple[str, Any]], Rebuild] | None"]
Describe = Callable[[str, Any], Leaf]


def join(*parts: str) -> str:
    """Dotted path of the parts that are not empty."""
    return ".".join(part for part in parts if part)


def children(node: Any) -> tuple[list[tuple[str, Any]], Rebuild] | None:
    """Named children of a plain container and what puts them together; None for a leaf."""
    if isinstance(node, Mapping):
        keys = list(node.keys())  # iterating goes over the rows of some (a TensorDict)
        return [(str(k), node[k]) for k in keys], lambda values: _mapping(node, keys, values)
    if isinstance(node, tuple) and hasattr(node, "_fields"):
        return list(zip(node._fields, node, strict=True)), lambda values: type(node)(*values)
    if isinstance(node, (list, tuple)):
        return [(str(i), item) for i, item in enumerate(node)], type(node)
    if dataclasses.is_dataclass(node) and not isinstance(node, type):
        fields = [f.name for f in dataclasses.fields(node)]
        return [(name, getattr(node, name)) for name in fields], lambda values: _dataclass(
            node, fields, values
        )
    return None


def _mapping(node: Mapping[Any, Any], keys: list[Any], values: Sequence[Any]) -> Any:
    filled = dict(zip(keys, values, strict=True))
    if type(node) is dict:
        return filled
    if isinstance(node, MutableMapping) and hasattr(node, "copy"):
        fresh = node.copy()  # with what else it holds: a default, the size of a batch
        if type(fresh) is type(node) and fresh is not node:
            fresh.update(filled)
            return fresh
    try:
        return type(node)(filled)  # type: ignore[call-arg]  # mappings by convention take a dict
    except TypeError:
        return filled


def _dataclass(node: Any, fields: list[str], values: Sequence[Any]) -> Any:
    # Not dataclasses.replace: it refuses fields with init=False and runs __post_init__ again.
    fresh = object.__new__(type(node))
    if hasattr(node, "__dict__"):
        fresh.__dict__.update(node.__dict__)
    for name, value in zip(fields, values, strict=True):
        object.__setattr__(fresh, name, value)
    return fresh


def flatten(tree: Any, describe: Describe, expand: Expand) -> Flat:
    """Take a nested value apart.

    Args:
        tree: The value.
        describe: Makes the leaf of a path and a value.
        expand: Opens a framework's own container one level, or returns None; asked first.
    """
    leaves: list[Leaf] = []

    def walk(node: Any, path: str) -> Rebuild:
        opened = expand(node) or children(node)
        if opened is None:
            index = len(leaves)
            leaves.append(describe(path, node))
            return lambda values: values[index]
        named, build = opened
        parts = [walk(child, join(path, name)) for name, child in named]
        return lambda values: build([part(values) for part in parts])

    rebuild = walk(tree, "")
    return Flat(tuple(leaves), rebuild)


def shared(one: Flat, other: Flat) -> list[tuple[Leaf, Leaf]]:
    """Pairs of leaves that lie in the same place; what only one of two values has is left out."""
    there = {leaf.path: leaf for leaf in other.leaves}
    return [(leaf, there[leaf.path]) for leaf in one.leaves if leaf.path in there]
