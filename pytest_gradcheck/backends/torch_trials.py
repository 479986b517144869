"""PyTorch: bare steps of an optimizer, with nothing to do, and from a state that was saved."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pytest_gradcheck.backends import torch_optimizers
from pytest_gradcheck.backends.steps import Refused, Tracked, Update
from pytest_gradcheck.backends.torch_values import is_alike, like

LATER = 6  # updates of an optimizer that nobody knows: a delayed one shows what it lost later


@contextmanager
def _trial(loop: Any, optimizers: Sequence[Any]) -> Iterator[list[Tensor]]:
    """Hold what a bare step of an optimizer changes; the parameters as they are before it."""
    kept = loop.kept()
    grads = [p.grad for p in loop.tensors]
    now = loop.mark()
    try:
        with torch_optimizers.held(list(optimizers)):
            yield kept
    finally:
        with torch.no_grad():
            for p, value, grad in zip(loop.tensors, kept, grads, strict=True):
                p.data.copy_(value)
                p.grad = grad
        loop.rewind(now)


def idle(
    loop: Any, optimizers: Sequence[Any], is_fresh: bool
) -> Iterator[tuple[str, list[str], bool]]:
    """Steps with zero gradients from fresh state; without gradients, and at lr 0, later."""
    if not optimizers or any(torch_optimizers.needs_closure(o) for o in optimizers):
        return
    if is_fresh and any(start for start, _ in loop.starts):
        return  # momentum from before may move what it likes
    left = ["with zero gradients"] if is_fresh else ["without gradients", "with lr 0"]
    while left:
        with _trial(loop, optimizers) as kept:
            is_still = True
            while left and is_still:  # a step that moved nothing leaves nothing to be put back
                what = left.pop(0)
                try:
                    first = names = moved(loop, optimizers, what, kept)
                    if first:  # once more: slow weights that are met, say, are there by then
                        copies = [p.detach().clone() for p in loop.tensors]
                        again = moved(loop, optimizers, what, copies)
                        names = [name for name in first if name in again]
                except Exception:  # an optimizer that takes no such gradient is not asked
                    break
                is_still = not first
                yield what, names, all(map(_is_finite, loop.tensors))


def _is_finite(p: Tensor) -> bool:
    if p.is_complex() or not p.numel():
        return bool(p.isfinite().all())
    low, high = torch.aminmax(p.detach())  # of what is not a number, both are none
    return bool(low.isfinite() and high.isfinite())


def restored(
    loop: Any, optimizers: Sequence[Any], update: Update
) -> list[tuple[str, float]] | Refused | None:
    """Save and load the optimizer's state, repeat the update, compare bit by bit."""
    optimizer = optimizers[update.which]
    if torch_optimizers.needs_closure(optimizer) or not torch_optimizers.has_hooks(optimizer):
        return None
    found, final = [], list[Tensor]()
    for is_loaded in (False, True):
        with _trial(loop, optimizers):
            if is_loaded and (told := _reload(loop, optimizer)):
                return Refused(told, is_fault=True)
            try:
                for _ in range(1 if type(optimizer) in torch_optimizers.NAMES else LATER):
                    repeat(loop, optimizer, update)
            except Exception as error:  # it needs a closure, though its signature does not say
                told = f"{type(error).__name__}: {error}".rstrip(": ")
                return Refused(f"a bare step of it raises ({told})", is_fault=False)
            if is_loaded:
                found = differing(loop.parameters, update, (final, loop.tensors))
            else:
                final = [p.detach().clone() for p in loop.tensors]
    return found


def moved(loop: Any, optimizers: Sequence[Any], what: str, before: Sequence[Tensor]) -> list[str]:
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
    for optimizer in optimizers:
        type(optimizer).step(optimizer)
    pairs = zip(loop.parameters, before, loop.tensors, strict=True)
    return [t.name for t, a, b in pairs if not is_alike(a, b.detach())]


def _laid_out(loop: Any, i: int, g: Tensor) -> Tensor:
    """A gradient in the layout in which the optimizer got those of this parameter."""
    axes = loop.sparse.get(i)
    return g if axes is None else g.to_sparse(axes)


def _reload(loop: Any, optimizer: Any) -> str:
    """Save the state of an optimizer and load it; why that cannot be done, empty where it can.

    What an optimizer keeps elsewhere is then what it was at the start, as in a fresh one.
    """
    did = "saved"
    try:
        saved = copy.deepcopy(optimizer.state_dict())
        for restore in loop.fresh_optimizers.get(id(optimizer), ()):
            restore()
        did = "loaded"
        optimizer.load_state_dict(saved)
    except Exception as error:  # whatever the user's code raises is what is to be told
        return f"its state cannot be {did} ({type(error).__name__}: {error})"
    return ""


def repeat(loop: Any, optimizer: Any, update: Update) -> None:
    """Step with the gradients of an update."""
    for i, (p, g) in enumerate(zip(loop.tensors, update.received or (), strict=False)):
        p.grad = None if g is None else _laid_out(loop, i, like(p, g))
    type(optimizer).step(optimizer)


def differing(
    parameters: Sequence[Tracked], update: Update, finals: Sequence[Sequence[Tensor]]
) -> list[tuple[str, float]]:
    """What two ends of an update do not share, by how much of the parameter."""
    return [
        (t.name, float((a - b.detach()).double().norm()) / max(float(np.linalg.norm(x)), 1e-300))
        for t, x, a, b in zip(parameters, update.before, *finals, strict=True)
        if not is_alike(a, b.detach())
    ]
