"""JAX: arrays in any registered pytree; Equinox and Flax (``nnx``, bound ``linen``) modules.

Differences in float64 need JAX's 64-bit mode. The guard turns it on for the time of a check, and
the functions in lower precision run with the mode that the user had.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import jax
import jax.experimental
import jax.numpy as jnp
import numpy as np

from pytest_gradcheck.backends import tree
from pytest_gradcheck.backends.numpy import held_arrays
from pytest_gradcheck.backends.protocol import Array, Flat, Function, Guard, Leaf
from pytest_gradcheck.backends.state import (
    StateGuard,
    global_generators,
    private_generators,
    reachable,
)

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

# Older releases have the switch of 64-bit mode among the experiments.
_enable_x64: Any = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64


class JaxBackend:
    """``jax.Array`` (and NumPy arrays beside it) in any pytree."""

    name = "jax"

    def flatten(self, tree_: Any) -> Flat:
        """Take pytrees and containers apart; a module rebuilds to a callable."""
        if isinstance(tree_, jax.Array):  # the most frequent output by far
            return Flat((_describe("", tree_),), lambda values: values[0])
        module = _flax_module(tree_)
        if module is not None:
            return module
        flat = tree.flatten(tree_, _describe, _expand)
        is_module = callable(tree_) and any(leaf.dtype for leaf in flat.leaves)
        return Flat(flat.leaves, flat.rebuild, is_module)

    def evaluate(self, f: Function, point: Sequence[Array]) -> Flat:
        """``f(point)`` taken apart."""
        with _mode_for(point):
            return self.flatten(f(point))

    def forward(self, f: Function, point: Sequence[Array]) -> Flat:
        """The same as ``evaluate``."""
        return self.evaluate(f, point)

    def vjp(
        self, f: Function, point: Sequence[Array], cotangents: Sequence[Array | None]
    ) -> list[Array | None]:
        """Reverse mode by ``jax.vjp``."""
        with _mode_for(point):
            _, pull = jax.vjp(self._differentiable(f), *point)
            return list(pull([w for w in cotangents if w is not None]))

    def jvp(
        self, f: Function, point: Sequence[Array], tangents: Sequence[Array]
    ) -> list[Array | None]:
        """Forward mode by ``jax.jvp``; None for an output of integers or booleans."""
        with _mode_for(point):
            spots = [bool(leaf.dtype) for leaf in self.evaluate(f, point).leaves]
            _, moved = jax.jvp(self._differentiable(f), tuple(point), tuple(tangents))
        remaining = iter(moved)
        return [next(remaining) if spot else None for spot in spots]

    def _differentiable(self, f: Function) -> Callable[..., list[Any]]:
        return lambda *x: [leaf.value for leaf in self.flatten(f(x)).leaves if leaf.dtype]

    def normal(self, like: Array, seed: int) -> Array:
        """Standard normal array like another one, from a private generator."""
        # Drawn by NumPy: JAX would compile its generator anew for every shape.
        draw = np.random.default_rng(seed).standard_normal((2, *like.shape))
        values = draw[0] + 1j * draw[1] if jnp.iscomplexobj(like) else draw[0]
        device = None if isinstance(like, np.ndarray) else like.sharding
        return jax.device_put(values.astype(like.dtype), device)

    def inner(self, a: Array, b: Array) -> float:
        """Real part of ``sum(a * b)``, JAX's own pairing, in float64; one scalar comes back."""
        with _enable_x64(True):
            left, right = jnp.ravel(jnp.asarray(a)), jnp.ravel(jnp.asarray(b))
            is_complex = jnp.iscomplexobj(left) or jnp.iscomplexobj(right)
            wide = jnp.complex128 if is_complex else jnp.float64
            return float(jnp.dot(left.astype(wide), right.astype(wide)).real)

    def convert(self, x: Any, dtype: str = "", device: str = "") -> Array:
        """A copy of ``x``, in a precision and on a device (such as ``cpu`` or ``gpu:1``)."""
        wide = dtype in _WIDE or str(getattr(x, "dtype", "")) in _WIDE
        with _enable_x64(True if wide else bool(jax.config.jax_enable_x64)):
            copy = jnp.array(x, dtype=dtype or None)
            return jax.device_put(copy, _device(device)) if device else copy

    def to_numpy(self, x: Array) -> np.ndarray:
        """The numbers on the CPU, in float32 where NumPy itself lacks the precision."""
        host = np.asarray(x)
        return host.astype(np.float32) if str(host.dtype) == "bfloat16" else host

    @contextmanager
    def guard(self, *roots: Any) -> Iterator[Guard]:
        """Hold Python's and NumPy's generators and reachable ``nnx`` modules; 64-bit mode on."""
        modules = _nnx_modules(roots)
        carried = list(reachable(roots))
        generators = [*global_generators(), *private_generators(carried)]
        _USER_MODE.append(bool(jax.config.jax_enable_x64))
        try:
            held = StateGuard(generators, [*held_arrays(carried), *modules])
            with held as state, _enable_x64(True):
                yield state
        finally:
            _USER_MODE.pop()


_WIDE = {"float64", "complex128"}
_NARROW = {"float32", "float16", "bfloat16"}
_USER_MODE: list[bool] = []  # of each open guard: whether the user had 64-bit mode on


def _mode_for(point: Sequence[Any]) -> AbstractContextManager[Any]:
    wide = any(str(x.dtype) in _WIDE for x in point)
    user = _USER_MODE[-1] if _USER_MODE else bool(jax.config.jax_enable_x64)
    mode: AbstractContextManager[Any] = _enable_x64(wide or user)
    return mode


def _device(name: str) -> Any:
    kind, _, index = name.partition(":")
    return jax.devices(kind)[int(index or 0)]


def _expand(node: Any) -> tuple[list[tuple[str, Any]], tree.Rebuild] | None:
    if isinstance(node, jax.Array) or node is None:
        return None
    if tree.children(node) is not None and type(node) in (dict, list, tuple):
        return None  # walked in the order of the user's own keys
    entries, structure = jax.tree_util.tree_flatten_with_path(
        node, is_leaf=lambda inner: inner is not node
    )
    if len(entries) == 1 and entries[0][1] is node:
        return None
    named = [(_key(path), child) for path, child in entries]
    return named, structure.unflatten


def _key(path: Sequence[Any]) -> str:
    return ".".join(
        str(next(getattr(k, a) for a in ("name", "key", "idx") if hasattr(k, a))) for k in path
    )


def _flax_module(node: Any) -> Flat | None:
    nnx, linen = sys.modules.get("flax.nnx"), sys.modules.get("flax.linen")
    if nnx is not None and isinstance(node, nnx.Module):
        return _nnx(nnx, node)
    if linen is not None and isinstance(node, linen.Module):
        return _linen(node)
    return None


def _nnx(nnx: Any, module: Any) -> Flat:
    graph, parameters, rest = nnx.split(module, nnx.Param, ...)
    pure = nnx.to_pure_dict(parameters)
    inner = tree.flatten(pure, _describe, _expand)

    def rebuild(values: Sequence[Any]) -> Any:
        filled = nnx.clone(parameters)
        nnx.replace_by_pure_dict(filled, inner.rebuild(values))
        # Running statistics go along with the parameters into float64.
        wide = any(str(value.dtype) in _WIDE for value in values)
        state = jax.tree.map(_widened, rest) if wide else nnx.clone(rest)
        return nnx.merge(graph, filled, state)

    return Flat(inner.leaves, rebuild, True)


def _widened(value: Any) -> Any:
    return value.astype(jnp.float64) if str(value.dtype) in _NARROW else jnp.array(value)


def _linen(module: Any) -> Flat:
    if module.scope is None:  # unbound: the variables are the first argument of the call
        return Flat((Leaf("", module),), lambda values: module.apply)
    unbound, variables = module.unbind()
    rest = {name: value for name, value in variables.items() if name != "params"}
    inner = tree.flatten(dict(variables)["params"], _describe, _expand)
    return Flat(
        inner.leaves,
        lambda values: unbound.bind({"params": inner.rebuild(values), **rest}),
        True,
    )


def _nnx_modules(roots: Sequence[Any]) -> list[Callable[[], None]]:
    nnx = sys.modules.get("flax.nnx")
    if nnx is None:
        return []
    found = [value for value in reachable(roots) if isinstance(value, nnx.Module)]
    return [_nnx_restorer(nnx, module) for module in found]


def _nnx_restorer(nnx: Any, module: Any) -> Callable[[], None]:
    state = nnx.clone(nnx.state(module))
    return lambda: nnx.update(module, state)


def _describe(path: str, value: Any) -> Leaf:
    if not isinstance(value, (jax.Array, np.ndarray, np.generic)):
        return Leaf(path, value)
    if not jnp.issubdtype(value.dtype, jnp.inexact):
        return Leaf(path, value)
    device = "" if isinstance(value, jax.core.Tracer) else _device_of(value)
    return Leaf(path, value, str(value.dtype), tuple(value.shape), device)


def _device_of(value: Any) -> str:
    if not isinstance(value, jax.Array):
        return "cpu"
    return ", ".join(sorted(str(device) for device in value.devices()))


BACKEND = JaxBackend()
