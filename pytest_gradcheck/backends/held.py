"""What plain Python may change in a call: closures, named globals, containers, attributes."""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Callable, Iterable
from types import CellType, FunctionType
from typing import Any

from pytest_gradcheck.backends.reach import attributes, names_of


class Bindings:
    """The names, containers and attributes that functions carry along: found once, held often.

    Args:
        carried: All that functions carry along.
        also: Further containers.
    """

    def __init__(self, carried: Iterable[Any], also: Iterable[Any] = ()) -> None:
        found = list(carried)
        functions = [v for v in found if isinstance(v, FunctionType)]
        self._cells = [cell for f in functions for cell in f.__closure__ or ()]
        self._named = [(f.__globals__, names_of(f.__code__)) for f in functions]
        containers = [v for v in found if isinstance(v, (dict, list, set, deque))]
        held = (*containers, *attributes(found), *also)
        self._containers = list({id(v): v for v in held}.values())

    def held(self) -> list[Callable[[], None]]:
        """Restorers of what they are now."""
        return [*map(_contained, self._cells), self._globals(), self._contents()]

    def _globals(self) -> Callable[[], None]:
        kept = [
            (space, {name: space[name] for name in names if name in space})
            for space, names in self._named
        ]

        def restore() -> None:
            for space, values in kept:
                for name, value in values.items():
                    if space.get(name) is not value:
                        space[name] = value

        return restore

    def _contents(self) -> Callable[[], None]:
        kept = [(value, _copy(value)) for value in self._containers if value]
        empty = [value for value in self._containers if not value]  # of modules, nearly all

        def restore() -> None:
            for value, copy in kept:
                if not _is_same(value, copy):
                    _refill(value, copy)
            for value in empty:
                if value:
                    value.clear()

        return restore


def held_bindings(carried: Iterable[Any]) -> list[Callable[[], None]]:
    """Restorers of the names and containers that functions carry along."""
    return Bindings(carried).held()


def _contained(cell: CellType) -> Callable[[], None]:
    try:
        kept = cell.cell_contents
    except ValueError:  # a name that is bound later
        return lambda: None
    return lambda: setattr(cell, "cell_contents", kept)


def _copy(value: Any) -> Any:
    return dict(value) if isinstance(value, dict) else list(value)


def _is_same(value: Any, copy: Any) -> bool:
    """Whether a container holds the objects of a copy, in their order."""
    if len(value) != len(copy) or not all(map(operator.is_, value, copy)):
        return False
    return not isinstance(value, dict) or all(map(operator.is_, value.values(), copy.values()))


def _refill(value: Any, copy: Any) -> None:
    value.clear()
    if isinstance(value, (dict, set)):
        value.update(copy)
    else:
        value.extend(copy)
