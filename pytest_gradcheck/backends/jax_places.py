"""JAX: another transformation in the place of the user's, wherever a step holds it.

And stand-ins for what a transformation is given beside gradients, where it is asked alone.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FunctionType
from typing import Any

import jax
import jax.numpy as jnp

from pytest_gradcheck.backends.reach import names_of

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these


def _paraboloid(slope: Any, start: Any) -> Callable[[Any], Any]:
    """A function with a given slope at a start, which a line search can go along."""

    def value(params: Any) -> Any:
        moved = jax.tree.map(lambda x, y: x - y, params, start)
        parts = jax.tree.map(lambda g, d: jnp.sum(g * d + d * d / 2), slope, moved)
        return sum(jax.tree.leaves(parts))

    return value


# What optax hands on by name (``GradientTransformationExtraArgs``), made of a gradient and
# parameters: something of the kind, where only the same twice is needed.
STAND_INS: dict[str, Callable[[Any, Any], Any]] = {
    "value": lambda slope, start: jnp.zeros(()),
    "grad": lambda slope, start: slope,
    "value_fn": _paraboloid,
}


def with_update(tx: Any, update: Callable[..., Any]) -> Any:
    """The same transformation with another ``update``."""
    return tx._replace(update=update) if hasattr(tx, "_replace") else _Proxy(tx, update)


@contextmanager
def replaced(step: Any, old: Any, new: Any) -> Iterator[None]:
    """Another transformation wherever a step holds one: closures, named globals, attributes."""
    swaps = {id(old): new, id(old.update): new.update}
    with ExitStack() as stack:
        for place, kept in _places(step, swaps):
            place(swaps[id(kept)])
            stack.callback(place, kept)
        yield


def _places(step: Any, swaps: dict[int, Any]) -> list[tuple[Callable[[Any], None], Any]]:
    found: list[tuple[Callable[[Any], None], Any]] = []
    seen: set[int] = set()
    pending = [step]
    while pending and len(seen) < 500:
        value = pending.pop()
        if id(value) in seen or isinstance(value, type(sys)):
            continue
        seen.add(id(value))
        for place, inner in _held(value):
            if id(inner) in swaps:
                found.append((place, inner))
            elif callable(inner) or hasattr(inner, "__dict__"):
                pending.append(inner)
    return found


def _held(value: Any) -> Iterator[tuple[Callable[[Any], None], Any]]:
    if isinstance(value, FunctionType):
        for cell in value.__closure__ or ():
            try:
                yield functools.partial(setattr, cell, "cell_contents"), cell.cell_contents
            except ValueError:  # a name that is bound later
                continue
        for name in names_of(value.__code__):
            if name in value.__globals__:
                place = functools.partial(value.__globals__.__setitem__, name)
                yield place, value.__globals__[name]
    for name in ("__wrapped__", "__func__", "__self__", "func"):
        inner = getattr(value, name, None)
        if inner is not None and not isinstance(value, type):
            yield (lambda _: None), inner
    for name, inner in list(getattr(value, "__dict__", {}).items()):
        if not isinstance(value, (type, FunctionType)):
            yield functools.partial(object.__setattr__, value, name), inner


class _Proxy:
    """A transformation that is no named tuple, with another ``update``."""

    def __init__(self, tx: Any, update: Any) -> None:
        self._tx = tx
        self.update = update

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tx, name)
