"""What a framework must offer for its derivatives to be checked.

Four methods make a vector space (``normal``, ``inner``, ``moved``, ``convert``, with the operators
``+ - *`` and ``abs`` of the arrays themselves), others take nested values apart, evaluate and hold
the user's state, and the rest differentiate: those for modes that a framework lacks refuse.
A backend knows no limit, no verdict and no pytest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    import numpy as np

Array = Any  # an array of some framework: the one edge where types end
Function = Callable[[Sequence[Array]], Any]  # flat inputs -> the user's own nested output


@dataclass(frozen=True, slots=True, eq=False)
class Leaf:
    """One value inside a nested input or output.

    Args:
        path: Dotted path, such as ``params.dense.kernel`` or ``xs.0``; empty for a bare value.
        value: The value itself.
        dtype: Precision such as ``float32`` or ``complex128``; empty for a value that passes
            through (integers, booleans, strings, None, anything else).
        shape: Shape of an array.
        device: Device as the framework names it; empty where there is none.
        trainable: False for a parameter that its owner froze.
        padding: Indices along the first axis that their owner declares to have no gradient, as the
            padding row of an embedding; they are not moved.
        hooked: Whether its owner gave it a hook that may change its gradient, which then runs.
    """

    path: str
    value: Any
    dtype: str = ""
    shape: tuple[int, ...] = ()
    device: str = ""
    trainable: bool = True
    padding: tuple[int, ...] = ()
    hooked: bool = False

    @property
    def size(self) -> int:
        """Number of elements."""
        size = 1
        for extent in self.shape:
            size *= extent
        return size


@dataclass(frozen=True, slots=True, eq=False)
class Flat:
    """A nested value taken apart.

    Args:
        leaves: Its leaves in a fixed order.
        rebuild: Puts values, one for each leaf, together again. For a module it gives a callable
            that computes with these parameters and leaves the module itself untouched.
        is_module: Whether the value was a module (parameters and a forward computation).
        has_rules: Whether a derivative rule that somebody wrote took part in computing it; None
            where that was not looked for.
    """

    leaves: tuple[Leaf, ...]
    rebuild: Callable[[Sequence[Any]], Any]
    is_module: bool = False
    has_rules: bool | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Variant:
    """The same gradient asked for in another way, or something that a backward must not do.

    Args:
        code: Code of the finding if it does not agree, such as ``backward-layout``.
        what: The other way in words, such as ``for a cotangent that is not contiguous``.
        expected: One array for each input, None where there is none.
        got: The same, asked for in the other way.
        breach: What went wrong, in words, where that is no matter of numbers.
    """

    code: str
    what: str
    expected: Sequence[Array | None] = ()
    got: Sequence[Array | None] = ()
    breach: str = ""


class Guard(Protocol):
    """The state that a probe may disturb, held for the time of a check."""

    @property
    def is_random(self) -> bool:
        """Whether a global generator moved during the first evaluation."""

    def rewind(self) -> None:
        """Set everything back to what it was, so that the next evaluation sees the same state."""


@runtime_checkable
class Backend(Protocol):
    """A framework as the checks see it."""

    name: str

    def flatten(self, tree: Any) -> Flat:
        """Take a nested value (containers, modules, registered pytrees) apart."""

    def evaluate(self, f: Function, point: Sequence[Array]) -> Flat:
        """``f(point)`` taken apart, computed without recording derivatives."""

    def forward(self, f: Function, point: Sequence[Array]) -> Flat:
        """``f(point)`` as its differentiation sees it.

        Leaves that are declared not to be differentiable (detached, marked so) beside others that
        are have ``trainable`` False. A framework that cannot tell gives the same as ``evaluate``.
        """

    def vjp(
        self, f: Function, point: Sequence[Array], cotangents: Sequence[Array | None]
    ) -> list[Array | None]:
        """Gradient of the inner product of the cotangents with ``f``, one for each input.

        Args:
            f: Function of flat inputs.
            point: The inputs.
            cotangents: One for each output leaf, None for a leaf that is not differentiable.

        Returns:
            One array for each input, None where no derivative reaches it.

        Raises:
            UsageError: The framework has no derivatives of its own.
        """

    def jvp(
        self, f: Function, point: Sequence[Array], tangents: Sequence[Array]
    ) -> list[Array | None]:
        """Derivative of ``f`` along the tangents, one for each output leaf.

        Raises:
            UsageError: The framework has no derivatives of its own.
        """

    def vjps(
        self, f: Function, point: Sequence[Array], stacks: Sequence[Array | None]
    ) -> list[Array | None]:
        """``vjp`` for a stack of cotangents at once (``vmap``), the stack in front everywhere.

        Raises:
            UsageError: The framework has no derivatives of its own.
        """

    def vjps_each(
        self, f: Function, points: Sequence[Array], stacks: Sequence[Array | None]
    ) -> list[Array | None]:
        """``vjp`` at a stack of points at once (``vmap``), each with its own cotangents.

        Raises:
            UsageError: The framework has no derivatives of its own.
        """

    def gradient(self, f: Function, count: int) -> Function:
        """The gradient of ``f`` as a function that can be differentiated again.

        Args:
            f: Function of ``count`` flat inputs.
            count: How many of the new function's inputs are inputs of ``f``; the others are
                cotangents, one for each output that can be differentiated. It returns a list of
                arrays, one for each input of ``f``.

        Raises:
            UsageError: The framework has no derivatives of its own.
        """

    def variants(
        self, f: Function, point: Sequence[Array], cotangents: Sequence[Array | None]
    ) -> Iterable[Variant]:
        """The gradient asked for in the framework's other ways, if somebody wrote a rule for it.

        Yields nothing for a function of the framework's own operations.
        """

    def lowered(self, f: Function, point: Sequence[Array]) -> tuple[str, ...] | None:
        """The precisions that ``f`` computes in inside and that are lower than its inputs'.

        Each once; None where the framework does not show them. A function of float64 numbers that
        takes a softmax of float32 ones rounds as float32 does; one of float32 numbers may multiply
        in ``tensorfloat32``.
        """

    def uncast(self, f: Function) -> Function | None:
        """``f`` without its casts to lower precisions; None where that cannot be had.

        What it returns may be of a higher precision; it may raise where precisions then differ.
        """

    def mode(self, point: Sequence[Array]) -> AbstractContextManager[object]:
        """The settings that the user's own code runs under at such a point, inside of ``guard``."""

    def normal(self, like: Array, seed: int) -> Array:
        """Standard normal array of the shape, precision and device of ``like``.

        Uses a private generator: the global ones do not move.
        """

    def moved(self, x: Array, v: Array, step: float) -> Array:
        """``x + step v`` as a fresh array, in one pass over the memory where the framework can."""

    def inner(self, a: Array, b: Array) -> float:
        """Real inner product, accumulated in float64 and computed where the arrays live.

        For complex arrays: the pairing under which the framework's vjp is the transpose of its
        jvp, so that it may be antilinear or bilinear.
        """

    def convert(self, x: Any, dtype: str = "", device: str = "") -> Array:
        """A fresh copy of ``x`` as an array, in a precision and on a device where named.

        Raises:
            TypeError: The precision does not exist there.
        """

    def to_numpy(self, x: Array) -> np.ndarray:
        """The same numbers as a NumPy array of real or complex type; for moderate sizes."""

    def guard(self, *roots: Any) -> AbstractContextManager[Guard]:
        """Hold random generators, flags and the state reachable from ``roots``; restore on exit."""
