"""PyTorch: the numbers in tensors that a loss may write, put back after it was asked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

SMALL = 1 << 16  # elements that are copied each time; more are copied when they were written


class Contents:
    """Tensors that a function carries along, such as weights of groups or a queue.

    Args:
        carried: What it carries along.
        without: Tensors that others hold.
    """

    def __init__(self, carried: Iterable[Any], without: Iterable[Tensor]) -> None:
        left = {id(t) for t in without}
        found = {id(v): v for v in carried if isinstance(v, Tensor) and id(v) not in left}
        self._tensors = [t for t in found.values() if _is_plain(t)]
        self._copies: dict[int, tuple[int, Tensor]] = {}

    @contextmanager
    def held(self) -> Iterator[None]:
        """Whatever is written while it is open is put back."""
        kept = [(t, t._version, self._copy(t)) for t in self._tensors]
        try:
            yield
        finally:
            for t, version, copy in kept:
                if t.numel() <= SMALL or t._version != version:
                    t.data.copy_(copy)

    def _copy(self, t: Tensor) -> Tensor:
        version, copy = self._copies.get(id(t), (-1, t))
        if version != t._version or t.numel() <= SMALL or copy.shape != t.shape:
            copy = t.detach().clone()
            self._copies[id(t)] = t._version, copy
        return copy


def _is_plain(t: Tensor) -> bool:
    """Whether it has contents of its own that can be copied back."""
    return t.layout == torch.strided and not (t.is_inference() or t.is_meta)
