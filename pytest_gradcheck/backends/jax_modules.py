"""JAX's nested values taken apart: pytrees, and modules of Equinox and of Flax."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pytest_gradcheck.backends import tree, widths
from pytest_gradcheck.backends.jax_arrays import WIDE, handed
from pytest_gradcheck.backends.protocol import Flat, Leaf
from pytest_gradcheck.backends.reach import reachable

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

_NARROW = {"float32", "float16", "bfloat16"}


def flatten(tree_: Any) -> Flat:
    """Take pytrees and containers apart; a module rebuilds to a callable.

    Rebuilt values hold JAX arrays where NumPy arrays of the check stand for them.
    """
    if isinstance(tree_, jax.Array):  # the most frequent output by far
        return Flat((describe("", tree_),), lambda values: handed(values[0]))
    module = _flax_module(tree_)
    if module is not None:
        return module
    flat = _opened(tree_)
    is_module = callable(tree_) and any(leaf.dtype for leaf in flat.leaves)
    return Flat(flat.leaves, flat.rebuild, is_module)


def _opened(tree_: Any) -> Flat:
    flat = tree.flatten(tree_, describe, _expand)
    floats = [bool(leaf.dtype) for leaf in flat.leaves]

    def rebuild(values: Sequence[Any]) -> Any:
        pairs = zip(values, floats, strict=True)
        return flat.rebuild([handed(value) if is_float else value for value, is_float in pairs])

    return Flat(flat.leaves, rebuild)


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
    inner = _opened(pure)

    def rebuild(values: Sequence[Any]) -> Any:
        filled = nnx.clone(parameters)
        nnx.replace_by_pure_dict(filled, inner.rebuild(values))
        # Running statistics go along with the parameters into float64.
        wide = any(str(value.dtype) in WIDE for value in values)
        state = jax.tree.map(_widened, rest) if wide else nnx.clone(rest)
        return nnx.merge(graph, filled, state)

    return Flat(inner.leaves, rebuild, True)


def buffers(module: Any) -> Flat:
    """Running statistics and what else an ``nnx`` module holds; rebuilt to a module with others."""
    nnx = sys.modules.get("flax.nnx")
    if nnx is None or not isinstance(module, nnx.Module):
        return Flat((), lambda values: module)
    graph, parameters, rest = nnx.split(module, nnx.Param, ...)
    inner = _opened(nnx.to_pure_dict(rest))

    def rebuild(values: Sequence[Any]) -> Any:
        filled = nnx.clone(rest)
        nnx.replace_by_pure_dict(filled, inner.rebuild(values))
        return nnx.merge(graph, nnx.clone(parameters), filled)

    return Flat(inner.leaves, rebuild)


def _widened(value: Any) -> Any:
    return value.astype(jnp.float64) if str(value.dtype) in _NARROW else jnp.array(value)


def _linen(module: Any) -> Flat:
    if module.scope is None:  # unbound: the variables are the first argument of the call
        return Flat((Leaf("", module),), lambda values: module.apply)
    unbound, variables = module.unbind()
    rest = {name: value for name, value in variables.items() if name != "params"}
    inner = _opened(dict(variables)["params"])
    return Flat(
        inner.leaves,
        lambda values: unbound.bind({"params": inner.rebuild(values), **rest}),
        True,
    )


def restorers(roots: Sequence[Any]) -> list[Callable[[], None]]:
    """What sets the state of each reachable ``nnx`` module back."""
    nnx = sys.modules.get("flax.nnx")
    if nnx is None:
        return []
    found = [value for value in reachable(roots) if isinstance(value, nnx.Module)]
    return [_restorer(nnx, module) for module in found]


def _restorer(nnx: Any, module: Any) -> Callable[[], None]:
    state = nnx.clone(nnx.state(module))
    return lambda: nnx.update(module, state)


def describe(path: str, value: Any) -> Leaf:
    """A leaf with precision, shape and device where the value is an array of real or complex."""
    if not isinstance(value, (jax.Array, np.ndarray, np.generic)):
        return Leaf(path, value)
    if not jnp.issubdtype(value.dtype, jnp.inexact):
        return Leaf(path, value)
    device = "" if isinstance(value, jax.core.Tracer) else _device_of(value)
    return Leaf(path, value, str(value.dtype), tuple(value.shape), device)


def _device_of(value: Any) -> str:
    if not isinstance(value, jax.Array):
        return "cpu"
    return ", ".join(sorted(map(_named, value.devices())))


def _named(device: Any) -> str:
    """A name that ``jax.devices`` takes, where the device's own (``TFRT_CPU_0``) is none."""
    if device.platform != "cpu":
        return str(device)
    return f"cpu:{device.id}" if device.id else "cpu"


def widened(tree_: Any, factor: int, seed: int) -> Any:
    """Parameters drawn wider; None where they cannot be, or are a module's, which tells its own."""
    flat = flatten(tree_)
    arrays = {y.path: np.asarray(y.value) for y in flat.leaves if y.dtype}
    fresh = widths.widened(arrays, factor, seed)
    if fresh is None or flat.is_module:
        return None
    return flat.rebuild([fresh.get(leaf.path, leaf.value) for leaf in flat.leaves])
