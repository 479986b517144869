"""PyTorch: the random numbers of a loss in float64, which are those that float32 draws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
_MADE = {aten.rand, aten.randn}
_LIKE = {aten.rand_like, aten.randn_like}
_FILLED = {aten.normal_, aten.uniform_, aten.bernoulli_, aten.exponential_, aten.geometric_}
_FILLED |= {aten.log_normal_, aten.cauchy_}
_CHOSEN = {aten.bernoulli, aten.poisson}  # numbers of which rounding makes no others, as a rule


class Draws(TorchDispatchMode):  # type: ignore[misc]  # torch tells no types of it
    """What is drawn in float64 is drawn in float32: from one state, torch gives others in each.

    Args:
        default: The precision that numbers had where none is named.
    """

    def __init__(self, default: torch.dtype) -> None:
        super().__init__()
        self._default = default

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """What an operation gives."""
        named = dict(kwargs or {})
        kind = func.overloadpacket
        first: Any = args[0] if args and isinstance(args[0], Tensor) else None
        is_wide = first is not None and first.dtype == torch.float64
        if "out" in named:
            return func(*args, **named)
        if kind is aten.normal and any(isinstance(x, Tensor) for x in args):
            is_narrow = not any(map(_is_wide, args))
            return func(*args, **named) if is_narrow else _normal(args, named)
        if kind in _MADE or kind is aten.normal:
            return self._made(func, args, named)
        if kind in _LIKE and is_wide and named.get("dtype") in (None, torch.float64):
            named.pop("dtype", None)
            return func(*map(_narrow, args), **named).double()
        if kind in _FILLED and is_wide:
            return first.copy_(func(*map(_narrow, args), **named))
        if kind in _CHOSEN and is_wide:
            return func(*map(_narrow, args), **named).double()
        if kind is aten.native_dropout and is_wide:
            kept = func(torch.ones_like(first, dtype=torch.float32), *args[1:])[1]
            return first * kept / (1 - args[1]), kept
        return func(*args, **named)

    def _made(self, func: Any, args: Sequence[Any], named: dict[str, Any]) -> Any:
        asked = named.pop("dtype", None)
        is_meant = asked is None and self._default == torch.float64
        if is_meant or (asked or torch.float64) != torch.float64:
            return func(*args, **named, dtype=asked)
        return func(*args, **named, dtype=torch.float32).double()


def _narrow(x: Any) -> Any:
    return x.float() if isinstance(x, Tensor) and x.dtype == torch.float64 else x


def _is_wide(x: Any) -> bool:
    return isinstance(x, Tensor) and x.dtype == torch.float64


def _normal(args: Sequence[Any], named: dict[str, Any]) -> Tensor:
    """What ``torch.normal`` makes of tensors: unit normal numbers, stretched and moved."""
    mean, std = (*args, 1.0)[:2] if len(args) > 1 else (args[0], named.get("std", 1.0))
    given = [x for x in (mean, std) if isinstance(x, Tensor)]
    shape = torch.broadcast_shapes(*(x.shape for x in given))
    unit = torch.empty(shape, dtype=torch.float32, device=given[0].device)
    return mean + std * unit.normal_(generator=named.get("generator")).double()
