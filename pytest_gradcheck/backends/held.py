"""What plain Python may change in a call: cells of closures, named globals, containers."""

from __future__ import annotations

import functools
import operator
from collections import deque
from collections.abc import Callable, Iterable
from types import FunctionType
from typing import Any

from pytest_gradcheck.backends.reach import names_of


def bindings(carried: Iterable[Any]) -> list[Any]:
    """Those of what functions carry along that hold names or items."""
    return [v for v in carried if isinstance(v, (FunctionType, dict, list, set, deque))]


def held_bindings(carried: Iterable[Any]) -> list[Callable[[], None]]:
    """Restorers of the names and containers that functions carry along."""
    restorers: list[Callable[[], None]] = []
    for value in bindings(carried):
        if isinstance(value, FunctionType):
            restorers += [*_cells(value), *_globals(value)]
        else:
            restorers.append(_container(value))
    return restorers


def _cells(function: FunctionType) -> list[Callable[[], None]]:
    found: list[Callable[[], None]] = []
    for cell in function.__closure__ or ():
        try:
            kept = cell.cell_contents
        except ValueError:  # a name that is bound later
            continue
        found.append(functools.partial(setattr, cell, "cell_contents", kept))
    return found


def _globals(function: FunctionType) -> list[Callable[[], None]]:
    names = [n for n in names_of(function.__code__) if n in function.__globals__]
    kept = {n: function.__globals__[n] for n in names}
    return [lambda: _rebind(function.__globals__, kept)]


def _rebind(space: dict[str, Any], kept: dict[str, Any]) -> None:
    for name, value in kept.items():
        if space.get(name) is not value:
            space[name] = value


def _container(value: Any) -> Callable[[], None]:
    if isinstance(value, dict):
        return functools.partial(_reset, value, dict(value))
    kept = list(value)

    def restore() -> None:
        if len(value) != len(kept) or not all(map(operator.is_, value, kept)):
            value.clear()
            value.update(kept) if isinstance(value, set) else value.extend(kept)

    return restore


def _reset(value: dict[Any, Any], kept: dict[Any, Any]) -> None:
    if value or kept:
        is_kept = all(map(operator.is_, value.values(), kept.values()))
        if not (is_kept and len(value) == len(kept) and all(map(operator.is_, value, kept))):
            value.clear()
            value.update(kept)
