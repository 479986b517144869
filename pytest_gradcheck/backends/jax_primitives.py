"""JAX's primitives computed by NumPy, so that a small program need not be compiled.

What is not in the tables here is run by JAX itself, one primitive at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

Compute = Callable[..., Any]

_ANY: dict[str, Compute] = {
    "add": np.add,
    "add_any": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "max": np.maximum,
    "min": np.minimum,
    "neg": np.negative,
    "abs": np.abs,
    "square": np.square,
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "not": np.invert,
    "copy": lambda x: x,
    "copy_p": lambda x: x,
    "stop_gradient": lambda x: x,
    "clamp": lambda low, x, high: np.minimum(np.maximum(x, low), high),
}
_FLOATS: dict[
    str, Compute
] = {  # of floating-point numbers only: JAX rounds and divides integers in its own way
    "div": np.divide,
    "exp": np.exp,
    "exp2": np.exp2,
    "log": np.log,
    "log1p": np.log1p,
    "expm1": np.expm1,
    "tanh": np.tanh,
    "sin": np.sin,
    "cos": np.cos,
    "sqrt": np.sqrt,
    "sign": np.sign,
    "pow": np.power,
    "is_finite": np.isfinite,
    "floor": np.floor,
    "ceil": np.ceil,
    "logistic": lambda x: 1 / (1 + np.exp(-x)),
    "rsqrt": lambda x: 1 / np.sqrt(x),
}
_REDUCTIONS = {
    "reduce_sum": np.add,
    "reduce_max": np.maximum,
    "reduce_min": np.minimum,
    "reduce_prod": np.multiply,
    "reduce_and": np.bitwise_and,
    "reduce_or": np.bitwise_or,
}


def numpy_of(eqn: Any) -> Compute | None:
    """A function of NumPy arrays that computes the one output of an equation; None for others."""
    name = eqn.primitive.name
    if name in _ANY:
        return _ANY[name]
    if name in _FLOATS:
        return _FLOATS[name] if _is_float(eqn.invars[0]) else None
    if name in _REDUCTIONS:
        return _reduction(_REDUCTIONS[name], eqn)
    maker = _MAKERS.get(name)
    return maker(eqn) if maker is not None else None


def _is_float(var: Any) -> bool:
    return bool(np.dtype(var.aval.dtype).kind == "f")


def _reduction(ufunc: np.ufunc, eqn: Any) -> Compute:
    axes, dtype = tuple(eqn.params["axes"]), eqn.outvars[0].aval.dtype
    return lambda x: ufunc.reduce(x, axis=axes, dtype=dtype)


def _integer_pow(eqn: Any) -> Compute | None:
    y = eqn.params["y"]
    if not _is_float(eqn.invars[0]):
        return None
    if y < 0:
        return lambda x: 1 / x**-y
    if y in (2, 3):
        return (lambda x: x * x) if y == 2 else (lambda x: x * x * x)
    return lambda x: x**y


def _select(eqn: Any) -> Compute | None:
    if len(eqn.invars) != 3 or np.dtype(eqn.invars[0].aval.dtype).kind != "b":
        return None
    return lambda which, a, b: np.where(which, b, a)


def _broadcast(eqn: Any) -> Compute | None:
    shape, spots = tuple(eqn.params["shape"]), tuple(eqn.params["broadcast_dimensions"])
    if len(eqn.invars) != 1:
        return None
    inner = [1] * len(shape)
    for spot, extent in zip(spots, eqn.invars[0].aval.shape, strict=True):
        inner[spot] = extent
    return lambda x: np.broadcast_to(np.reshape(x, inner), shape)


def _reshape(eqn: Any) -> Compute | None:
    shape = tuple(eqn.outvars[0].aval.shape)
    if eqn.params.get("dimensions") is not None:
        return None
    return lambda x: np.reshape(x, shape)


def _transpose(eqn: Any) -> Compute:
    order = tuple(eqn.params["permutation"])
    return lambda x: np.transpose(x, order)


def _convert(eqn: Any) -> Compute | None:
    dtype = np.dtype(eqn.outvars[0].aval.dtype)
    before = np.dtype(eqn.invars[0].aval.dtype)
    if before.kind == "f" and dtype.kind != "f":
        return None
    return lambda x: np.asarray(x).astype(dtype)


def _concatenate(eqn: Any) -> Compute:
    axis = eqn.params["dimension"]
    return lambda *xs: np.concatenate(xs, axis=axis)


def _slice(eqn: Any) -> Compute:
    p = eqn.params
    strides = p["strides"] or (1,) * len(p["start_indices"])
    spot = tuple(map(slice, p["start_indices"], p["limit_indices"], strides))
    return lambda x: x[spot]


def _iota(eqn: Any) -> Compute | None:
    aval, axis = eqn.outvars[0].aval, eqn.params["dimension"]
    if eqn.invars:
        return None
    along = np.arange(aval.shape[axis], dtype=aval.dtype)
    made = np.broadcast_to(along.reshape([-1] + [1] * (len(aval.shape) - axis - 1)), aval.shape)
    return lambda: made


def _dot(eqn: Any) -> Compute:
    """A product as one of stacked matrices: kept axes, then summed ones."""
    (left, right), (rows, columns) = eqn.params["dimension_numbers"]
    a, b = (v.aval.shape for v in eqn.invars)
    keep = [n for n in range(len(a)) if n not in (*left, *rows)]
    other = [n for n in range(len(b)) if n not in (*right, *columns)]
    order_a, order_b = (*rows, *keep, *left), (*columns, *right, *other)
    stack = [a[n] for n in rows]
    inner = math.prod(a[n] for n in left)
    shape_a = (*stack, math.prod(a[n] for n in keep), inner)
    shape_b = (*stack, inner, math.prod(b[n] for n in other))
    shape, dtype = eqn.outvars[0].aval.shape, eqn.outvars[0].aval.dtype

    def product(x: Any, y: Any) -> Any:
        x, y = x.transpose(order_a).reshape(shape_a), y.transpose(order_b).reshape(shape_b)
        return np.matmul(x, y).reshape(shape).astype(dtype, copy=False)

    return product


_MAKERS: dict[str, Callable[[Any], Compute | None]] = {
    "integer_pow": _integer_pow,
    "select_n": _select,
    "broadcast_in_dim": _broadcast,
    "reshape": _reshape,
    "squeeze": _reshape,
    "expand_dims": _reshape,
    "transpose": _transpose,
    "convert_element_type": _convert,
    "concatenate": _concatenate,
    "slice": _slice,
    "iota": _iota,
    "dot_general": _dot,
}
