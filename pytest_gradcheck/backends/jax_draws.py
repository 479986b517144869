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
# Those that choose: rounding of the chances makes no other numbers of them, as a rule.
_CHOSEN = ("bernoulli", "rademacher", "categorical", "choice")
_NARROW = {"float64": "float32", "int64": "int32"}


@contextmanager
def narrow() -> Iterator[None]:
    """What is drawn in 64 bits is drawn in 32: from one key, JAX gives other numbers in each."""
    own = {name: getattr(jax.random, name) for name in (*_DRAWN, *_CHOSEN)}
    drawn = {name: _narrowed(own[name], default) for name, default in _DRAWN.items()}
    drawn["bernoulli"] = _bernoulli(own["bernoulli"], drawn["uniform"])
    drawn["rademacher"] = _rademacher(own["rademacher"], drawn["bernoulli"])
    drawn["categorical"] = _by_chances(own["categorical"])
    drawn["choice"] = _choice(own["choice"], drawn["randint"])
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


@functools.cache
def _rademacher(function: Callable[..., Any], bernoulli: Callable[..., Any]) -> Callable[..., Any]:
    """By the same chances of one half; of another precision as it is."""

    @functools.wraps(function)
    def drawn(key: Any, shape: Any = (), dtype: Any = None, **named: Any) -> Any:
        if named:
            return function(key, shape, dtype, **named)
        chosen = 2 * bernoulli(key, np.float64(0.5), shape) - 1
        return chosen.astype(jnp.result_type(int if dtype is None else dtype))

    return drawn


@functools.cache
def _by_chances(function: Callable[..., Any]) -> Callable[..., Any]:
    """With the chances in float32."""

    @functools.wraps(function)
    def drawn(key: Any, logits: Any, *args: Any, **named: Any) -> Any:
        return function(key, _rounded(logits), *args, **named)

    return drawn


@functools.cache
def _choice(function: Callable[..., Any], randint: Callable[..., Any]) -> Callable[..., Any]:
    """With the chances in float32, or by the same whole numbers."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def drawn(*args: Any, **named: Any) -> Any:
        given = signature.bind(*args, **named)
        given.apply_defaults()
        values = given.arguments
        key, among, shape, axis = (values[name] for name in ("key", "a", "shape", "axis"))
        if values["p"] is not None:
            values["p"] = _rounded(values["p"])
        elif values["replace"] and jnp.size(among):
            count = int(among) if jnp.ndim(among) == 0 else jnp.shape(among)[axis]
            places = randint(key, shape, 0, count)
            return places if jnp.ndim(among) == 0 else jnp.take(among, places, axis)
        return function(*given.args, **given.kwargs)

    return drawn


def _rounded(x: Any) -> Any:
    """Numbers that are not of a precision in 64 bits are of one in 32."""
    return jnp.asarray(x, jnp.float32) if jnp.result_type(x, np.float32) == jnp.float64 else x
