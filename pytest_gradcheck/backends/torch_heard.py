"""PyTorch: the optimizer that a step calls, where none was handed over, or one around it."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from pytest_gradcheck.backends import torch_optimizers
from pytest_gradcheck.backends.steps import Call
from pytest_gradcheck.backends.torch_state import guard
from pytest_gradcheck.backends.torch_values import are_near

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these


def must_be(optimizers: Sequence[Any]) -> bool:
    """Whether the step says which optimizer it calls: none is known, or one with another inside.

    One that is written around another (SAM) may leave it to the step to call that one.
    """
    kind = torch.optim.Optimizer
    inside = [x for o in optimizers for x in getattr(o, "__dict__", {}).values()]
    return not optimizers or any(issubclass(type(x), kind) for x in inside)


def heard(loop: Any, batches: Sequence[Any]) -> list[Any]:
    """The optimizer of a model that a step over some batches calls; all is set back afterwards.

    Empty where there are several, which may have losses of their own, where the step moves
    trainable parameters beside it (half of an update is not judged), or where the optimizer
    handed over moves them before it calls the one inside (schedule-free).
    """
    found: dict[int, Any] = {}
    calls: list[Call] = []
    with ExitStack() as stack:
        ear = _Ear(loop, found, stack)
        stack.callback(register_optimizer_step_pre_hook(ear.before).remove)
        stack.callback(register_optimizer_step_post_hook(ear.after).remove)
        for batch in batches:
            ear.depth = 0
            calls.append(loop.call(batch))
            if calls[-1].error:
                break
    if len(found) != 1 or _is_moved_inside(calls, ear.starts):
        return []
    held = torch_optimizers.holders(list(found.values()))
    for i, p in enumerate(loop.tensors):
        is_moved = any(not np.array_equal(c.before[i], c.after[i], equal_nan=True) for c in calls)
        if is_moved and p.requires_grad and id(p) not in held:
            return []
    return list(found.values())


def _is_moved_inside(calls: Sequence[Call], starts: Sequence[list[np.ndarray]]) -> bool:
    """Whether an optimizer that was handed over calls another one at parameters of its own.

    Where none was, a step may move parameters beside the one that it calls.
    """
    updates = [u for call in calls for u in call.updates if u.received is not None]
    pairs = zip(updates, starts, strict=False)
    return len(updates) == len(starts) and any(not are_near(u.before, s) for u, s in pairs)


class _Ear:
    """Hears the steps of optimizers, and sees to it that each is set back in the end."""

    def __init__(self, loop: Any, found: dict[int, Any], stack: ExitStack) -> None:
        self._ours = {id(p) for p in loop.tensors}
        self._found, self._stack, self._loop = found, stack, loop
        self.starts: list[list[np.ndarray]] = []  # parameters at which optimizers began to step
        self.depth = 0  # of the optimizers that are stepping: one may have another inside
        # One that a step makes anew in every call is another one the next time. By the type:
        # isinstance asks proxies what they are, and some answer with an import.
        kind = torch.optim.Optimizer
        self._there = {id(o): o for o in gc.get_objects() if issubclass(type(o), kind)}

    def before(self, optimizer: Any, *_: Any) -> None:
        """An optimizer is about to step."""
        self.depth += 1
        if self.depth == 1:
            self.starts.append(self._loop.now())
        if self.depth > 1 or id(optimizer) in self._found or id(optimizer) not in self._there:
            return
        self._stack.enter_context(guard((optimizer,)))
        self._stack.enter_context(torch_optimizers.held([optimizer]))
        if self._ours & set(torch_optimizers.holders([optimizer])):
            self._found[id(optimizer)] = optimizer

    def after(self, *_: Any) -> None:
        """It has."""
        self.depth -= 1
