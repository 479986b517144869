"""PyTorch: the shape of a graph that autograd recorded: its operations and their leaves."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch

MOST_NODES = 4000  # a walk takes some microseconds for each, about what the operation itself takes
PLAIN = (bool, int, float, complex, str, type(None), torch.dtype)
OWN = torch.autograd.function.BackwardCFunction
WEIGHED = ("MulBackward0", "DivBackward0")  # keep a factor of plain Python as a tensor
_NAMES: dict[type, tuple[str, ...]] = {}  # of what the nodes of a type keep that is no tensor


def shape(root: Any, leaves: Mapping[int, int], has_factors: bool) -> str:
    """A fingerprint of a graph; empty where it has nodes or leaves that are not known.

    Two graphs with the same one do the same operations with the same constants, in the same order,
    from the same leaves. What a function of the user's does backward is not known.

    Args:
        root: The node of the tensor that is differentiated.
        leaves: The numbers of the tensors that may be leaves, by their ids.
        has_factors: Whether factors may be looked at; what is kept elsewhere must not be fetched.
    """
    numbers = {root: 0}
    pending = [root]
    told = hashlib.blake2b(digest_size=16)
    while pending:
        node = pending.pop()
        if isinstance(node, OWN) or len(numbers) > MOST_NODES:
            return ""
        leaf = leaves.get(id(node.variable)) if hasattr(node, "variable") else -1
        if leaf is None:
            return ""
        edges = []
        for inner, place in node.next_functions:
            if inner is not None and inner not in numbers:
                numbers[inner] = len(numbers)
                pending.append(inner)
            edges.append((-1 if inner is None else numbers[inner], place))
        row = (numbers[node], node.name(), leaf, edges, _constants(node, has_factors))
        told.update(repr(row).encode())
    return told.hexdigest()


def _constants(node: Any, has_factors: bool) -> list[Any]:
    """What an operation was called with that is no tensor: numbers, sizes, modes."""
    kind = type(node)
    if kind not in _NAMES:
        names = [name for name in dir(kind) if name.startswith("_saved_")]
        _NAMES[kind] = tuple(name for name in names if not hasattr(kind, f"_raw{name}"))
    found = [value for name in _NAMES[kind] if _is_plain(value := getattr(node, name))]
    return [*found, _factor(node)] if has_factors and node.name() in WEIGHED else found


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return isinstance(value, PLAIN)


def _factor(node: Any) -> Any:
    """The number of plain Python by which an operation multiplies or divides; None for tensors."""
    other = node._saved_other
    if other is None or other.ndim or other.dtype.itemsize < 8:
        return None
    # Only a number of plain Python takes the precision of a tensor of no axes.
    like = torch.zeros((), dtype=torch.float16 if other.is_floating_point() else torch.int8)
    return other.item() if torch.result_type(other, like) == like.dtype else None
