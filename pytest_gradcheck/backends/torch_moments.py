"""PyTorch: fresh gradients in the middle of a call, from where its own loss began to draw."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

Taken = tuple[float, Sequence["np.ndarray | None"]]
BACKWARD = ("_backward_hooks", "_post_accumulate_grad_hooks", "_backward_pre_hooks")
SAME = 1e-3  # of a gradient: rounding is less, and other random numbers make more


class Moments:
    """The states of the generators from which a loss in a call may have drawn.

    That a loss is evaluated more than once, for a log or by another optimizer, moves them. The
    state with which it began is the one from which it ends where the step is after its backward.

    Args:
        loop: The training.
        batch: What the call is given.
        mark: The state before it.
    """

    def __init__(self, loop: Any, batch: Any, mark: Any) -> None:
        self._loop, self._batch = loop, batch
        self._marks = [mark]

    def see(self) -> None:
        """A loss may begin now."""
        if self._loop.has_drawn(self._marks[-1]):
            self._marks.append(self._loop.mark())

    def gradient(self, at: Sequence[np.ndarray] | None) -> tuple[Taken, bool]:
        """Loss and fresh gradient, and whether the call draws what the loss draws before it."""
        for mark in reversed(self._marks):
            found: Taken = self._loop.inside(self._batch, at, mark)
            if self._loop.ends_here():
                return found, mark is self._marks[0] and self._is_steady(found, at)
        return self._loop.inside(self._batch, at, self._marks[0]), False

    def _is_steady(self, found: Taken, at: Sequence[np.ndarray] | None) -> bool:
        """Whether the generators that are known are all that the loss draws from."""
        _, again = self._loop.inside(self._batch, at, self._marks[0])
        pairs = [(a, b) for a, b in zip(found[1], again, strict=True) if a is not None]
        return all(
            b is not None and bool(np.linalg.norm(a - b) <= SAME * np.linalg.norm(a))
            for a, b in pairs
        )


def called(model: nn.Module) -> list[nn.Module]:
    """What a step calls: the model, or those in a list of models; no scripted one, that is deaf."""
    is_list = isinstance(model, (nn.ModuleList, nn.ModuleDict))
    found = list(model.children()) if is_list else [model]
    return [part for part in found if not isinstance(part, torch.jit.ScriptModule)]


def backward_hooks(held: Iterable[Any]) -> list[tuple[int, int, Any]]:
    """The hooks through which gradients pass, of tensors and modules, by whose they are."""
    found = ((x, getattr(x, name, None)) for x in held for name in BACKWARD)
    return [(id(x), key, hook) for x, hooks in found if hooks for key, hook in hooks.items()]


@contextmanager
def seen_forwards(model: nn.Module, told: Callable[..., None]) -> Iterator[None]:
    """Told whenever a model is called, or one of those in a list of models."""
    with ExitStack() as stack:
        for part in called(model):
            handle = part.register_forward_pre_hook(Hook(told))
            stack.callback(handle.remove)
        yield


class Hook:
    """A hook that a step may save or copy with its model: what comes of that hears nothing."""

    def __init__(self, told: Callable[..., Any]) -> None:
        self._told = told

    def __call__(self, *args: Any) -> None:
        """Tell."""
        self._told(*args)

    def __reduce__(self) -> tuple[Any, tuple[()]]:
        return _deaf, ()


def _deaf() -> Callable[..., None]:
    return _nothing


def _nothing(*_: Any) -> None:
    """Nothing."""
