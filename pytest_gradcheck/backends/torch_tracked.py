"""PyTorch: which tensors a training holds, and who trains them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pytest_gradcheck.backends import torch_optimizers
from pytest_gradcheck.backends.steps import Tracked
from pytest_gradcheck.errors import UsageError

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these


def found(
    model: nn.Module, optimizers: Sequence[Any], others: Sequence[Any]
) -> tuple[list[Tensor], list[Tracked]]:
    """The parameters of a model and of optimizers, without what other optimizers alone hold.

    Raises:
        UsageError: There is none, or one has no size yet.
    """
    tensors: dict[int, tuple[str, Tensor]] = {}
    for name, p in model.named_parameters():
        if isinstance(p, nn.UninitializedParameter):
            owner = model.get_submodule(name.rpartition(".")[0])
            raise UsageError(
                f"Training.model has a {type(owner).__name__}, whose {name} has no size yet: put "
                f"one batch through the model before it is handed over"
            )
        tensors.setdefault(id(p), (name, p))
    held = torch_optimizers.holders(optimizers)
    for i, optimizer in enumerate(optimizers):
        for j, group in enumerate(torch_optimizers.groups(optimizer)):
            for k, p in enumerate(group["params"]):
                tensors.setdefault(id(p), (f"optimizer.{i}.{j}.{k}", p))
    theirs = torch_optimizers.holders(others)
    pairs = [(n, p) for key, (n, p) in tensors.items() if key in held or key not in theirs]
    if not pairs:
        raise UsageError("Training.model has no parameters")
    own = {id(p) for p in model.parameters()}
    return [p for _, p in pairs], _tracked(pairs, held, own)


def _tracked(pairs: list[tuple[str, Tensor]], held: dict[int, int], own: set[int]) -> list[Tracked]:
    shadows = torch_optimizers.shadows(pairs, held)
    tracked = []
    for i, (name, p) in enumerate(pairs):
        owners = held.get(id(p), 0)
        if i in shadows.values():  # its master copy is what is optimized
            owners = max(owners, 1)
        shown = f"{pairs[shadows[i]][0]} (master copy)" if i in shadows else name
        tracked.append(
            Tracked(
                name=shown,
                dtype=str(p.dtype).removeprefix("torch."),
                trainable=bool(p.requires_grad),
                owners=owners if held else None,
                shadow=shadows.get(i, -1),
                is_beside=id(p) not in own,
            )
        )
    return tracked


def replaced(
    model: nn.Module, tensors: Sequence[Tensor], optimizers: Sequence[Any]
) -> tuple[str, ...]:
    """Names of trainable parameters that are other tensors now, which no optimizer holds."""
    held = torch_optimizers.holders(optimizers)
    return tuple(name for name, p in _new(model, tensors) if id(p) not in held)


def added(
    model: nn.Module, tensors: Sequence[Tensor], optimizers: Sequence[Any]
) -> tuple[str, ...]:
    """Names of trainable parameters that are other tensors now, which an optimizer holds."""
    held = torch_optimizers.holders(optimizers)
    return tuple(name for name, p in _new(model, tensors) if id(p) in held)


def _new(model: nn.Module, tensors: Sequence[Tensor]) -> list[tuple[str, Tensor]]:
    known = {id(p) for p in tensors}
    named = model.named_parameters()
    return [(name, p) for name, p in named if id(p) not in known and p.requires_grad]


@contextmanager
def thawed(tensors: Sequence[Tensor], trained: Sequence[bool]) -> Iterator[None]:
    """Parameters that took a gradient at some time of a call take one for a while."""
    cold = [p for p, flag in zip(tensors, trained, strict=True) if flag and not p.requires_grad]
    try:
        for p in cold:
            p.requires_grad_(True)
        yield
    finally:
        for p in cold:
            p.requires_grad_(False)


def renewed(
    parameters: Sequence[Tracked],
    tensors: Sequence[Tensor],
    trained: Sequence[bool],
    optimizers: Sequence[Any],
) -> list[Tracked]:
    """Layers are unfrozen and groups added on the way: who is ever trained counts."""
    held = torch_optimizers.holders(optimizers)
    return [
        replace(
            t,
            trainable=t.trainable or flag,
            owners=None if t.owners is None else max(t.owners, held.get(id(p), 0)),
        )
        for t, p, flag in zip(parameters, tensors, trained, strict=True)
    ]


@contextmanager
def placed(tensors: Sequence[Tensor], at: Sequence[np.ndarray]) -> Iterator[None]:
    """Other parameters for a while."""
    kept = [p.detach().clone() for p in tensors]
    try:
        for p, value in zip(tensors, at, strict=True):
            p.data.copy_(torch.from_numpy(np.asarray(value)))
        yield
    finally:
        for p, value in zip(tensors, kept, strict=True):
            p.data.copy_(value)


def unfinite(model: nn.Module) -> list[str]:
    """Names of the buffers of a model that are not finite."""
    dense = [(n, x) for n, x in model.named_buffers() if x.layout == torch.strided]
    known = [(n, x) for n, x in dense if x.is_floating_point() and not x.is_meta]
    return [name for name, x in known if not bool(x.isfinite().all())]
