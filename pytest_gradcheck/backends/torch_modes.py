"""PyTorch's other modes: many cotangents at once, and the gradient as a function of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pytest_gradcheck.backends.protocol import Array, Flat

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

Flattened = Callable[[Sequence[Any]], Flat]


def batched(
    f: Flattened, point: Sequence[Tensor], stacks: Sequence[Tensor | None]
) -> list[Array | None]:
    """Gradients for a stack of cotangents, by one backward under ``vmap``."""
    with torch.inference_mode(False), torch.enable_grad():
        inputs = [x.detach().clone().requires_grad_() for x in point]
        kept, weights = _pairs(f(inputs), stacks)
        reached: list[bool] = []

        def pulled(*rows: Tensor) -> tuple[Tensor, ...]:
            grads = torch.autograd.grad(kept, inputs, rows, retain_graph=True, allow_unused=True)
            reached[:] = [g is not None for g in grads]
            return tuple(g for g in grads if g is not None)

        # Not is_grads_batched: it leaves out the rules of custom functions for vmap.
        grads = iter(torch.vmap(pulled)(*weights))
    return [next(grads).detach() if is_reached else None for is_reached in reached]


def gradient(f: Flattened, count: int) -> Callable[[Sequence[Tensor]], list[Tensor]]:
    """The gradient as a function of the inputs and, after them, of the cotangents.

    Args:
        f: The function.
        count: Number of its inputs; what follows them are cotangents, one for each output of
            floating-point or complex type.
    """

    def of_inputs(values: Sequence[Tensor]) -> list[Tensor]:
        with torch.inference_mode(False), torch.enable_grad():
            # Inside another derivative the inputs are part of its graph, else they start one.
            inputs = [x if x.requires_grad else x.detach().clone().requires_grad_() for x in values]
            flat, remaining = f(inputs[:count]), iter(inputs[count:])
            stacks = [next(remaining) if leaf.dtype else None for leaf in flat.leaves]
            kept, weights = _pairs(flat, stacks)
            grads = torch.autograd.grad(
                kept, inputs[:count], weights, create_graph=True, allow_unused=True
            )
        return [
            torch.zeros_like(x) if g is None else g
            for g, x in zip(grads, inputs[:count], strict=True)
        ]

    return of_inputs


def _pairs(flat: Flat, weights: Sequence[Tensor | None]) -> tuple[list[Tensor], list[Tensor]]:
    pairs = [
        (leaf.value, w)
        for leaf, w in zip(flat.leaves, weights, strict=True)
        if w is not None and isinstance(leaf.value, Tensor) and leaf.value.requires_grad
    ]
    return [y for y, _ in pairs], [w for _, w in pairs]
