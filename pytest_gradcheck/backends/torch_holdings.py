"""PyTorch: what a model holds beside its parameters, copied to be compared a little later."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
from torch import Tensor, nn

from pytest_gradcheck.backends import torch_values

OWN = frozenset(vars(nn.Module()))  # what every module has
TELLING = ("_buffers", "_modules", "_forward_hooks", "_forward_pre_hooks")  # of it
CLOSED = (nn.Module, type, FunctionType, MethodType, ModuleType)
DEPTH = 3  # of containers and objects inside of one another
WIDTH = 100  # items of one of them
MOST = 1 << 22  # numbers that are copied; of further tensors it is seen that torch counts no write


class Holdings:
    """Buffers, attributes, parts and forward hooks of a model, and what is in them.

    Args:
        parts: The model and all its parts.
    """

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        self._parts = parts
        self._copies: dict[Any, Any] | None = None

    def look(self) -> None:
        """Copy all of it."""
        try:
            self._copies = self._now()
        except Exception:  # of tensors that have no numbers, of attributes of whatever kind
            self._copies = None

    def are_there(self) -> bool:
        """Whether it is what it was at the last look; what cannot be compared is not."""
        old = self._copies
        try:
            now = self._now()
            return (
                old is not None
                and now.keys() == old.keys()
                and all(map(_is_same, now.values(), old.values()))
            )
        except Exception:
            return False

    def clear(self) -> None:
        """Forget it."""
        self._copies = None

    def _now(self) -> dict[Any, Any]:
        left, found = MOST, {}
        for key, value in self._leaves():
            if isinstance(value, Tensor):
                left -= value.numel()
                found[key] = value.detach().clone() if left >= 0 else (value, value._version)
            else:
                found[key] = value.copy() if isinstance(value, np.ndarray) else value
        return found

    def _leaves(self) -> Iterator[tuple[Any, Any]]:
        for number, part in enumerate(self._parts):
            for name, value in vars(part).items():
                if name not in OWN or name in TELLING:
                    yield from _opened((number, name), value, DEPTH)


def _opened(key: tuple[Any, ...], value: Any, depth: int) -> Iterator[tuple[Any, Any]]:
    """What is in a value, by where it lies."""
    is_leaf = isinstance(value, (Tensor, np.ndarray, *torch_values.PLAIN, *CLOSED)) or not depth
    inner: Any = None
    if not is_leaf:
        if isinstance(value, dict):
            inner = value.items()
        elif isinstance(value, (list, tuple)):
            inner = enumerate(value)
        elif hasattr(value, "__dict__"):
            inner = vars(value).items()
    if inner is None:
        yield key, value
        return
    yield (*key, "type"), type(value)
    for name, item in islice(inner, WIDTH):
        yield from _opened((*key, name), item, depth - 1)


def _is_same(one: Any, other: Any) -> bool:
    if isinstance(one, tuple) and isinstance(other, tuple):  # a large tensor, how often written
        return one[0] is other[0] and bool(one[1] == other[1])
    return torch_values.is_like(one, other)
