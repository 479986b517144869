"""PyTorch's other modes: many cotangents or points at once, the gradient as a function."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pytest_gradcheck.backends.protocol import Array, Flat
from pytest_gradcheck.backends.torch_flags import products

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

Flattened = Callable[[Sequence[Any]], Flat]


def batched(
    f: Flattened, point: Sequence[Tensor], stacks: Sequence[Tensor | None]
) -> list[Array | None]:
    """Gradients for a stack of cotangents, by one backward under ``vmap``."""
    with torch.inference_mode(False), torch.enable_grad():
        inputs = [x.detach().clone().requires_grad_() for x in point]
        kept, weights = _pairs(f(inputs), stacks)
        if not kept:
            return [None] * len(inputs)
        reached: list[bool] = []

        def pulled(*rows: Tensor) -> tuple[Tensor, ...]:
            grads = torch.autograd.grad(kept, inputs, rows, retain_graph=True, allow_unused=True)
            reached[:] = [g is not None for g in grads]
            return tuple(g for g in grads if g is not None)

        # Not is_grads_batched: it leaves out the rules of custom functions for vmap.
        grads = iter(torch.vmap(pulled, randomness="same")(*weights))
    return [next(grads).detach() if is_reached else None for is_reached in reached]


def each(
    f: Flattened, points: Sequence[Tensor], stacks: Sequence[Tensor | None]
) -> list[Array | None]:
    """Gradients at a stack of points, each with its own cotangents, by ``vmap`` over ``vjp``."""
    spots = [w is not None for w in stacks]

    def picked(*x: Tensor) -> tuple[Any, ...]:
        leaves = f(x).leaves
        return tuple(leaf.value for leaf, is_kept in zip(leaves, spots, strict=True) if is_kept)

    def pulled(x: Sequence[Tensor], weights: Sequence[Tensor]) -> Any:
        return torch.func.vjp(picked, *x)[1](tuple(weights))

    with torch.inference_mode(False), torch.enable_grad():
        weights = [w for w in stacks if w is not None]
        grads = torch.vmap(pulled, randomness="same")([x.clone() for x in points], weights)
    return [g.detach() for g in grads]


def gradient(f: Flattened, count: int) -> Callable[[Sequence[Tensor]], list[Tensor]]:
    """The gradient as a function of the inputs and, after them, of the cotangents.

    Args:
        f: The function.
        count: Number of its inputs; what follows them are cotangents, one for each output of
            floating-point or complex type.
    """

    def of_inputs(values: Sequence[Tensor]) -> list[Tensor]:
        is_recorded = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.enable_grad():
            # Inside another derivative the inputs are part of its graph, else they start one.
            inputs = [x if x.requires_grad else x.detach().clone().requires_grad_() for x in values]
            flat, remaining = f(inputs[:count]), iter(inputs[count:])
            stacks = [next(remaining) if leaf.dtype else None for leaf in flat.leaves]
            grads = _pulled(flat, inputs[:count], stacks, is_recorded)
        if is_recorded:
            _require_differentiable(grads)
        return [g if is_recorded else g.detach() for g in grads]

    return of_inputs


def _pulled(
    flat: Flat, inputs: Sequence[Tensor], stacks: Sequence[Tensor | None], is_recorded: bool
) -> list[Tensor]:
    kept, weights = _pairs(flat, stacks)
    if not kept:
        return [torch.zeros_like(x) for x in inputs]
    grads = torch.autograd.grad(kept, inputs, weights, create_graph=is_recorded, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for g, x in zip(grads, inputs, strict=True)]


def _pairs(flat: Flat, weights: Sequence[Tensor | None]) -> tuple[list[Tensor], list[Tensor]]:
    pairs = [
        # An output may stay in its own precision while everything else is promoted.
        (leaf.value, w if w.dtype == leaf.value.dtype else w.to(leaf.value.dtype))
        for leaf, w in zip(flat.leaves, weights, strict=True)
        if w is not None and isinstance(leaf.value, Tensor) and leaf.value.requires_grad
    ]
    return [y for y, _ in pairs], [w for _, w in pairs]


def _require_differentiable(grads: Sequence[Tensor]) -> None:
    """Raise where ``once_differentiable`` cut the graph: torch itself would give no gradient."""
    for node in _nodes([g.grad_fn for g in grads]):
        if node.name() == "torch::autograd::Error":
            raise RuntimeError(
                "trying to differentiate twice a function that was marked with @once_differentiable"
            )


def _nodes(roots: Sequence[Any]) -> Iterator[Any]:
    """Every node of the graph behind some results, each once."""
    pending = [node for node in roots if node is not None]
    seen = set(pending)
    while pending:
        node = pending.pop()
        yield node
        following = {child for child, _ in node.next_functions if child is not None} - seen
        seen |= following
        pending += following


def lowered(f: Callable[[Sequence[Any]], Any], point: Sequence[Tensor]) -> tuple[str, ...]:
    """Precisions that operations return or multiply in, lower than one they are given."""
    seen = _Lowered()
    try:
        with torch.no_grad(), seen:
            f([x.detach().clone() for x in point])
    except Exception:  # a function that the mode cannot run under: nothing is seen
        return ()
    return tuple(sorted(seen.found))


class _Lowered(TorchDispatchMode):  # type: ignore[misc]  # torch is not followed
    """Sees every operation; notes precisions below those of its arguments, returned or inside."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        reals = [x for x in tree_leaves((args, kwargs)) if _is_real(x)]
        given = [torch.finfo(x.dtype).eps for x in reals]
        self.found.update(filter(None, (products(func.__name__, x) for x in reals)))
        for y in filter(_is_real, tree_leaves(result)):
            if given and torch.finfo(y.dtype).eps > min(given):
                self.found.add(torch.finfo(y.dtype).dtype)
        return result


def uncast(f: Callable[[Sequence[Any]], Any]) -> Callable[[Sequence[Any]], Any]:
    """A function without its casts to lower precisions: what it would be in exact arithmetic."""

    def clean(point: Sequence[Any]) -> Any:
        with _Uncast():
            return f(point)

    return clean


class _Uncast(TorchDispatchMode):  # type: ignore[misc]  # torch is not followed
    """Copies where a tensor would be cast to a lower precision."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default and _is_real(args[0]):
            wanted = kwargs.get("dtype")
            if _is_lower(wanted, args[0].dtype):
                return args[0].clone()
        return func(*args, **kwargs)


def _is_lower(wanted: torch.dtype | None, given: torch.dtype) -> bool:
    is_real = wanted is not None and (wanted.is_floating_point or wanted.is_complex)
    return is_real and torch.finfo(wanted).eps > torch.finfo(given).eps


def _is_real(x: Any) -> bool:
    return isinstance(x, Tensor) and (x.is_floating_point() or x.is_complex())
