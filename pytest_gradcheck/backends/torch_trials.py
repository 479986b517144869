"""PyTorch: bare steps of an optimizer, with nothing to do, and from a state that was saved."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pytest_gradcheck.backends import torch_optimizers
from pytest_gradcheck.backends.steps import Tracked, Update
from pytest_gradcheck.backends.torch_values import like


def moved(loop: Any, optimizers: Sequence[Any], what: str) -> list[str]:
    """Make a step that has nothing to do, and name what it moved."""
    for i, p in enumerate(loop.tensors):
        if p.requires_grad and what == "with lr 0":
            p.grad = _laid_out(loop, i, torch.ones_like(p))
        if what == "with zero gradients" and p.requires_grad:
            p.grad = torch.zeros_like(p)
        if what == "without gradients":
            p.grad = None
    for optimizer in optimizers:
        for group in torch_optimizers.groups(optimizer):
            if what == "with lr 0" and "lr" in group:
                group["lr"] = 0.0
            if "weight_decay" in group and what == "with zero gradients":
                group["weight_decay"] = 0.0
    before = [p.detach().clone() for p in loop.tensors]
    for optimizer in optimizers:
        type(optimizer).step(optimizer)
    pairs = zip(loop.parameters, before, loop.tensors, strict=True)
    return [t.name for t, a, b in pairs if not torch.equal(a, b.detach())]


def _laid_out(loop: Any, i: int, g: Tensor) -> Tensor:
    """A gradient in the layout in which the optimizer got those of this parameter."""
    axes = loop.sparse.get(i)
    return g if axes is None else g.to_sparse(axes)


def repeat(loop: Any, optimizer: Any, update: Update, is_loaded: bool) -> None:
    """Step with the gradients of an update, where asked for from a state that was saved."""
    if is_loaded:
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for i, (p, g) in enumerate(zip(loop.tensors, update.received or (), strict=False)):
        p.grad = None if g is None else _laid_out(loop, i, like(p, g))
    type(optimizer).step(optimizer)


def differing(
    parameters: Sequence[Tracked], update: Update, finals: Sequence[Sequence[Tensor]]
) -> list[tuple[str, float]]:
    """What two ends of an update do not share, by how much of the parameter."""
    return [
        (t.name, float((a - b).double().norm()) / max(float(np.linalg.norm(x)), 1e-300))
        for t, x, a, b in zip(parameters, update.before, *finals, strict=True)
        if not torch.equal(a, b)
    ]
