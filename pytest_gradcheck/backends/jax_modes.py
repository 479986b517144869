"""JAX's other modes: forward, many cotangents or points at once, the gradient as a function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from pytest_gradcheck.backends.jax_arrays import handed, hosted
from pytest_gradcheck.backends.jax_runs import Runs, differentiable
from pytest_gradcheck.backends.protocol import Array, Function

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these


def forward(
    runs: Runs, f: Function, point: Sequence[Array], tangents: Sequence[Array]
) -> list[Array]:
    """Tangents of the outputs that can be differentiated, by ``jax.jvp``."""
    flat = differentiable(f)

    def moved(x: Any, v: Any) -> Any:
        return jax.jvp(flat, tuple(x), tuple(v))[1]

    run = runs.whole(f, point, "forward", moved)
    return [hosted(t) for t in run(_handed(point), _handed(tangents))]


def batched(
    runs: Runs, f: Function, point: Sequence[Array], stacks: Sequence[Array | None]
) -> list[Array | None]:
    """Gradients for a stack of cotangents, by ``jax.vmap`` of the pullback."""
    flat = differentiable(f)

    def pulled(x: Any, weights: Any) -> Any:
        _, pull = jax.vjp(flat, *x)
        return jax.vmap(lambda rows: pull(rows))(weights)

    run = runs.whole(f, point, "batched", pulled)
    return [hosted(g) for g in run(_handed(point), _handed(stacks))]


def each(
    f: Function, points: Sequence[Array], stacks: Sequence[Array | None]
) -> list[Array | None]:
    """Gradients at a stack of points, each with its own cotangents, by ``jax.vmap``."""
    flat = differentiable(f)

    def pulled(x: Any, weights: Any) -> Any:
        return jax.vjp(flat, *x)[1](weights)

    return [hosted(g) for g in jax.vmap(pulled)(_handed(points), _handed(stacks))]


def gradient(f: Function, count: int) -> Callable[[Sequence[Any]], list[Any]]:
    """The gradient as a function of the inputs and, after them, of the cotangents."""

    def of_inputs(values: Sequence[Any]) -> list[Any]:
        outputs, pull = jax.vjp(differentiable(f), *values[:count])
        pairs = zip(values[count:], outputs, strict=True)
        # An output may stay in its own precision while everything else is promoted.
        return list(pull([jnp.asarray(w).astype(y.dtype) for w, y in pairs]))

    return of_inputs


def _handed(values: Sequence[Array | None]) -> list[Any]:
    return [handed(x) for x in values if x is not None]
