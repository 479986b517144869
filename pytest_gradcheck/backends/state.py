"""State that a probe may disturb and that no framework owns: Python's and NumPy's generators.

Also the search for objects that a function carries along (closure, bound instance, globals that
it names), so that a backend can hold the state of those it knows.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from types import CodeType, FunctionType, MethodType, ModuleType, TracebackType
from typing import Any, Protocol

import numpy as np


class Generator(Protocol):
    """One piece of global state, such as a generator: reads, compares and writes it."""

    @property
    def draws(self) -> bool:
        """Whether it is a source of random numbers."""

    def get(self) -> Any:
        """The state now."""

    def same(self, a: Any, b: Any) -> bool:
        """Whether two states are equal."""

    def set(self, state: Any) -> None:
        """Make ``state`` the state."""


class PythonGenerator:
    """``random``."""

    draws = True

    def get(self) -> Any:
        """The state now."""
        return random.getstate()

    def same(self, a: Any, b: Any) -> bool:
        """Whether two states are equal."""
        return bool(a == b)

    def set(self, state: Any) -> None:
        """Make ``state`` the state."""
        random.setstate(state)


class NumpyGenerator:
    """``numpy.random``, the legacy global generator."""

    draws = True

    def get(self) -> Any:
        """The state now."""
        return np.random.get_state(legacy=False)

    def same(self, a: Any, b: Any) -> bool:
        """Whether two states are equal."""
        inner, other = a["state"], b["state"]
        rest = all(a[key] == b[key] for key in a if key != "state")
        return rest and inner["pos"] == other["pos"] and np.array_equal(inner["key"], other["key"])

    def set(self, state: Any) -> None:
        """Make ``state`` the state."""
        np.random.set_state(state)


class PrivatePython:
    """A ``random.Random`` that a function carries along."""

    draws = True

    def __init__(self, generator: random.Random) -> None:
        self._generator = generator

    def get(self) -> Any:
        """The state now."""
        return self._generator.getstate()

    def same(self, a: Any, b: Any) -> bool:
        """Whether two states are equal."""
        return bool(a == b)

    def set(self, state: Any) -> None:
        """Make ``state`` the state."""
        self._generator.setstate(state)


class PrivateNumpy:
    """A ``numpy.random.Generator`` that a function carries along."""

    draws = True

    def __init__(self, generator: np.random.Generator) -> None:
        self._bits = generator.bit_generator

    def get(self) -> Any:
        """The state now."""
        return self._bits.state

    def same(self, a: Any, b: Any) -> bool:
        """Whether two states are equal; arrays inside compare by their text."""
        return repr(a) == repr(b)

    def set(self, state: Any) -> None:
        """Make ``state`` the state."""
        self._bits.state = state


def global_generators() -> list[Generator]:
    """Python's and NumPy's global generators."""
    return [PythonGenerator(), NumpyGenerator()]


def private_generators(carried: Iterable[Any]) -> list[Generator]:
    """Python's and NumPy's generator objects among what functions carry along."""
    found: list[Generator] = []
    for value in carried:
        if isinstance(value, random.Random):
            found.append(PrivatePython(value))
        elif isinstance(value, np.random.Generator):
            found.append(PrivateNumpy(value))
    return found


class StateGuard:
    """Holds global generators and whatever else a backend adds; restores on exit, always.

    Args:
        generators: The global generators to hold.
        on_exit: Called in reverse order when the guard closes, also after an exception.
    """

    def __init__(
        self, generators: Iterable[Generator], on_exit: Iterable[Callable[[], None]] = ()
    ) -> None:
        self._held = [(generator, generator.get()) for generator in generators]
        self._moving: list[tuple[Generator, Any]] | None = None
        self._on_exit = tuple(on_exit)
        self._silence = np.errstate(all="ignore")  # values are checked instead

    def __enter__(self) -> StateGuard:
        self._silence.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._silence.__exit__(kind, error, trace)
        with ExitStack() as stack:  # each one runs, whatever the others raise
            for generator, state in self._held:
                stack.callback(generator.set, state)
            for restore in self._on_exit:
                stack.callback(restore)

    @property
    def is_random(self) -> bool:
        """Whether a global generator moved during the first evaluation."""
        return any(generator.draws for generator, _ in self._moving or ())

    def rewind(self) -> None:
        """Set the generators back, so that the next evaluation draws the same numbers.

        The first call, made after the first evaluation, finds out which of them moved; only
        those are set back from then on, since reading a state costs as much as a small function.
        """
        if self._moving is None:
            self._moving = [(g, old) for g, old in self._held if not g.same(g.get(), old)]
        for generator, state in self._moving:
            generator.set(state)


REACH = (
    2000  # objects looked at: a search through a whole application would cost more than the check
)


_PLAIN = {str, bytes, bool, int, float, complex, type(None), type, ModuleType}


def reachable(roots: Iterable[Any], depth: int = 4) -> Iterator[Any]:
    """Objects that functions carry along, each once: roots, closures, instances, named globals."""
    seen: set[int] = set()
    pending = [(root, depth) for root in roots]
    while pending and len(seen) < REACH:
        value, left = pending.pop()
        if type(value) in _PLAIN or id(value) in seen or isinstance(value, (type, ModuleType)):
            continue
        seen.add(id(value))
        yield value
        if left:
            pending.extend((child, left - 1) for child in _carried(value))


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
    if isinstance(value, MethodType):
        return [value.__self__, value.__func__]
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, FunctionType):
        return _of_function(value)
    if isinstance(value, (list, tuple, set)):
        return list(value)[:100]
    if isinstance(value, dict):
        return list(value.values())[:100]
    return list(vars(value).values())[:100] if hasattr(value, "__dict__") else []


def names_of(code: CodeType) -> list[str]:
    """The names that code uses, those inside comprehensions and inner functions too."""
    inner = [names_of(part) for part in code.co_consts if isinstance(part, CodeType)]
    return list(dict.fromkeys([*code.co_names, *(name for names in inner for name in names)]))


def _of_function(function: FunctionType) -> list[Any]:
    found = [function.__wrapped__] if hasattr(function, "__wrapped__") else []
    for cell in function.__closure__ or ():
        try:
            found.append(cell.cell_contents)
        except ValueError:  # a name that is bound later
            continue
    names = names_of(function.__code__)
    found += [function.__globals__[name] for name in names if name in function.__globals__]
    return found
