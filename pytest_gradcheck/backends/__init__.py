"""The backends by name, imported on first use, and how a value finds its own."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterable
from dataclasses import dataclass

from pytest_gradcheck.backends.protocol import Array, Backend, Flat, Function, Guard, Leaf, Variant
from pytest_gradcheck.backends.refused import RefusedRule, shape_told
from pytest_gradcheck.errors import UsageError

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

__all__ = [
    "Array",
    "Backend",
    "Entry",
    "Flat",
    "Function",
    "Guard",
    "Leaf",
    "RefusedRule",
    "Variant",
    "load",
    "names",
    "owner",
    "register",
    "shape_told",
    "unregister",
]


@dataclass(frozen=True, slots=True)
class Entry:
    """How a backend is found.

    Args:
        name: What ``backend=`` takes.
        packages: Top-level packages whose types belong to it; a value belongs to the backend when
            some class in its method resolution order comes from one of them.
        target: ``module:attribute`` of the backend object, imported on first use.
    """

    name: str
    packages: frozenset[str]
    target: str


_BUILTIN = (
    Entry("torch", frozenset({"torch"}), "pytest_gradcheck.backends.torch:BACKEND"),
    Entry(
        "jax",
        frozenset({"jax", "jaxlib", "flax", "equinox"}),
        "pytest_gradcheck.backends.jax:BACKEND",
    ),
    Entry("numpy", frozenset({"numpy"}), "pytest_gradcheck.backends.numpy:BACKEND"),
)
_ENTRIES: dict[str, Entry] = {entry.name: entry for entry in _BUILTIN}


def register(entries: Iterable[Entry]) -> None:
    """Add backends, before the built-in ones in the search; a name replaces an older one."""
    added = {entry.name: entry for entry in entries}
    kept = {name: entry for name, entry in _ENTRIES.items() if name not in added}
    _ENTRIES.clear()
    _ENTRIES.update(added | kept)


def unregister(entries: Iterable[Entry]) -> None:
    """Take added backends out again; a built-in one of the same name comes back."""
    gone = {entry.name for entry in entries}
    added = [e for e in _ENTRIES.values() if e.name not in gone and e not in _BUILTIN]
    _ENTRIES.clear()
    _ENTRIES.update({entry.name: entry for entry in (*added, *_BUILTIN)})


def names() -> tuple[str, ...]:
    """The names that ``backend=`` takes."""
    return tuple(_ENTRIES)


def load(name: str) -> Backend:
    """The backend of a name, imported now.

    Raises:
        UsageError: No such backend, or its framework is not installed.
    """
    if name not in _ENTRIES:
        raise UsageError(f"backend={name!r} is not known; known: {', '.join(names())}")
    module, _, attribute = _ENTRIES[name].target.partition(":")
    try:
        backend: Backend = getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise UsageError(
            f"backend={name!r} needs {error.name}, which is not installed: "
            f"pip install 'pytest-gradcheck[{name}]'"
        ) from error
    return backend


def owner(value: object) -> str | None:
    """Name of the backend that a value belongs to, or None; imports nothing."""
    packages = _packages(type(value))  # type: ignore[arg-type]  # every type can be hashed
    return next((e.name for e in _ENTRIES.values() if e.packages & packages), None)


@functools.lru_cache(maxsize=256)
def _packages(kind: type) -> frozenset[str]:
    """The packages that a type and its bases come from."""
    return frozenset(cls.__module__.partition(".")[0] for cls in kind.__mro__)
