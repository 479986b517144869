"""What functions carry along: closures, bound instances, partials, the globals that they name."""

from __future__ import annotations

import dis
import functools
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np

REACH = (
    2000  # objects looked at: a search through a whole application would cost more than the check
)


STREAMS = "torch.utils.data"  # what its workers have sent cannot be asked for again
_PLAIN = frozenset({str, bytes, bool, int, float, complex, type(None), type, ModuleType})
# What holds other things and has no state of its own that a guard could put back.
_CONTAINERS = frozenset(
    {FunctionType, BuiltinFunctionType, MethodType, functools.partial, list, tuple, set, dict}
)


def reachable(roots: Iterable[Any], depth: int = 4) -> list[Any]:
    """Objects that functions carry along, each once: roots, closures, instances, named globals.

    The nearest come first, and the furthest are left out where there are too many.
    """
    found = _fresh(roots, {})
    level = found
    for _ in range(depth):
        children = [child for value in level.values() for child in _carried(value)]
        level = _fresh(children, found)
        found |= level
    return list(found.values())


def _fresh(values: Iterable[Any], found: Mapping[int, Any]) -> dict[int, Any]:
    """Those of the values that were not found before, by identity, as many as there is room for."""
    values = list(values)
    others = {kind for kind in set(map(type, values)) if not _may_carry(kind)}
    fresh = {id(v): v for v in values if type(v) not in others and id(v) not in found}
    return dict(islice(fresh.items(), REACH - len(found)))


def _may_carry(kind: type) -> bool:
    # By the type: isinstance asks proxies what they are, and some answer with an import.
    is_plain = kind in _PLAIN or issubclass(kind, (type, ModuleType))
    return not is_plain and not (kind.__module__.startswith(STREAMS) and hasattr(kind, "__next__"))


def holders(roots: Iterable[Any]) -> list[Any]:
    """Those of the reachable objects that may have state to put back."""
    return [value for value in reachable(roots) if type(value) not in _CONTAINERS]


def attributes(carried: Sequence[Any]) -> list[dict[str, Any]]:
    """The dictionaries of attributes of instances and functions; arrays have none to speak of."""
    closed = _CONTAINERS - {FunctionType}
    others = {k for k in set(map(type, carried)) if k in closed or hasattr(k, "__array__")}
    found = [getattr(v, "__dict__", None) for v in carried if type(v) not in others]
    return [held for held in found if isinstance(held, dict)]


class Snapshot:
    """What functions carry along at one time, held to be compared with what it is later."""

    def __init__(self, roots: Iterable[Any]) -> None:
        self._roots = tuple(roots)
        self._then = self._now()

    def is_same(self) -> bool:
        """Whether every name, item and attribute still holds the same object and numbers."""
        now = self._now()
        return len(now) == len(self._then) and all(map(_is_same, self._then, now))

    def _now(self) -> list[list[Any]]:
        return [[value, *_content(value)] for value in reachable(self._roots)]


def _content(value: Any) -> list[Any]:
    if isinstance(value, np.ndarray):
        return [value.tobytes() if value.dtype != object else value.tolist()]
    sized = isinstance(value, (list, tuple, set, dict))
    return [len(value) if sized else None, *_carried(value)]


def _is_same(then: list[Any], now: list[Any]) -> bool:
    if isinstance(then[0], np.ndarray):
        return then[0] is now[0] and bool(then[1] == now[1])
    return len(then) == len(now) and all(a is b for a, b in zip(then, now, strict=True))


def _carried(value: Any) -> list[Any]:
    opened = _OPENED.get(type(value))
    if opened is not None:
        return opened(value)
    if isinstance(value, _KINDS):  # a subclass
        return next(_OPENED[kind](value) for kind in _KINDS if isinstance(value, kind))
    return list(vars(value).values())[:WIDTH] if hasattr(value, "__dict__") else []


_KINDS = (functools.partial, list, tuple, set, dict)
WIDTH = 100  # items of one container


def _items(value: Any) -> list[Any]:
    """What is in a container, without asking a subclass for its length, which it may not have."""
    own = next((kind for kind in (list, tuple, set) if isinstance(value, kind)), type(value))
    return list(islice(own.__iter__(value), WIDTH))


_OPENED: dict[type, Callable[[Any], list[Any]]] = {
    FunctionType: lambda value: _of_function(value),
    MethodType: lambda value: [value.__self__, value.__func__],
    functools.partial: lambda value: [value.func, *value.args, *value.keywords.values()],
    list: _items,
    tuple: _items,
    set: _items,
    dict: lambda value: list(islice(dict.values(value), WIDTH)),
}


@functools.lru_cache(maxsize=REACH)
def names_of(code: CodeType) -> tuple[str, ...]:
    """The globals that code uses, those inside comprehensions and inner functions too.

    Names of attributes stand beside them in ``co_names``, and a global may be called the same.
    """
    own = [code.co_names[index] for index in _indices_of_globals(code)]
    inner = [names_of(part) for part in code.co_consts if isinstance(part, CodeType)]
    return tuple(dict.fromkeys([*own, *(name for names in inner for name in names)]))


def _indices_of_globals(code: CodeType) -> Iterator[int]:
    # Instructions of two bytes, as ``dis`` reads them; it takes twenty times as long.
    extended = 0
    for operation, argument in zip(code.co_code[::2], code.co_code[1::2], strict=True):
        argument |= extended
        extended = argument << 8 if operation == dis.EXTENDED_ARG else 0
        if operation in _SHIFT_OF:
            yield argument >> _SHIFT_OF[operation]


# Instructions with a global, by number; since Python 3.11 the last bit of an argument of
# LOAD_GLOBAL tells something else. LOAD_NAME and STORE_NAME stand in the body of a class.
_SHIFT_OF = {
    number: int(name == "LOAD_GLOBAL" and sys.version_info >= (3, 11))
    for name, number in dis.opmap.items()
    if "GLOBAL" in name or name in ("LOAD_NAME", "STORE_NAME")
}


def attributes_of(code: CodeType) -> set[str]:
    """What else code names: attributes and methods, those inside of inner functions too."""
    inner = [attributes_of(part) for part in code.co_consts if isinstance(part, CodeType)]
    return {*code.co_names, *(name for names in inner for name in names)} - {*names_of(code)}


def _of_function(function: FunctionType) -> list[Any]:
    found = [function.__wrapped__] if hasattr(function, "__wrapped__") else []
    for cell in function.__closure__ or ():
        try:
            found.append(cell.cell_contents)
        except ValueError:  # a name that is bound later
            continue
    space = function.__globals__
    return found + [space[name] for name in names_of(function.__code__) if name in space]
