"""JAX: the random numbers of a loss in float64, which are those that float32 draws."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Those with a precision among their arguments, and what it is where none is given.
_DRAWN: dict[str, type] = {
    "uniform": float, "normal": float, "truncated_normal": float, "gumbel": float,
    "exponential": float, "laplace": float, "logistic": float, "cauchy": float, "randint": int,
}  # fmt: skip
_NARROW = {"float64": "float32", "int64": "int32"}


@contextmanager
def narrow() -> Iterator[None]:
    """What is drawn in 64 bits is drawn in 32: from one key, JAX gives other numbers in each."""
    own = {name: getattr(jax.random, name) for name in (*_DRAWN, "bernoulli")}
    drawn = {name: _narrowed(own[name], default) for name, default in _DRAWN.items()}
    drawn["bernoulli"] = _bernoulli(own["bernoulli"], drawn["uniform"])
    try:
        for name, function in drawn.items():
            setattr(jax.random, name, function)
        # What is compiled so is not what the user compiles in 64 bits: no program serves both.
        with jax.default_matmul_precision("highest"):
            yield
    finally:
        for name, function in own.items():
            setattr(jax.random, name, function)


@functools.cache
def _narrowed(function: Callable[..., Any], default: type) -> Callable[..., Any]:
    signature = inspect.signature(function)

    @functools.wraps(function)
    def drawn(*args: Any, **named: Any) -> Any:
        given = signature.bind(*args, **named)
        wanted = jnp.result_type(given.arguments.get("dtype") or default)
        if wanted.name not in _NARROW:
            return function(*args, **named)
        given.apply_defaults()
        numbers = given.arguments.items()  # a bound in 64 bits would be rounded inside
        given.arguments |= {k: np.float32(x) for k, x in numbers if type(x) is float}
        given.arguments["dtype"] = jnp.dtype(_NARROW[wanted.name])
        return function(*given.args, **given.kwargs).astype(wanted)

    return drawn


@functools.cache
def _bernoulli(function: Callable[..., Any], uniform: Callable[..., Any]) -> Callable[..., Any]:
    """By the same uniform numbers; a rarer way of drawing is left as it is."""

    @functools.wraps(function)
    def drawn(key: Any, p: Any = 0.5, shape: Any = None, *args: Any, **named: Any) -> Any:
        if args or named or jnp.result_type(p) != jnp.float64:
            return function(key, p, shape, *args, **named)
        return uniform(key, jnp.shape(p) if shape is None else shape) < p

    return drawn
