"""A module that computes with other tensors in the places of its parameters."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from types import GeneratorType
from typing import Any

import torch
from torch import Tensor, nn

from pytest_gradcheck.backends.torch_state import swapped

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these


class Functional:
    """Stands in for a module: called, or asked for its parts and methods.

    The module itself is left as it is: tensors stand in their places only while it computes, and
    get the hooks that the user put on the gradients of its parameters.

    Args:
        module: The module, or a part of it.
        parts: Every part of the whole module.
        own: The parameters of the whole module, by name.
        values: What takes their place, in the same order.
    """

    def __init__(
        self,
        module: nn.Module,
        parts: Sequence[nn.Module],
        own: dict[str, nn.Parameter],
        values: Sequence[Any],
    ) -> None:
        self._module, self._parts, self._own, self._values = module, parts, own, values
        for mine, value in zip(own.values(), values, strict=True):
            _hook_alike(mine, value)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The module's own call."""
        with self._swapped():
            return self._module(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "_module" not in self.__dict__:  # of copy and pickle
            raise AttributeError(name)
        with self._swapped():
            return self._told(getattr(self._module, name))

    def __getitem__(self, index: Any) -> Any:
        with self._swapped():
            return self._told(self._module[index])

    def __iter__(self) -> Iterator[Any]:
        with self._swapped():
            return iter([self._told(part) for part in self._module])

    def __bool__(self) -> bool:
        return True

    def __len__(self) -> int:
        return len(self._module)

    def _told(self, value: Any) -> Any:
        """A part or a method that computes with the same tensors; anything else as it is."""
        if isinstance(value, nn.Module):
            return Functional(value, self._parts, self._own, self._values)
        if not callable(value) or isinstance(value, Tensor):
            return value

        @functools.wraps(value)
        def method(*args: Any, **kwargs: Any) -> Any:
            with self._swapped():
                found = value(*args, **kwargs)
                return iter(list(found)) if isinstance(found, GeneratorType) else found

        return method

    def _swapped(self) -> AbstractContextManager[None]:
        pairs = list(zip(self._own.values(), self._values, strict=True))
        others = {id(mine): value for mine, value in pairs}
        precisions = {mine.dtype: value.dtype for mine, value in pairs}
        # Fresh buffers each time: what a batch norm or a counter writes is gone after the call.
        held = (b for part in self._parts for b in part._buffers.values() if b is not None)
        return swapped(self._parts, others | {id(b): _buffer(b, precisions) for b in held})


def _hook_alike(parameter: nn.Parameter, value: Any) -> None:
    """Give what stands in for a parameter the hooks on its gradient, once."""
    hooks = list((parameter._backward_hooks or {}).values())
    if not hooks or value is parameter or not value.requires_grad:
        return
    known = list((value._backward_hooks or {}).values())
    if not all(hook in known for hook in hooks):
        for hook in hooks:
            value.register_hook(hook)


def _buffer(buffer: Tensor, precisions: dict[torch.dtype, torch.dtype]) -> Tensor:
    return buffer.detach().to(precisions.get(buffer.dtype, buffer.dtype), copy=True)
