"""How the gradient changes over the time steps of PyTorch's fused recurrent layers.

Their states are inside one operation; what can be seen is the gradient with respect to the input at
each step, which reaches back through the states of all later ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

LEAST = 4  # time steps


class Times:
    """Gradients at the first and the last time step of each recurrent layer."""

    def __init__(self) -> None:
        self._ends: dict[str, tuple[Tensor, Tensor]] = {}
        self.leaves: list[Tensor] = []  # inputs that have no gradient by themselves

    def watch(self, name: str, part: nn.RNNBase) -> Callable[[], None]:
        """Look at a layer's input until what is returned is called."""

        def enter(module: nn.Module, args: Any) -> Any:
            x = args[0]
            if not isinstance(x, Tensor) or x.ndim != 3 or not torch.is_grad_enabled():
                return None
            x = x if x.requires_grad else self._recorded(x)
            axis = 1 if part.batch_first else 0
            if x.shape[axis] >= LEAST and name not in self._ends:
                x.register_hook(lambda g: self._note(name, g, axis))
            return (x, *args[1:])

        remove: Callable[[], None] = part.register_forward_pre_hook(enter).remove
        return remove

    def _recorded(self, x: Tensor) -> Tensor:
        self.leaves.append(x.detach().requires_grad_())
        return self.leaves[-1].clone()  # not the leaf itself: it may be written into

    def _note(self, name: str, gradient: Tensor, axis: int) -> None:
        first, last = (gradient.select(axis, n).detach().double().norm() for n in (0, -1))
        self._ends[name] = (first, last)

    def fades(self) -> tuple[tuple[str, float], ...]:
        """Log10 of the first over the last, by layer."""
        pairs = {name: (float(a), float(b)) for name, (a, b) in self._ends.items()}
        known = {n: (a, b) for n, (a, b) in pairs.items() if a > 0 and 0 < b < math.inf}
        return tuple((n, math.log10(a) - math.log10(b)) for n, (a, b) in known.items())
