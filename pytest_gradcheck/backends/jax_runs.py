"""How a function runs during a check: primitive by primitive as the user's own calls do, or whole.

JAX compiles each primitive of a function that is not jitted by itself, for each precision anew.
The runs in the function's own precision are left so, since they are what is under test. Those in
float64 are ours alone: they are compiled in one piece, where the function can be traced and where
nothing that it carries along changes between two calls (tracing would freeze that).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import MethodType
from typing import Any

import jax
import numpy as np

from pytest_gradcheck.backends.jax_arrays import handed, hosted
from pytest_gradcheck.backends.jax_modules import flatten
from pytest_gradcheck.backends.protocol import Array, Flat, Function, Leaf
from pytest_gradcheck.backends.state import Snapshot

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

# Measured on a sine of 64 numbers: 22 ms to compile as usual, 16 with the first two, 6 with all.
_QUICKLY = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_use_fusion_emitters": False,
    "xla_cpu_parallel_codegen_split_count": 1,
}
# Inputs with more elements take longer to compute with than the compiler takes to optimise.
QUICK_SIZE = 10_000


class Runs:
    """The runs under one guard.

    Args:
        roots: Functions and arguments whose state tells whether tracing would freeze any.
        user_mode: Whether the user had 64-bit mode on.
    """

    def __init__(self, roots: Sequence[Any], user_mode: bool) -> None:
        self.user_mode = user_mode
        self._roots = roots
        self._own: list[str] = []  # precisions of the first run
        self._count = 0
        self._before: Snapshot | None = None
        self._is_pure: bool | None = None
        self._compiled: dict[Any, Callable[..., Any] | None] = {}

    def value(self, f: Function, point: Sequence[Array]) -> Flat:
        """``f(point)`` taken apart."""
        self._note(point)
        compiled = self._whole(f, point, _Value)
        return compiled(point) if compiled else flatten(f([handed(x) for x in point]))

    def gradient(
        self, f: Function, point: Sequence[Array], cotangents: Sequence[Array]
    ) -> list[Array]:
        """Reverse mode by ``jax.vjp``."""
        compiled = self._whole(f, point, _Pullback, cotangents)
        if compiled:
            return list(compiled(point, cotangents))
        _, pull = jax.vjp(differentiable(f), *map(handed, point))
        return list(pull([handed(w) for w in cotangents]))

    def _note(self, point: Sequence[Array]) -> None:
        self._count += 1
        if self._count == 1:
            self._own = [str(x.dtype) for x in point]
        elif self._count == 2:  # what the first call sets up once and for all is no state
            self._before = Snapshot(self._roots)

    def _whole(
        self, f: Function, point: Sequence[Array], kind: Any, *more: Any
    ) -> Callable[..., Any] | None:
        """The function compiled in one piece; None where it is not to be, or cannot be."""
        if not self._may_compile(f, kind, point):
            return None
        key = (f, kind)
        if key not in self._compiled:
            self._compiled[key] = _tried(kind(f, sum(x.size for x in point)), point, *more)
        return self._compiled[key]

    def _is_own(self, kind: Any, point: Sequence[Array]) -> bool:
        """Whether a run is one that the user's own calls make, and is to be left like them."""
        dtypes = [str(x.dtype) for x in point]
        return dtypes == self._own and (kind is _Value or "float16" in dtypes)

    def _may_compile(self, f: Function, kind: Any, point: Sequence[Array]) -> bool:
        # A method is the same function each time it is named; a lambda would be compiled again.
        if not isinstance(f, MethodType) or not all(isinstance(x, HOSTED) for x in point):
            return False
        if self._before is None or self._is_own(kind, point):
            return False
        if self._is_pure is None:
            self._is_pure = self._before.is_same()
        return self._is_pure


HOSTED = (np.ndarray, np.generic)


def _tried(run: Callable[..., Any], *args: Any) -> Callable[..., Any] | None:
    try:
        run(*args)
    except Exception:  # the user's own code: whatever it raises, it raises again
        return None
    return run


class _Value:
    def __init__(self, f: Function, size: int) -> None:
        self._f, self._flat = f, Flat((), list)
        self._jitted = _jit(self._traced, size)

    def _traced(self, x: Sequence[Array]) -> list[Array]:
        flat = flatten(self._f(x))
        values = [leaf.value for leaf in flat.leaves if isinstance(leaf.value, jax.Array)]
        self._flat = Flat(tuple(map(_without_tracer, flat.leaves)), flat.rebuild)
        return values

    def __call__(self, point: Sequence[Array]) -> Flat:
        values = iter(self._jitted(list(point)))
        leaves = [_filled(leaf, values) for leaf in self._flat.leaves]
        return Flat(tuple(leaves), self._flat.rebuild)


_COMPUTED = object()


def _without_tracer(leaf: Leaf) -> Leaf:
    return replace(leaf, value=_COMPUTED) if isinstance(leaf.value, jax.Array) else leaf


def _filled(leaf: Leaf, values: Any) -> Leaf:
    if leaf.value is not _COMPUTED:
        return leaf
    value = hosted(next(values))
    return replace(leaf, value=value, device="cpu" if leaf.dtype else "")


class _Pullback:
    def __init__(self, f: Function, size: int) -> None:
        self._f = f
        self._jitted = _jit(self._traced, size)

    def _traced(self, x: Sequence[Array], w: Sequence[Array]) -> Any:
        return jax.vjp(differentiable(self._f), *x)[1](w)

    def __call__(self, point: Sequence[Array], cotangents: Sequence[Array]) -> Any:
        return self._jitted(list(point), list(cotangents))


def _jit(function: Callable[..., Any], size: int) -> Callable[..., Any]:
    jitted: Callable[..., Any] = jax.jit(function, **(_quickly() if size <= QUICK_SIZE else {}))
    return jitted


@functools.cache
def _quickly() -> dict[str, Any]:
    """Arguments of ``jit`` that make compiling quick; none where this JAX does not know them."""
    options: dict[str, Any] = {"compiler_options": _QUICKLY}
    try:
        jax.jit(lambda: 0, **options)()
    except (TypeError, RuntimeError):  # no such argument, no such option of the compiler
        return {}
    return options


def differentiable(f: Function) -> Callable[..., list[Any]]:
    """``f`` of separate inputs, with only the outputs that can be differentiated."""
    return lambda *x: [leaf.value for leaf in flatten(f(x)).leaves if leaf.dtype]
