"""A function, its inputs and which of them are under test, as one value that a check can move."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import BuiltinFunctionType
from typing import Any

from pytest_gradcheck.backends import Array, Backend, Leaf
from pytest_gradcheck.numerics import precision

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """A function with its arguments, ready to be called."""

    fn: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def __call__(self) -> Any:
        """Run it."""
        return self.fn(*self.args, **self.kwargs)


@dataclass(frozen=True, eq=False)
class Problem:
    """A function at a point.

    Args:
        backend: The framework of the inputs.
        label: Name of the function.
        leaves: Every leaf of function (module parameters) and arguments; the values are copies.
        selected: Indices of the leaves under test.
        rebuild: Makes the call from one value for each leaf.
        groups: For each leaf, the top-level argument it belongs to.
    """

    backend: Backend
    label: str
    leaves: tuple[Leaf, ...]
    selected: tuple[int, ...]
    rebuild: Callable[[Sequence[Any]], Call]
    groups: tuple[str, ...]

    @functools.cached_property
    def inputs(self) -> tuple[Leaf, ...]:
        """The leaves under test."""
        return tuple(self.leaves[i] for i in self.selected)

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """Paths of the inputs under test."""
        return tuple(leaf.path or "x" for leaf in self.inputs)

    @property
    def point(self) -> list[Array]:
        """Values of the inputs under test."""
        return [leaf.value for leaf in self.inputs]

    def fresh(self) -> list[Array]:
        """Copies of those values, for a function that may write into its inputs."""
        return [self.backend.convert(x) for x in self.point]

    @functools.cached_property
    def dtype(self) -> str:
        """The coarsest real precision among the inputs under test."""
        return precision.coarsest(leaf.dtype for leaf in self.inputs)

    def call(self, point: Sequence[Array]) -> Call:
        """The call with other values of the inputs under test."""
        values = list(self._values)
        for index, value in zip(self.selected, point, strict=True):
            values[index] = value
        return self.rebuild(values)

    @functools.cached_property
    def _values(self) -> tuple[Any, ...]:
        return tuple(leaf.value for leaf in self.leaves)

    def run(self, point: Sequence[Array]) -> Any:
        """The nested output with other values of the inputs under test.

        A method and no lambda: a backend may recognise it as the function that it ran before.
        """
        return self.call(point)()

    def moved(self, point: Sequence[Array]) -> Problem:
        """The same function at another point."""
        leaves = list(self.leaves)
        for index, value in zip(self.selected, point, strict=True):
            leaves[index] = replace(leaves[index], value=value)
        return replace(self, leaves=tuple(leaves))

    def promoted(self) -> Problem:
        """The same function with every floating-point input in float64 (complex128)."""
        convert = self.backend.convert
        leaves = []
        for leaf in self.leaves:
            wide = precision.promoted(leaf.dtype) if leaf.dtype else ""
            if wide != leaf.dtype:
                leaf = replace(leaf, value=convert(leaf.value, wide), dtype=wide)
            leaves.append(leaf)
        return replace(self, leaves=tuple(leaves))


def of_user(error: Exception) -> Exception:
    """An error of the user's code, to be chained.

    JAX gives it a cause that holds the frames of the whole call, ours among them, and says nothing
    that the error does not say.
    """
    link: BaseException = error
    while link.__cause__ is not None:
        if type(link.__cause__).__name__ == "JaxStackTraceBeforeTransformation":
            link.__cause__ = None
            break
        link = link.__cause__
    return error


def label_of(fn: Any) -> str:
    """Name of a function, or of the class of a module."""
    inner = inspect.unwrap(getattr(fn, "func", fn))
    owner = getattr(inner, "__self__", None)
    if isinstance(owner, type):  # Function.apply of a custom autograd function
        return f"{owner.__name__}.{inner.__name__}"
    if isinstance(inner, BuiltinFunctionType):  # torch.sin is a method of a class of torch's own
        return inner.__name__
    name = getattr(inner, "__qualname__", None) or type(inner).__name__
    return str(name).rpartition("<locals>.")[2]


def kind_of(value: Any) -> str:
    """What a value is, for a message: its type, precision and, if sparse, layout."""
    dtype, layout = getattr(value, "dtype", None), str(getattr(value, "layout", ""))
    sparse = f", {layout.removeprefix('torch.')}" if "sparse" in layout else ""
    return type(value).__name__ + (f" of {dtype}" if dtype is not None else "") + sparse
