"""PyTorch: callables that clip the gradients of parameters in place.

They take a list of parameters, a model, an optimizer over them, or nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn, optim

from pytest_gradcheck.backends.clip_answers import require_values
from pytest_gradcheck.backends.clip_signatures import Signature, signature
from pytest_gradcheck.backends.clips import (
    GRADIENTS,
    MODULES,
    NAMED,
    OPTIMIZERS,
    Clipped,
    Clipper,
    read_by,
)
from pytest_gradcheck.backends.reach import reachable
from pytest_gradcheck.backends.torch_clip_functions import TorchFunction
from pytest_gradcheck.backends.torch_state import guard
from pytest_gradcheck.errors import UsageError, told

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these


class TorchClipper:
    """A clip over parameters: a list, a module or an optimizer, or those that it knows by itself.

    Args:
        clip: The user's callable.
        params: A module, an optimizer or tensors whose gradients it clips; None makes some.
        shapes: Shapes of the parameters to make.
    """

    name = "torch"
    is_quirky = False
    has_gaps = True

    def __init__(self, clip: Any, params: Any, shapes: tuple[tuple[int, ...], ...]) -> None:
        self._clip = clip
        self._signature: Signature = signature(clip)
        self.settings = self._signature.settings
        self._own = None if params is None else _tensors(params)
        self._module = params if isinstance(params, nn.Module) else None
        self._optimizer = params if isinstance(params, optim.Optimizer) else None
        self.shapes = shapes if self._own is None else tuple(tuple(p.shape) for p in self._own)
        self.names = _names(params, len(self.shapes))
        self.dtype = "" if self._own is None else _coarsest(self._own)
        if self._signature.free or self._signature.is_factory:
            self._signature.require_one("parameters (or a model, or an optimizer)")
        elif self._own is None:
            raise UsageError("the clip takes no parameters: give those it clips as params=")

    def parameters(self) -> tuple[np.ndarray, ...]:
        """Ones for parameters that were made here."""
        if self._own is None:
            return tuple(np.ones(shape) for shape in self.shapes)
        return tuple(_numpy(p.abs() if p.is_complex() else p) for p in self._own)

    def clip(
        self, gradients: Sequence[np.ndarray | None], dtype: str, settings: Mapping[str, Any]
    ) -> Clipped:
        """Lay the gradients down as ``.grad``, clip, and read them again."""
        if self._own is None:
            made = [nn.Parameter(torch.ones(s, dtype=getattr(torch, dtype))) for s in self.shapes]
            return self._called(made, _Holder(made), gradients, settings)
        with guard((self._clip, self._own)):
            return self._called(self._own, self._module, gradients, settings)

    def _called(
        self,
        parameters: Sequence[Tensor],
        module: nn.Module | None,
        gradients: Sequence[np.ndarray | None],
        settings: Mapping[str, Any],
    ) -> Clipped:
        for p, g in zip(parameters, gradients, strict=True):
            p.grad = None if g is None else _like(p, g)
        before = tuple(_read(p) for p in parameters)
        keywords = self._signature.keywords(settings)
        try:
            if self._signature.free:
                handed = self._handed(parameters, module)
                returned = self._signature.called(self._clip, handed, keywords)
            else:
                returned = self._clip(**keywords)
        except Exception as error:  # whatever the user's code raises is what is to be judged
            return Clipped(before, error=told(error))
        require_values(returned)
        after = tuple(_read(p) for p in parameters)
        return Clipped(before, after, _number(returned))

    def _handed(self, parameters: Sequence[Tensor], module: nn.Module | None) -> Any:
        """What the clip takes, by what it calls it."""
        if self._signature.free[0] in MODULES:
            return module
        if self._signature.free[0] in NAMED:
            return list(module.named_parameters()) if module else list(enumerate(parameters))
        if self._signature.free[0] in OPTIMIZERS:
            return self._optimizer or optim.SGD(list(parameters), lr=0.1)
        return list(parameters)


class _Holder(nn.Module):  # type: ignore[misc]  # torch is not followed
    """A module with given parameters, the first of which stands in two places (is tied)."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        super().__init__()
        self.first = nn.ParameterList(parameters)
        self.tied = nn.ParameterList(parameters[:1])


def _tensors(params: Any) -> list[Tensor]:
    if isinstance(params, nn.Module):
        found = list(params.parameters())
    elif isinstance(params, optim.Optimizer):
        found = [p for group in params.param_groups for p in group["params"]]
    elif isinstance(params, Iterable):
        found = list(params.values() if isinstance(params, dict) else params)
    else:
        found = [None]
    if not all(isinstance(p, Tensor) for p in found):
        named = f", not the class {params.__name__}" if isinstance(params, type) else ""
        raise UsageError(
            f"params= takes a module, an optimizer, or parameters in a list or a dict{named}"
        )
    kept = [p for p in dict.fromkeys(found) if p.requires_grad]
    if not kept:
        raise UsageError("params= holds no parameter that takes a gradient")
    return kept


def _names(params: Any, count: int) -> tuple[str, ...]:
    if isinstance(params, nn.Module):
        return tuple(name for name, p in params.named_parameters() if p.requires_grad)
    return tuple(f"parameters.{i}" for i in range(count))


def _coarsest(parameters: Sequence[Tensor]) -> str:
    """The real precision that rounds the most: the norm of all is no better than that."""
    worst = max((p.dtype for p in parameters), key=lambda dtype: torch.finfo(dtype).eps)
    return str(worst.to_real() if worst.is_complex else worst).removeprefix("torch.")


def _like(p: Tensor, g: np.ndarray) -> Tensor:
    """A gradient of the precision of its parameter; of a complex one, turned by known phases."""
    wide = torch.from_numpy(np.array(g, dtype=np.float64))
    if p.is_complex():
        wide = torch.where(wide == 0, 0.0, wide * _phases(p))  # not 0 times a phase: -0
    return wide.to(dtype=p.dtype, device=p.device)


def _read(p: Tensor) -> np.ndarray | None:
    """What lies at a parameter, turned back where it is complex."""
    if p.grad is None or not p.is_complex():
        return None if p.grad is None else _numpy(p.grad)
    turned = p.grad.detach().to(device="cpu", dtype=torch.complex128) * _phases(p).conj()
    return _numpy(turned.real)


def _phases(p: Tensor) -> Tensor:
    """A number of size 1 for each element: absolute values stay, and so does every norm."""
    angles = torch.arange(p.numel(), dtype=torch.float64, device="cpu").reshape(p.shape) + 0.7
    return torch.polar(torch.ones_like(angles), angles)


def _numpy(x: Tensor) -> np.ndarray:
    wide: np.ndarray = x.detach().to(device="cpu", dtype=torch.float64, copy=True).numpy()
    return wide


def _number(value: Any) -> float | None:
    if isinstance(value, Tensor) and value.numel() == 1 and value.is_floating_point():
        return float(value.detach())
    return value if isinstance(value, float) else None


def clipper(clip: Any, params: Any, shapes: tuple[tuple[int, ...], ...]) -> Clipper:
    """The clipper of a callable."""
    of_gradients = _takes_gradients(clip)
    return (TorchFunction if of_gradients else TorchClipper)(clip, params, shapes)


def _takes_gradients(clip: Any) -> bool:
    """Whether a clip takes gradients, by what it calls them, and no parameters that have them."""
    if not set(signature(clip).free[:1]) & set(GRADIENTS):
        return False
    own = [value for value in reachable([clip], depth=2) if isinstance(value, FunctionType)]
    names = {name for value in own for name in (value.__name__, *read_by(value))}
    names |= {*read_by(clip)}  # of an object that is called
    return not names & {"grad", "clip_grad_norm_", "clip_grad_value_", "clip_grads_with_norm_"}
