"""JAX: arrays in any registered pytree; Equinox and Flax (``nnx``, bound ``linen``) modules.

Differences in float64 need JAX's 64-bit mode. The guard turns it on for the time of a check, and
the functions in lower precision run with the mode that the user had.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from pytest_gradcheck.backends import jax_arrays, jax_contracts, jax_modes, jax_modules, jax_refused
from pytest_gradcheck.backends.jax_arrays import WIDE, enable_x64, hosted
from pytest_gradcheck.backends.jax_runs import Runs
from pytest_gradcheck.backends.numpy import held_arrays
from pytest_gradcheck.backends.protocol import Array, Flat, Function, Guard, Variant
from pytest_gradcheck.backends.reach import holders
from pytest_gradcheck.backends.state import StateGuard, global_generators, private_generators

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these


class JaxBackend:
    """``jax.Array`` (and NumPy arrays beside it) in any pytree."""

    name = "jax"

    def flatten(self, tree_: Any) -> Flat:
        """Take pytrees and containers apart; a module rebuilds to a callable."""
        return jax_modules.flatten(tree_)

    def evaluate(self, f: Function, point: Sequence[Array]) -> Flat:
        """``f(point)`` taken apart, with arrays of the CPU as NumPy arrays."""
        with self.mode(point):
            flat = _runs().value(f, point)
        leaves = [replace(leaf, value=hosted(leaf.value)) for leaf in flat.leaves]
        return Flat(tuple(leaves), flat.rebuild)

    def forward(self, f: Function, point: Sequence[Array]) -> Flat:
        """The same as ``evaluate``."""
        return self.evaluate(f, point)

    def vjp(
        self, f: Function, point: Sequence[Array], cotangents: Sequence[Array | None]
    ) -> list[Array | None]:
        """Reverse mode by ``jax.vjp``."""
        with self.mode(point):
            try:
                pulled = _runs().gradient(f, point, cotangents)
            except (TypeError, ValueError) as error:
                if (told := jax_refused.refused(error)) is not None:
                    raise told from error
                raise
        return [hosted(g) for g in pulled]

    def jvp(
        self, f: Function, point: Sequence[Array], tangents: Sequence[Array]
    ) -> list[Array | None]:
        """Forward mode by ``jax.jvp``; None for an output of integers or booleans."""
        with self.mode(point):
            spots = [bool(leaf.dtype) for leaf in self.evaluate(f, point).leaves]
            moved = iter(jax_modes.forward(_runs(), f, point, tangents))
        return [next(moved) if spot else None for spot in spots]

    def vjps(
        self, f: Function, point: Sequence[Array], stacks: Sequence[Array | None]
    ) -> list[Array | None]:
        """Reverse mode under ``vmap``."""
        with self.mode(point):
            return jax_modes.batched(_runs(), f, point, stacks)

    def vjps_each(
        self, f: Function, points: Sequence[Array], stacks: Sequence[Array | None]
    ) -> list[Array | None]:
        """Value and reverse mode under ``vmap``."""
        with self.mode(points):
            return jax_modes.each(f, points, stacks)

    def gradient(self, f: Function, count: int) -> Function:
        """The pullback as a function of its own."""
        return jax_modes.gradient(f, count)

    def variants(
        self, f: Function, point: Sequence[Array], cotangents: Sequence[Array | None]
    ) -> Iterable[Variant]:
        """The gradient under ``jit`` and under ``vmap``."""
        with self.mode(point):
            return list(jax_contracts.variants(f, point, cotangents))

    def lowered(self, f: Function, point: Sequence[Array]) -> tuple[str, ...]:
        """What primitives return in a lower precision than they are given."""
        with self.mode(point):
            return jax_modes.lowered(f, point)

    def uncast(self, f: Function) -> None:
        """Not to be had."""

    def mode(self, point: Sequence[Array]) -> AbstractContextManager[object]:
        """64-bit mode as the user has it, and on where the point needs it."""
        wide = any(str(x.dtype) in WIDE for x in point)
        mode: AbstractContextManager[object] = enable_x64(wide or _runs().user_mode)
        return mode

    def normal(self, like: Array, seed: int) -> Array:
        """Standard normal array like another one, from a private generator."""
        return jax_arrays.normal(like, seed)

    def moved(self, x: Array, v: Array, step: float) -> Array:
        """``x + step v``."""
        return x + v * step

    def inner(self, a: Array, b: Array) -> float:
        """Real part of ``sum(a * b)``, JAX's own pairing, in float64; one scalar comes back."""
        return jax_arrays.inner(a, b)

    def convert(self, x: Any, dtype: str = "", device: str = "") -> Array:
        """A copy of ``x``, in a precision and on a device (such as ``cpu`` or ``gpu:1``)."""
        copy = jax_arrays.copied(x, dtype)
        return hosted(jax.device_put(copy, _device(device))) if device else copy

    def to_numpy(self, x: Array) -> np.ndarray:
        """The numbers on the CPU, in float32 where NumPy itself lacks the precision."""
        host = np.asarray(x)
        return host.astype(np.float32) if str(host.dtype) == "bfloat16" else host

    @contextmanager
    def guard(self, *roots: Any) -> Iterator[Guard]:
        """Hold Python's and NumPy's generators and reachable ``nnx`` modules; 64-bit mode on."""
        modules = jax_modules.restorers(roots)
        carried = holders(roots)
        generators = [*global_generators(), *private_generators(carried)]
        runs = Runs(roots, bool(jax.config.jax_enable_x64))
        _OPEN.append(runs)
        try:
            held = StateGuard(generators, [*held_arrays(carried), *modules])
            runs.is_random = lambda: held.is_random
            with held as state, enable_x64(True):
                yield state
        finally:
            _OPEN.pop()


_OPEN: list[Runs] = []  # one for each open guard


def _runs() -> Runs:
    return _OPEN[-1] if _OPEN else Runs((), bool(jax.config.jax_enable_x64))


def _device(name: str) -> Any:
    kind, _, index = name.partition(":")
    return jax.devices(kind)[int(index or 0)]


BACKEND = JaxBackend()
