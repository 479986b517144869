"""NumPy: arrays and numbers, no derivatives of its own.

The derivative under test is hand-written, so ``vjp`` and ``jvp`` refuse; everything else is here.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import FunctionType, ModuleType
from typing import Any

import numpy as np

from pytest_gradcheck.backends import tree
from pytest_gradcheck.backends.protocol import Array, Flat, Function, Guard, Leaf, Variant
from pytest_gradcheck.backends.reach import holders
from pytest_gradcheck.backends.state import StateGuard, global_generators, private_generators
from pytest_gradcheck.errors import UsageError

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

SMALL = 1 << 12  # elements of an array that is copied at every call
_NO_DERIVATIVE = (
    "NumPy has no derivatives of its own: give the hand-written one as grad=, vjp= or jac=, "
    "or value_and_grad=True when the function returns (value, gradient)"
)


class NumpyBackend:
    """``numpy.ndarray`` and NumPy scalars."""

    name = "numpy"

    def flatten(self, tree_: Any) -> Flat:
        """Take containers apart; arrays and NumPy scalars of real or complex type are leaves."""
        return tree.flatten(tree_, _describe, lambda node: None)

    def evaluate(self, f: Function, point: Sequence[Array]) -> Flat:
        """``f(point)`` taken apart; Python floats count as arrays."""
        return _with_numbers(self.flatten(f(point)))

    def forward(self, f: Function, point: Sequence[Array]) -> Flat:
        """The same as ``evaluate``."""
        return self.evaluate(f, point)

    def vjp(
        self, f: Function, point: Sequence[Array], cotangents: Sequence[Array | None]
    ) -> list[Array | None]:
        """Refuses: NumPy differentiates nothing."""
        raise UsageError(_NO_DERIVATIVE)

    def jvp(
        self, f: Function, point: Sequence[Array], tangents: Sequence[Array]
    ) -> list[Array | None]:
        """Refuses: NumPy differentiates nothing."""
        raise UsageError(_NO_DERIVATIVE)

    def vjps(
        self, f: Function, point: Sequence[Array], stacks: Sequence[Array | None]
    ) -> list[Array | None]:
        """Refuses: NumPy differentiates nothing."""
        raise UsageError(_NO_DERIVATIVE)

    def vjps_each(
        self, f: Function, points: Sequence[Array], stacks: Sequence[Array | None]
    ) -> list[Array | None]:
        """Refuses: NumPy differentiates nothing."""
        raise UsageError(_NO_DERIVATIVE)

    def gradient(self, f: Function, count: int) -> Function:
        """Refuses: NumPy differentiates nothing."""
        raise UsageError(_NO_DERIVATIVE)

    def variants(
        self, f: Function, point: Sequence[Array], cotangents: Sequence[Array | None]
    ) -> Iterable[Variant]:
        """None: NumPy differentiates nothing."""
        return ()

    def lowered(self, f: Function, point: Sequence[Array]) -> None:
        """Not to be seen: NumPy records nothing."""

    def uncast(self, f: Function) -> None:
        """Not to be had."""

    def mode(self, point: Sequence[Array]) -> AbstractContextManager[object]:
        """As they are."""
        return nullcontext()

    def normal(self, like: Array, seed: int) -> Array:
        """Standard normal array like another one, from a private generator."""
        generator = np.random.default_rng(seed)
        like = np.asarray(like)
        draw = generator.standard_normal(like.shape)
        if np.iscomplexobj(like):
            draw = draw + 1j * generator.standard_normal(like.shape)
        return np.asarray(draw, dtype=like.dtype)

    def moved(self, x: Array, v: Array, step: float) -> Array:
        """``x + step v``."""
        shifted = v * step
        shifted += x
        return shifted

    def inner(self, a: Array, b: Array) -> float:
        """Real part of ``sum(conj(a) * b)``, accumulated in float64."""
        wide = np.complex128 if np.iscomplexobj(a) or np.iscomplexobj(b) else np.float64
        left, right = np.asarray(a, dtype=wide).ravel(), np.asarray(b, dtype=wide).ravel()
        return float(np.vdot(left, right).real)

    def convert(self, x: Any, dtype: str = "", device: str = "") -> Array:
        """A copy of ``x``, in a precision where named; the only device is ``cpu``."""
        if device not in ("", "cpu"):
            raise UsageError(f"device={device!r} is not known to NumPy; allowed: cpu")
        return np.array(x, dtype=dtype or None)

    def to_numpy(self, x: Array) -> np.ndarray:
        """The array itself."""
        return np.asarray(x)

    def guard(self, *roots: Any) -> AbstractContextManager[Guard]:
        """Hold Python's and NumPy's generators, and the arrays that the functions carry along."""
        carried = holders(roots)
        return StateGuard(
            [*global_generators(), *private_generators(carried)], held_arrays(carried)
        )


class Written:
    """Arrays that a function carries along, and may write when it is called.

    Large ones are looked at in the first call, and held from then on if it wrote them.

    Args:
        carried: All that it carries along.
    """

    def __init__(self, carried: Iterable[Any]) -> None:
        self._arrays = [value for value in carried if _can_be_written(value)]
        self._is_first = True

    @contextmanager
    def held(self) -> Iterator[None]:
        """What is written while it is open is put back."""
        kept = [(v, v.copy()) for v in self._arrays]
        try:
            yield
        finally:
            moved = [(v, old) for v, old in kept if v.tobytes() != old.tobytes()]
            for v, old in moved:
                v[...] = old
            if self._is_first:
                known = {id(v) for v, _ in moved}
                self._arrays = [v for v in self._arrays if v.size <= SMALL or id(v) in known]
                self._is_first = False


def held_arrays(carried: Iterable[Any]) -> list[Callable[[], None]]:
    """Restorers of every array and instance dictionary among what functions carry along."""
    return [restorer for value in carried if (restorer := _restorer(value)) is not None]


def _restorer(value: Any) -> Callable[[], None] | None:
    if _can_be_written(value):
        before = value.copy()
        return lambda: _write_back(value, before)
    attributes = getattr(value, "__dict__", None)
    if isinstance(attributes, dict) and not isinstance(value, (FunctionType, ModuleType, type)):
        kept = dict(attributes)
        return lambda: reset(attributes, kept)
    return None


def _can_be_written(value: Any) -> bool:
    is_array = isinstance(value, np.ndarray)
    return is_array and bool(value.flags.writeable) and value.dtype != object


def _write_back(value: np.ndarray, before: np.ndarray) -> None:
    if value.tobytes() != before.tobytes():
        value[...] = before


def reset(attributes: dict[str, Any], kept: dict[str, Any]) -> None:
    """Make a dictionary what it was, if it is not: the same keys with the same objects."""
    if attributes.keys() == kept.keys() and all(
        map(operator.is_, attributes.values(), kept.values())
    ):
        return
    attributes.clear()
    attributes.update(kept)


def _describe(path: str, value: Any) -> Leaf:
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in "fc":
        return Leaf(path, value, value.dtype.name, value.shape, "cpu")
    return Leaf(path, value)


def _with_numbers(flat: Flat) -> Flat:
    # A function of arrays may well return a Python float.
    leaves = tuple(
        _describe(leaf.path, np.asarray(leaf.value))
        if type(leaf.value) in (float, complex)
        else leaf
        for leaf in flat.leaves
    )
    return Flat(leaves, flat.rebuild)


BACKEND = NumpyBackend()
