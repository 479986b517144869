"""JAX's other modes: forward, many cotangents or points at once, the gradient as a function."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp

from pytest_gradcheck.backends.jax_arrays import handed, hosted
from pytest_gradcheck.backends.jax_contracts import equations
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


def lowered(f: Function, point: Sequence[Array]) -> tuple[str, ...]:
    """Precisions that primitives return and that are lower than one they are given."""
    try:
        program = jax.make_jaxpr(differentiable(f))(*_handed(point))
    except Exception:  # what cannot be traced cannot be seen
        return ()
    return tuple(sorted({name for e in equations(program.jaxpr) for name in lowered_by(e)}))


def lowered_by(equation: Any) -> Iterator[str]:
    """Precisions that a primitive returns or multiplies in, lower than one it is given."""
    if equation.primitive.name == "reduce_precision":
        bits = equation.params["mantissa_bits"]
        yield next((name for name, most in _MANTISSA if bits <= most), "float64")
        return
    yield from _products(equation)
    given = [_unit(v) for v in equation.invars if _unit(v)]
    for v in equation.outvars:
        if given and _unit(v) > min(given):
            yield str(jnp.finfo(v.aval.dtype).dtype)


def _products(equation: Any) -> Iterator[str]:
    """The precision of products of float32 numbers on an accelerator, if lower (JAX's default)."""
    if equation.primitive.name not in ("dot_general", "conv_general_dilated"):
        return
    narrow = all(_unit(v) == float(jnp.finfo("float32").eps) for v in equation.invars)
    if narrow and (name := _rounded(equation.params.get("precision"))):
        yield name


def rounded() -> str:
    """The precision of products of float32 numbers where nothing is asked for; empty if theirs."""
    return _rounded(jax.config.jax_default_matmul_precision)


def _rounded(asked: Any) -> str:
    words = str(asked).upper()
    is_full = "HIGHEST" in words or words in _IN_FULL
    return "" if is_full else _PRODUCTS.get(jax.default_backend(), "")


def doubt() -> float:
    """By what a gradient may differ from the same one of another program, by its products."""
    # Which kernels XLA takes for a product hangs on the program, and so how it is rounded.
    return {"": 0.0, "tensorfloat32": 4 * 2.0**-10, "bfloat16": 4 * 2.0**-7}[rounded()]


def exactly() -> AbstractContextManager[None] | None:
    """Products of float32 numbers in full for a while; None where they are."""
    return jax.default_matmul_precision("highest") if rounded() else None


_IN_FULL = ("FLOAT32", "F32_F32_F32", "F64_F64_F64")
_PRODUCTS = {"gpu": "tensorfloat32", "tpu": "bfloat16"}
_MANTISSA = (("bfloat16", 7), ("float16", 10), ("float32", 23))


def _unit(v: Any) -> float:
    dtype = getattr(v.aval, "dtype", None)
    return float(jnp.finfo(dtype).eps) if dtype is not None and _is_real(dtype) else 0.0


def _is_real(dtype: Any) -> bool:
    return bool(jnp.issubdtype(dtype, jnp.inexact))
