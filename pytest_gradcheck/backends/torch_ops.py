"""PyTorch's operations as they are called: which are layers, and one of them changed on the way.

Modes see functional calls inside a ``forward`` as well as those of modules, and no hook is put on
an input, so that activations in place go on working (pytorch#61519).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pytest_gradcheck.backends.layers import ACTIVATIONS, BOUNDED, RECTIFIERS, Change, Kind
from pytest_gradcheck.backends.torch_slopes import (
    CHANNELS_FIRST,
    TWO_SIDED,
    concentrated,
    flat,
    rectified,
)

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

LINEAR = frozenset(
    {"linear", "conv1d", "conv2d", "conv3d", "bilinear", "addmm", "baddbmm"}
    | {"conv_transpose1d", "conv_transpose2d", "conv_transpose3d"}
)
PRODUCTS = frozenset({"matmul", "mm", "bmm", "einsum", "__matmul__", "__rmatmul__"})
RECURRENT = frozenset({"lstm", "gru", "rnn_tanh", "rnn_relu"})
CHANGES = ("activation", "smooth", "leak", "bias", "init", "input", "layer", "normalise", "skip")
SMOOTH = ACTIVATIONS - RECTIFIERS - BOUNDED - TWO_SIDED - {"exp"}

# kind, operation, first argument, output, number among its kind, share of units without a slope
Seen = Callable[[Kind, str, Any, Tensor, int, Tensor | None], None]


class Ops(TorchFunctionMode):  # type: ignore[misc]  # torch is not typed
    """Tells of activations and products with weights, and changes what it is asked to.

    Args:
        seen: Called with each of them.
        change: The intervention, if any.
        last: Number of the last product with weights: what comes after it belongs to the loss.
    """

    def __init__(self, seen: Seen, change: Change | None = None, last: int = -1) -> None:
        super().__init__()
        self._seen = seen
        self._kind, self._at = change or ("", -1)
        self._last = last
        self._counts = {"linear": 0, "activation": 0}
        self._previous: Tensor | None = None
        self.recurrent: Any = None  # what the latest fused recurrent layer was given

    def restart(self) -> None:
        """Count from the start again: a new forward pass."""
        self._counts = {"linear": 0, "activation": 0}
        self._previous = None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        plain = name.removesuffix("_").removeprefix("_") if not name.startswith("__") else name
        if plain in LINEAR or (plain in PRODUCTS and _has_weight(args)):
            return self._linear(func, plain, args, kwargs)
        is_of_weight = bool(args) and isinstance(args[0], nn.Parameter)  # the scale of a flow, say
        if plain in ACTIVATIONS and not is_of_weight and _is_activation(plain, args, kwargs):
            return self._activation(func, plain, args, kwargs)
        if name in RECURRENT:
            args = self._recurrent(args)
        out = func(*args, **kwargs)
        if plain == "softmax" and isinstance(out, Tensor) and out.is_floating_point():
            self._seen("activation", plain, args[0], out, -1, concentrated(out, args, kwargs))
            return out
        given = rectified(plain, args, out)
        if given is not None:
            return self._activation(lambda *_: out, "relu", (given,), {})
        return out

    def _recurrent(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        if self._kind == "input" and not self._counts["linear"]:
            args, self._kind = (_standardised(args[0]), *args[1:]), ""
        self.recurrent = args[0]
        return args

    def _linear(self, func: Any, name: str, args: Any, kwargs: Mapping[str, Any]) -> Any:
        index = self._next("linear")
        if self._kind == "input" and index == 0:
            args = (_standardised(args[0]), *args[1:])
        is_asked = self._at in (-1, index)
        if self._kind == "bias" and is_asked and len(args) > 2 and name in LINEAR:
            args = (*args[:2], None, *args[3:])
        out = func(*args, **kwargs)
        if self._kind in ("init", "layer") and is_asked:
            out = out / _size(out)
        if self._kind == "normalise" and index != self._last:
            out = _normalised(out, name)
        self._seen("linear", name, args[0], out, index, None)
        return out

    def _activation(self, func: Any, name: str, args: Any, kwargs: Mapping[str, Any]) -> Any:
        index, before_loss = self._next("activation"), self._counts["linear"] <= self._last
        other = self._other(name) if before_loss else None
        if other is not None:
            func, name, args, kwargs = getattr(nn.functional, other), other, args[:1], {}
        share = flat(func, name, args, kwargs)
        out = func(*args, **kwargs)
        if (
            before_loss
            and self._kind == "skip"
            and getattr(self._previous, "shape", 0) == out.shape
        ):
            out = (out + self._previous) / 2**0.5
        if self._kind == "skip":
            self._previous = out
        self._seen("activation", name, args[0], out, index, share)
        return out

    def _other(self, name: str) -> str | None:
        """The activation that takes the place of one, by name."""
        if self._kind == "activation" and name not in RECTIFIERS:
            return "relu"
        if self._kind == "smooth" and name not in SMOOTH:
            return "elu"
        return "leaky_relu" if self._kind == "leak" and name in RECTIFIERS else None

    def _next(self, kind: str) -> int:
        self._counts[kind] += 1
        return self._counts[kind] - 1


def _has_weight(args: Any) -> bool:
    return any(isinstance(a, Tensor) and a.is_leaf and a.requires_grad for a in args)


def _is_activation(name: str, args: Any, kwargs: Mapping[str, Any]) -> bool:
    if not args or not isinstance(args[0], Tensor) or not args[0].is_floating_point():
        return False
    if name == "clamp":  # a rectifier only where it is one
        low = kwargs.get("min", args[1] if len(args) > 1 else None)
        return not isinstance(low, Tensor) and low == 0
    return True


def _size(x: Tensor) -> Tensor:
    with torch.no_grad():
        size = x.detach().double().square().mean().sqrt()
        return torch.where(size > 0, size, torch.ones_like(size)).to(x.dtype)


def _standardised(x: Any) -> Any:
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim < 2:
        return x
    wide = x.double()
    spread = wide.std(dim=0, keepdim=True, unbiased=False)
    return ((wide - wide.mean(dim=0, keepdim=True)) / (spread + (spread == 0))).to(x.dtype)


def _normalised(x: Tensor, name: str) -> Tensor:
    axes = tuple(range(1, x.ndim)) if name in CHANNELS_FIRST else (-1,)
    centred = x - x.mean(dim=axes, keepdim=True)
    scale: Tensor = centred.square().mean(dim=axes, keepdim=True).add(1e-5).sqrt()
    return centred / scale
