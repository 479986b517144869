"""How a function runs during a check: primitive by primitive as the user's own calls do, or whole.

JAX compiles each primitive of a function that is not jitted by itself, for each precision anew.
The runs in the function's own precision are left so, since they are what is under test; after some
of them a trace of the same primitives is run (``jax_replayed.py``). Those in
float64 are ours alone: they are compiled in one piece, where the function can be traced and where
nothing that it carries along changes between two calls (tracing would freeze that).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from types import MethodType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pytest_gradcheck.backends.jax_arrays import handed, hosted
from pytest_gradcheck.backends.jax_hurry import QUICK_SIZE, quickly
from pytest_gradcheck.backends.jax_modules import flatten
from pytest_gradcheck.backends.jax_replayed import PATIENCE, Replayed, replayed
from pytest_gradcheck.backends.protocol import Array, Flat, Function, Leaf
from pytest_gradcheck.backends.reach import Snapshot

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

Cotangents = Sequence[Array | None]
Run = Callable[..., Any]


class Runs:
    """The runs under one guard.

    Args:
        roots: Functions and arguments whose state tells whether tracing would freeze any.
        user_mode: Whether the user had 64-bit mode on.
    """

    def __init__(self, roots: Sequence[Any], user_mode: bool) -> None:
        self.user_mode = user_mode
        self.is_random: Callable[[], bool] = lambda: False  # the guard knows, once it is open
        self._roots = roots
        self._own: tuple[str, ...] = ()  # precisions of the first run
        self._count = 0
        self._before: Snapshot | None = None
        self._is_pure: bool | None = None
        self._cotangents: dict[Any, Cotangents] = {}  # the last ones, for each kind of point
        self._compiled: dict[Any, Compiled | None] = {}
        self._jitted: dict[Any, Run] = {}
        self._replayed: dict[Any, Replayed | None] = {}

    def value(self, f: Function, point: Sequence[Array]) -> Flat:
        """``f(point)`` taken apart."""
        self._note(point)
        if not self._is_own(point):
            parts = _BOTH if _is_small(point) and _kind(point) in self._cotangents else ("value",)
            compiled = self._compile(f, parts, point)
            if compiled:
                return compiled.value(point)
        trace = self._replayed.get((f, _dtypes(point))) if self._count > PATIENCE else None
        return trace.value(point) if trace else self._by_itself(f, point)

    def _by_itself(self, f: Function, point: Sequence[Array]) -> Flat:
        """``f(point)`` as the user calls it; traced for later runs where there were many."""
        flat, key = flatten(f([handed(x) for x in point])), (f, _dtypes(point))
        if self._count > PATIENCE and key not in self._replayed and self._may_compile(f, point):
            self._replayed[key] = replayed(f, point, flat)
        return flat

    def gradient(
        self, f: Function, point: Sequence[Array], cotangents: Cotangents
    ) -> list[Array | None]:
        """Reverse mode by ``jax.vjp``."""
        self._cotangents[_kind(point)] = cotangents
        is_own = self._is_own(point)
        # Compiled whole, a function in 16 bits rounds less often than its primitives one by one.
        if not (is_own and any("float16" in str(x.dtype) for x in point)):
            parts = _BOTH if _is_small(point) and not is_own else ("gradient",)
            compiled = self._compile(f, parts, point)
            if compiled:
                return compiled.gradient(point, cotangents)
        return pulled(f, [handed(x) for x in point], [handed(w) for w in cotangents])

    def _note(self, point: Sequence[Array]) -> None:
        self._count += 1
        if self._count == 1:
            self._own = _dtypes(point)
        elif self._count == 2:  # what the first call sets up once and for all is no state
            self._before = Snapshot(self._roots)

    def _is_own(self, point: Sequence[Array]) -> bool:
        return _dtypes(point) == self._own

    def _compile(
        self, f: Function, parts: tuple[str, ...], point: Sequence[Array]
    ) -> Compiled | None:
        """The function in one piece; None where it is not to be compiled, or cannot be."""
        if not self._may_compile(f, point):
            return None
        key = (f, parts)
        if key not in self._compiled:
            given = self._cotangents.get(_kind(point), ())
            self._compiled[key] = _tried(Compiled(f, parts, given), point)
        return self._compiled[key]

    def whole(self, f: Function, point: Sequence[Array], mode: str, run: Run) -> Run:
        """``run``, which differentiates ``f`` in some mode, in one piece where that is allowed."""
        if not self._may_compile(f, point):
            return run
        return _or_left_alone(self._jitted.setdefault((f, mode), jax.jit(run)), run)

    def _may_compile(self, f: Function, point: Sequence[Array]) -> bool:
        # A method is the same function each time it is named; a lambda would be compiled again.
        if not isinstance(f, MethodType) or not all(isinstance(x, _HOSTED) for x in point):
            return False
        if self._before is None:
            return False
        if self._is_pure is None:
            self._is_pure = self._before.is_same() and not self.is_random()
        return self._is_pure


_HOSTED = (np.ndarray, np.generic)
_BOTH = ("value", "gradient")


def _dtypes(point: Sequence[Array]) -> tuple[str, ...]:
    return tuple(str(x.dtype) for x in point)


def _kind(point: Sequence[Array]) -> tuple[tuple[int, ...], ...]:
    """What the points of one function share in every precision."""
    return tuple(x.shape for x in point)


def _is_small(point: Sequence[Array]) -> bool:
    return bool(sum(x.size for x in point) <= QUICK_SIZE)


class Compiled:
    """A function in one piece: its value, its gradient, or both in one program.

    One program for both saves the 8 ms that each costs by itself; it computes the gradient only
    where that is wanted.

    Args:
        f: The function.
        parts: ``value``, ``gradient``, or both.
        cotangents: Some cotangents, of the shapes that are to come.
    """

    def __init__(self, f: Function, parts: tuple[str, ...], cotangents: Cotangents) -> None:
        self._f, self._parts, self._flat = f, parts, Flat((), list)
        whole = [None if w is None else _wide_zeros(w) for w in cotangents]
        self._blank = whole if parts == _BOTH else list(cotangents)
        self._jitted: Callable[..., Any] | None = None

    def value(self, point: Sequence[Array]) -> Flat:
        """The output taken apart."""
        values = iter(self._run(point, self._blank, False)[0])
        leaves = tuple(_filled(leaf, values) for leaf in self._flat.leaves)
        return Flat(leaves, self._flat.rebuild)

    def gradient(self, point: Sequence[Array], cotangents: Cotangents) -> list[Array | None]:
        """One array for each input."""
        return list(self._run(point, cotangents, True)[1])

    def _run(self, point: Sequence[Array], cotangents: Cotangents, wanted: bool) -> Any:
        if self._jitted is None:
            self._jitted = jax.jit(self._traced, **(quickly() if _is_small(point) else {}))
        return self._jitted(list(point), list(cotangents), wanted)

    def _traced(self, x: list[Array], w: list[Array | None], wanted: Array) -> Any:
        values = self._values(x) if "value" in self._parts else []
        if "gradient" not in self._parts:
            return values, []
        if "value" not in self._parts:
            return values, pulled(self._f, x, w)
        zeros = [jnp.zeros_like(a) for a in x]
        return values, jax.lax.cond(wanted, lambda: pulled(self._f, x, w), lambda: zeros)

    def _values(self, x: list[Array]) -> list[Array]:
        flat = flatten(self._f(x))
        self._flat = Flat(tuple(map(_without_tracer, flat.leaves)), flat.rebuild)
        return [leaf.value for leaf in flat.leaves if isinstance(leaf.value, jax.Array)]


def _tried(compiled: Compiled, point: Sequence[Array]) -> Compiled | None:
    try:
        compiled.value(point)
    except Exception:  # the user's own code: whatever it raises, it raises again when left alone
        return None
    return compiled


def _or_left_alone(jitted: Run, run: Run) -> Run:
    def either(*values: Any) -> Any:
        try:
            return jitted(*values)
        except Exception:  # as in _tried
            return run(*values)

    return either


def _wide_zeros(w: Array) -> Array:
    return np.zeros(w.shape, np.complex128 if np.iscomplexobj(w) else np.float64)


_COMPUTED = object()


def _without_tracer(leaf: Leaf) -> Leaf:
    return replace(leaf, value=_COMPUTED) if isinstance(leaf.value, jax.Array) else leaf


def _filled(leaf: Leaf, values: Iterator[Array]) -> Leaf:
    if leaf.value is not _COMPUTED:
        return leaf
    return replace(leaf, value=hosted(next(values)), device="cpu" if leaf.dtype else "")


def pulled(f: Function, x: Sequence[Array], w: Cotangents) -> list[Array | None]:
    """Gradient of the inner product of cotangents with ``f``; None stands beside an output."""
    spots = [c is not None for c in w]
    outputs, pull = jax.vjp(lambda *x: _picked(f, x, spots), *x)
    given = [c for c in w if c is not None]
    fitting = [c.astype(y.dtype) for c, y in zip(given, outputs, strict=True)]
    return list(pull(fitting))


def _picked(f: Function, x: Sequence[Array], spots: Sequence[bool]) -> list[Array]:
    leaves = flatten(f(x)).leaves
    return [leaf.value for leaf, is_picked in zip(leaves, spots, strict=True) if is_picked]


def differentiable(f: Function) -> Callable[..., list[Any]]:
    """``f`` of separate inputs, with only the outputs that can be differentiated."""
    return lambda *x: [leaf.value for leaf in flatten(f(x)).leaves if leaf.dtype]
