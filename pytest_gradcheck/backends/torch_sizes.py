"""Sizes of PyTorch tensors, on their device, and the records of parameters."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pytest_gradcheck.backends import layers

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these


PART = 2**16  # elements of which a copy in float64 fits in the cache of a core


def size(x: Tensor) -> Tensor:
    """Root mean square in float64, on the device."""
    x = x.detach()
    x = x.to_dense() if x.layout != torch.strided else x
    x = torch.view_as_real(x) if x.is_complex() else x
    wide = torch.float32 if x.device.type == "mps" else torch.float64
    made: Tensor = torch.linalg.vector_norm(x, dtype=wide) / max(1, x.numel()) ** 0.5
    return made


def sizes(x: Tensor, axis: int) -> Tensor:
    """Root mean square over one axis, at each position; one number where there is no axis."""
    x = x.detach()
    if x.layout != torch.strided or not x.ndim:
        return size(x)
    x = x.abs() if x.is_complex() else x
    wide = torch.float32 if x.device.type == "mps" else torch.float64
    norms = [torch.linalg.vector_norm(y, dim=axis, dtype=wide) for y in _parts(x, axis)]
    made = torch.cat(norms) if len(norms) > 1 else norms[0]
    return made / max(1, x.shape[axis]) ** 0.5


def _parts(x: Tensor, axis: int) -> Sequence[Tensor]:
    """A tensor cut along its first axis: a norm in float64 makes a copy, better of a part."""
    is_one = x.is_cuda or x.dtype == torch.float64 or axis % x.ndim == 0
    count = 1 if is_one else -(-x.numel() // PART)
    return x.tensor_split(min(count, len(x))) if count > 1 else (x,)


def contrast(x: Tensor, axis: int) -> float:
    """Standard deviation over positions, root mean square of units, over the size; else NaN."""
    positions = x.numel() // max(1, x.shape[axis]) if x.ndim else 0
    whole = float(size(x))
    if positions < layers.LEAST or not 0 < whole < math.inf or x.layout != torch.strided:
        return math.nan
    others = [a for a in range(x.ndim) if a != axis]
    wide = torch.float32 if x.device.type == "mps" else torch.float64
    spread = (x.detach().abs() if x.is_complex() else x.detach()).to(wide).std(others, correction=0)
    return float(size(spread)) / whole


def finite(size: float) -> float:
    """A size that is not finite as infinity."""
    return math.inf if math.isnan(size) else size


def parameters(
    model: nn.Module, gradients: dict[str, Tensor | None]
) -> tuple[layers.Parameter, ...]:
    """The records of a model's parameters."""
    return tuple(_parameter(name, p, gradients.get(name)) for name, p in model.named_parameters())


def _parameter(name: str, p: Tensor, g: Tensor | None) -> layers.Parameter:
    return layers.Parameter(
        name=name,
        shape=tuple(p.shape),
        value=finite(float(size(p))),
        gradient=math.nan if g is None else finite(float(size(g))),
        trainable=p.requires_grad,
        symmetric=_is_symmetric(p.detach(), g),
        silent=_silent(g),
        uniform=p.ndim == 1 and p.numel() > 1 and bool((p.detach() == p.detach()[0]).all()),
    )


def _silent(g: Tensor | None) -> tuple[str, ...]:
    if g is None or g.ndim != 2 or g.layout != torch.strided or g.shape[0] != 3 * g.shape[1]:
        return ()
    used = [bool(part.any()) for part in g.detach().chunk(3)]
    named = zip(layers.THIRDS, used, strict=True)
    return tuple(name for name, is_used in named if not is_used) if any(used) else ()


def _is_symmetric(p: Tensor, g: Tensor | None) -> bool:
    if g is None or p.ndim < 2 or g.layout != torch.strided or not bool(g.any()):
        return False
    return any(
        p.shape[axis] > 1 and _copies(p, axis) and _copies(g.detach(), axis) for axis in (0, 1)
    )


def _copies(x: Tensor, axis: int) -> bool:
    # The first two rows tell nearly always.
    if float((x.narrow(axis, 0, 1) - x.narrow(axis, 1, 1)).abs().max()) > 1e-5 * float(
        x.abs().max()
    ):
        return False
    return float((x - x.narrow(axis, 0, 1)).abs().max()) <= 1e-5 * float(x.abs().max())
