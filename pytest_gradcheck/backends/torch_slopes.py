"""Activations of PyTorch by what they do: rectifiers written by hand, and units without a slope."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from pytest_gradcheck.backends.layers import FLAT, Kind

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

CHANNELS_FIRST = frozenset({f"{k}{n}d" for k in ("conv", "conv_transpose") for n in (1, 2, 3)})
BY_HAND = frozenset(
    {"maximum", "max", "fmax", "where", "mul", "multiply", "__mul__", "__rmul__", "masked_fill"}
    | {"clamp_min", "clip"}
)
# Off on one side, and flat on both; the slope of the others can be read off their output.
ONE_SIDED = frozenset({"gelu", "silu", "elu", "celu", "selu", "mish", "softplus", "hardswish"})
TWO_SIDED = frozenset({"hardtanh", "hardsigmoid", "softsign"})
SLOPED = ONE_SIDED | TWO_SIDED | {"relu6"}
LARGEST = {"hardsigmoid": 1 / 6}  # slope, where it is not about one
ROWS, FEW = 1024, 64  # positions that tell a unit's slope; elements that tell most products apart


def unit_axis(kind: Kind, op: str, x: Tensor) -> int:
    """The axis of units: channels of images, features of anything else."""
    axis = 1 if op in CHANNELS_FIRST or (x.ndim > 3 and kind != "linear") else x.ndim - 1
    return int(min(axis, x.ndim - 1))


def rectified(name: str, args: tuple[Any, ...], out: Any) -> Tensor | None:
    """What an operation that is no activation by its name has rectified; None where it has not.

    ``maximum(z, 0)``, ``z * (z > 0)`` and ``where(z > 0, z, 0)`` are known by their values.
    """
    if name not in BY_HAND or not isinstance(out, Tensor) or not out.is_floating_point():
        return None
    if torch._C._functorch.is_functorch_wrapped_tensor(out):
        return None
    for z in args:
        if isinstance(z, Tensor) and z is not out and z.shape == out.shape and z.dtype == out.dtype:
            with torch.no_grad():
                if _is_rectified(z.detach(), out.detach()):
                    return z
    return None


def _is_rectified(z: Tensor, out: Tensor) -> bool:
    if z.layout != torch.strided or out.layout != torch.strided or not z.numel():
        return False
    few = torch.equal(z.flatten()[:FEW].clamp(min=0), out.flatten()[:FEW])
    return few and bool((z < 0).any()) and torch.equal(z.clamp(min=0), out)


def concentrated(out: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """Share of the distributions of a softmax that are all at one place."""
    axis = kwargs.get("dim", args[1] if len(args) > 1 else -1)
    if not isinstance(axis, int) or not out.ndim or not out.numel():
        return None
    if torch._C._functorch.is_functorch_wrapped_tensor(out):
        return None
    with torch.no_grad():
        return (1 - out.detach().double().square().sum(axis) < FLAT).double().mean()


def flat(
    func: Callable[..., Tensor], name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Tensor | None:
    """Share of the units whose mean slope is under 1 % of the largest; None where not asked for.

    To be called before the activation, which may overwrite what it is given.
    """
    z = args[0] if args else None
    if name not in SLOPED or not isinstance(z, Tensor) or z.ndim < 2 or not z.numel():
        return None
    if torch._C._functorch.is_functorch_wrapped_tensor(z) or z.layout != torch.strided:
        return None
    axis = unit_axis("activation", name, z)
    rows = z.detach().movedim(axis, -1).reshape(-1, z.shape[axis])
    rows = rows[:: max(1, len(rows) // ROWS)].float().requires_grad_()
    with torch.enable_grad():
        slope = torch.autograd.grad(func(rows.clone(), *args[1:], **kwargs).sum(), rows)[0]
    return (slope.abs().mean(0) < FLAT * LARGEST.get(name, 1.0)).double().mean()
