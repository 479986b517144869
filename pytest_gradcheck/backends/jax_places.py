"""JAX: another transformation in the place of the user's, wherever a step holds it.

And stand-ins for what a transformation is given beside gradients, where it is asked alone.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FunctionType
from typing import Any

import jax
import jax.numpy as jnp

from pytest_gradcheck.backends.reach import names_of

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these


Place = Callable[[Any], None]
MOST = 50  # entries of a container that is looked into


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
    """Another transformation wherever a step holds one.

    In closures, named globals, defaults, arguments of partials, attributes and containers.
    """
    swaps = {id(old): new, id(old.update): new.update}
    with ExitStack() as stack:
        for place, kept in _places(step, swaps):
            place(_swapped(kept, swaps))
            stack.callback(place, kept)
        yield


def forget(step: Any) -> None:
    """Forget what was compiled of a step and of what it holds."""
    for _, inner in [(None, step), *_places(step, {}, is_all=True)]:
        if type(inner).__name__ == "PjitFunction":
            inner.clear_cache()


def _swapped(kept: Any, swaps: dict[int, Any]) -> Any:
    """What stands in the place; None where nothing does. A compiled update is compiled anew."""
    if id(kept) in swaps:
        return swaps[id(kept)]
    if isinstance(kept, tuple) and len(kept) <= MOST:
        made = [_swapped(inner, swaps) for inner in kept]
        pairs = [old if new is None else new for old, new in zip(kept, made, strict=True)]
        if all(new is None for new in made):
            return None
        return type(kept)(*pairs) if hasattr(kept, "_fields") else tuple(pairs)
    inner = getattr(kept, "__wrapped__", None) if type(kept).__name__ == "PjitFunction" else None
    return jax.jit(swaps[id(inner)]) if id(inner) in swaps else None


def of_state(value: Any, old: Any, new: Any, depth: int = 4) -> Any:
    """The same state with another transformation where a train state carries it along."""
    if value is old or not depth:
        return new if value is old else value
    if isinstance(value, dict):
        return _alike(value, {k: of_state(v, old, new, depth - 1) for k, v in value.items()})
    if type(value) in (tuple, list):
        return _alike(value, type(value)(of_state(v, old, new, depth - 1) for v in value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        held = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init}
        moved = {k: new for k, v in held.items() if v is old}
        return dataclasses.replace(value, **moved) if moved else value
    own = getattr(value, "__dict__", {})
    if not isinstance(value, type):  # an optimizer of nnx: it is set back after the call
        own.update({k: new for k, v in list(own.items()) if v is old})
    return value


def _alike(value: Any, made: Any) -> Any:
    """What was made, or the value itself where nothing in it is another."""
    pairs = zip(value.values(), made.values(), strict=True) if isinstance(value, dict) else None
    return value if all(a is b for a, b in pairs or zip(value, made, strict=True)) else made


def _places(step: Any, swaps: dict[int, Any], is_all: bool = False) -> list[tuple[Place, Any]]:
    found: list[tuple[Place, Any]] = []
    seen: set[int] = set()
    pending = [step]
    while pending and len(seen) < 500:
        value = pending.pop()
        if id(value) in seen or isinstance(value, type(sys)):
            continue
        seen.add(id(value))
        for place, inner in _held(value):
            is_ours = place is not _nowhere and _swapped(inner, swaps) is not None
            if is_ours or is_all:
                found.append((place, inner))
            if is_ours:
                continue
            if callable(inner) or hasattr(inner, "__dict__") or _is_container(inner):
                pending.append(inner)
    return found


def _held(value: Any) -> Iterator[tuple[Place, Any]]:
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
        for i, inner in enumerate(value.__defaults__ or ()):
            yield functools.partial(_set_default, value, i), inner
        yield _nowhere, value.__kwdefaults__ or {}
    elif isinstance(value, functools.partial):
        for i, inner in enumerate(value.args):
            yield functools.partial(_set_argument, value, i), inner
        yield _nowhere, value.keywords
    elif isinstance(value, (dict, list)):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in list(pairs):
            yield functools.partial(value.__setitem__, key), inner
    elif isinstance(value, tuple):
        for inner in value:
            yield _nowhere, inner
    elif isinstance(own := inspect.getattr_static(type(value), "__call__", None), FunctionType):
        yield _nowhere, own
    for name in ("__wrapped__", "__func__", "__self__", "func"):
        inner = getattr(value, name, None)
        if inner is not None and not isinstance(value, type):
            yield _nowhere, inner
    for name, inner in list(getattr(value, "__dict__", {}).items()):
        if not isinstance(value, (type, FunctionType)):
            yield functools.partial(object.__setattr__, value, name), inner


def _nowhere(_: Any) -> None:
    """The place of what cannot be replaced, but may hold what can."""


def _is_container(value: Any) -> bool:
    return isinstance(value, (dict, list, tuple)) and 0 < len(value) <= MOST


def _set_default(function: FunctionType, i: int, value: Any) -> None:
    given = function.__defaults__ or ()
    function.__defaults__ = (*given[:i], value, *given[i + 1 :])


def _set_argument(partial: functools.partial[Any], i: int, value: Any) -> None:
    given = (*partial.args[:i], value, *partial.args[i + 1 :])
    partial.__setstate__((partial.func, given, partial.keywords, partial.__dict__))  # type: ignore[attr-defined]  # the one way to change it where it is


def first_state(transformation: Any, params: Any) -> Any:
    """The state at the start where the user gives none; None for parameters of another kind."""
    try:
        return transformation.init(params)
    except Exception:  # a train state that holds both, which needs none
        return None


def nodes(state: Any, depth: int = 4) -> Iterator[Any]:
    """A state, and what lies inside of it."""
    yield state
    if depth and isinstance(state, (tuple, list)):
        for inner in state:
            yield from nodes(inner, depth - 1)


def gathers(state: Any) -> bool | None:
    """Whether a transformation that gathers gradients has not got them all; None for others."""
    own = [x for x in nodes(state) if type(x).__name__ == "MultiStepsState"]
    return int(own[0].mini_step) != 0 if own else None


class _Proxy:
    """A transformation that is no named tuple, with another ``update``."""

    def __init__(self, tx: Any, update: Any) -> None:
        self._tx = tx
        self.update = update

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tx, name)
