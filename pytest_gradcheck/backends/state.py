"""State that a probe may disturb and that no framework owns: Python's and NumPy's generators."""

from __future__ import annotations

import ctypes
import functools
import random
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Protocol

import numpy as np


class Generator(Protocol):
    """One piece of global state, such as a generator: reads, compares and writes it."""

    @property
    def draws(self) -> bool:
        """Whether it is a source of random numbers."""

    def get(self) -> Any:
        """The state now."""

    def has_moved(self, state: Any) -> bool:
        """Whether the state is another one now."""

    def set(self, state: Any) -> None:
        """Make ``state`` the state."""


class PythonGenerator:
    """``random``."""

    draws = True

    def get(self) -> Any:
        """The state now."""
        return random.getstate()

    def has_moved(self, state: Any) -> bool:
        """Whether the state is another one now."""
        return bool(state != self.get())

    def set(self, state: Any) -> None:
        """Make ``state`` the state."""
        random.setstate(state)


class NumpyGenerator:
    """``numpy.random``, the legacy global generator.

    To read its state takes longer than a small check should; to see that it did not move, its
    memory is enough.
    """

    draws = True

    def __init__(self) -> None:
        self._last: Any = None  # what was read before

    def get(self) -> Any:
        """The state now."""
        if self._last is None or self.has_moved(self._last):
            self._last = _memory(), np.random.get_state(legacy=False)
        return self._last

    def has_moved(self, state: Any) -> bool:
        """Whether the state is another one now."""
        memory, old = state
        # A second normal number is drawn ahead with the first, and does not move the memory.
        if memory is not None and not old["has_gauss"]:
            return bool(memory != _memory())
        return not _are_same(np.random.get_state(legacy=False), old)

    def set(self, state: Any) -> None:
        """Make ``state`` the state."""
        if self.has_moved(state):
            np.random.set_state(state[1])


MERSENNE_BYTES = 4 * 624 + 4  # the numbers of a Mersenne Twister, and its position among them


def _memory() -> bytes | None:
    """The state of the global generator as it lies in memory; None if it is of another kind."""
    generator = np.random.get_bit_generator()  # type: ignore[attr-defined]  # not in its stubs
    if type(generator) is not np.random.MT19937:
        return None
    return ctypes.string_at(generator.ctypes.state_address, MERSENNE_BYTES)


def _are_same(a: Any, b: Any) -> bool:
    inner, other = a["state"], b["state"]
    if a.keys() != b.keys() or inner.keys() != other.keys():
        return False
    rest = all(a[key] == b[key] for key in a if key != "state")
    return rest and all(np.array_equal(inner[key], other[key]) for key in inner)


class PrivatePython:
    """A ``random.Random`` that a function carries along."""

    draws = True

    def __init__(self, generator: random.Random) -> None:
        self._generator = generator

    def get(self) -> Any:
        """The state now."""
        return self._generator.getstate()

    def has_moved(self, state: Any) -> bool:
        """Whether the state is another one now."""
        return bool(state != self.get())

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

    def has_moved(self, state: Any) -> bool:
        """Whether the state is another one now; arrays inside compare by their text."""
        return repr(state) != repr(self.get())

    def set(self, state: Any) -> None:
        """Make ``state`` the state."""
        self._bits.state = state


class LegacyNumpy:
    """A ``numpy.random.RandomState`` that a function carries along."""

    draws = True

    def __init__(self, generator: np.random.RandomState) -> None:
        self._generator = generator

    def get(self) -> Any:
        """The state now."""
        return self._generator.get_state(legacy=False)

    def has_moved(self, state: Any) -> bool:
        """Whether the state is another one now."""
        return not _are_same(self.get(), state)

    def set(self, state: Any) -> None:
        """Make ``state`` the state."""
        self._generator.set_state(state)


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
        elif isinstance(value, np.random.RandomState):
            found.append(LegacyNumpy(value))
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
        failures: list[BaseException] = []
        states = [functools.partial(generator.set, state) for generator, state in self._held]
        restorers: list[Callable[[], None]] = [*states, *self._on_exit]
        for restore in reversed(restorers):
            try:  # whatever others raised
                restore()
            except BaseException as error:
                failures.append(error)
        if failures:
            raise failures[0]

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
            self._moving = [(g, old) for g, old in self._held if g.has_moved(old)]
        for generator, state in self._moving:
            generator.set(state)
