"""JAX's other modes: many cotangents at once, and the gradient as a function of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax

from pytest_gradcheck.backends.jax_arrays import handed, hosted
from pytest_gradcheck.backends.jax_runs import differentiable
from pytest_gradcheck.backends.protocol import Array, Function

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these


def batched(
    f: Function, point: Sequence[Array], stacks: Sequence[Array | None]
) -> list[Array | None]:
    """Gradients for a stack of cotangents, by ``jax.vmap`` of the pullback."""
    _, pull = jax.vjp(differentiable(f), *map(handed, point))
    weights = [handed(w) for w in stacks if w is not None]
    return [hosted(g) for g in jax.vmap(pull)(weights)]


def gradient(f: Function, count: int) -> Callable[[Sequence[Any]], list[Any]]:
    """The gradient as a function of the inputs and, after them, of the cotangents."""

    def of_inputs(values: Sequence[Any]) -> list[Any]:
        _, pull = jax.vjp(differentiable(f), *values[:count])
        return list(pull(list(values[count:])))

    return of_inputs
