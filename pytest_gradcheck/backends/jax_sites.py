"""Which values inside a traced JAX function are layers, and by which names.

The equations of the jaxpr are walked once, through ``jit``, ``remat`` and ``scan``. A product with
a parameter starts a layer, which goes by the path of that parameter; what adds a bias to it still
belongs to it. An activation goes by the layer that feeds it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from pytest_gradcheck.backends.layers import ACTIVATIONS, Kind

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

PRODUCTS = frozenset({"dot_general", "conv_general_dilated", "ragged_dot"})
INLINE = frozenset({"pjit", "jit", "closed_call", "core_call", "remat2", "checkpoint", "remat"})
SHAPED = frozenset(
    {"transpose", "reshape", "convert_element_type", "broadcast_in_dim", "squeeze", "slice"}
    | {"dynamic_slice", "copy", "copy_p", "rev", "stop_gradient", "sharding_constraint"}
)
WEIGHTS = ("kernel", "weight", "w", "W", "embedding", "scale", "value", "kernel.value")
GELU = "mul by sqrt(2 / pi)"  # what the approximate GELU gives to its tanh
_NONE = ("", "", "")
_HOUSES = (str(Path(jax.__file__).parent), str(Path(__file__).parents[1]))


@dataclass(frozen=True, slots=True)
class Site:
    """One value that is looked at.

    Args:
        key: Place of its equation in the jaxpr: numbers of nested equations, joined by slashes.
        name: Name of the layer.
        kind: Product with weights, activation, or anything else.
        op: Operation.
        index: Number among those of its kind.
        place: ``file:line`` in the user's code.
        stacks: For each ``scan`` around it, whether it runs over stacked layers.
        owner: Key of the product, where a bias is added to it.
    """

    key: str
    name: str
    kind: Kind
    op: str
    index: int = -1
    place: str = ""
    stacks: tuple[bool, ...] = ()
    owner: str = ""


@dataclass(eq=False)
class Walk:
    """A walk through a jaxpr.

    Args:
        sites: The values that are layers, by key.
        sources: Keys of the values that each value is computed from.
        ops: Operation, place and layer of every equation, by key.
    """

    sites: dict[str, Site] = field(default_factory=dict)
    sources: dict[str, tuple[str, ...]] = field(default_factory=dict)
    ops: dict[str, tuple[str, str, str]] = field(default_factory=dict)
    stacks: dict[str, tuple[bool, ...]] = field(default_factory=dict)
    _latest: str = ""
    _counts: dict[str, int] = field(default_factory=lambda: {"linear": 0, "activation": 0})

    def through(
        self,
        jaxpr: Any,
        names: Sequence[str],
        makers: Sequence[str],
        prefix: str = "",
        stacks: tuple[bool, ...] = (),
    ) -> list[str]:
        """Walk; the keys of the outputs' makers.

        Args:
            jaxpr: An open jaxpr.
            names: For each of its inputs the path of the parameter that it is, or nothing.
            makers: For each of its inputs the key of the equation that made it, or nothing.
            prefix: Key of the equation around it.
            stacks: As for a site.
        """
        params = {id(v): n for v, n in zip(jaxpr.invars, names, strict=True) if n}
        made = {id(v): m for v, m in zip(jaxpr.invars, makers, strict=True) if m}
        for number, eqn in enumerate(jaxpr.eqns):
            key = f"{prefix}{number}"
            given = [params.get(id(v), "") for v in eqn.invars]
            origin = [made.get(id(v), "") for v in eqn.invars]
            inner = inlined(eqn)
            if inner is not None:
                ends = self.through(inner, given, origin, f"{key}/", stacks)
            elif eqn.primitive.name == "scan":
                ends = self._scan(eqn, given, origin, key, stacks)
            else:
                self._note(eqn, key, given, origin, stacks)
                ends = [key] * len(eqn.outvars)
            for var, end in zip(eqn.outvars, ends, strict=True):
                if end:
                    made[id(var)] = end
                if eqn.primitive.name in SHAPED and given and given[0]:
                    params[id(var)] = given[0]
        return [made.get(id(v), "") for v in jaxpr.outvars]

    def _scan(
        self,
        eqn: Any,
        given: list[str],
        origin: list[str],
        key: str,
        stacks: tuple[bool, ...],
    ) -> list[str]:
        fixed, carried = eqn.params["num_consts"], eqn.params["num_carry"]
        body = eqn.params["jaxpr"].jaxpr
        names = given[:fixed] + [""] * carried + given[fixed + carried :]
        is_stack = any(given[fixed + carried :])
        return self.through(body, names, origin, f"{key}/", (*stacks, is_stack))

    def _note(
        self, eqn: Any, key: str, given: list[str], origin: list[str], stacks: tuple[bool, ...]
    ) -> None:
        op, place = operation(eqn), _place(eqn)
        self.sources[key] = tuple(o for o in origin if o)
        weight = next((name for name in given if name), "")
        if op in PRODUCTS and weight:
            self._latest = _layer(weight)
            self._add(key, self._latest, "linear", op, place, stacks)
        elif op == "add" and weight and (owner := self._product(origin)):
            moved = self.sites.pop(owner)
            self.sites[key] = Site(
                key, moved.name, "linear", moved.op, moved.index, moved.place, stacks, owner
            )
        elif op == "tanh" and any(self.ops.get(o, _NONE)[0] == GELU for o in origin):
            self._add(key, f"{self._latest}.gelu".lstrip("."), "other", "gelu", place, stacks)
        elif op in ACTIVATIONS and (op != "exp" or self._product(origin)):
            self._add(key, f"{self._latest}.{op}".lstrip("."), "activation", op, place, stacks)
        elif op in ("gather", "take") and weight:
            self._add(key, _layer(weight), "other", op, place, stacks)
        self.ops[key] = (op, place, self._latest or str(eqn.source_info.name_stack))
        self.stacks[key] = stacks

    def _product(self, origin: list[str]) -> str:
        """The key of a product among the makers of an equation's inputs, through mere shapes."""
        for start in origin:
            key = start
            while key and key not in self.sites and self.ops.get(key, _NONE)[0] in SHAPED:
                key = next(iter(self.sources.get(key, ())), "")
            if key in self.sites and self.sites[key].kind == "linear":
                return key
        return ""

    def _add(
        self, key: str, name: str, kind: Kind, op: str, place: str, stacks: tuple[bool, ...]
    ) -> None:
        index = -1
        if kind != "other":
            index = self._counts[kind]
            self._counts[kind] += 1
        self.sites[key] = Site(key, name, kind, op, index, place, stacks)


def ordered(sites: Mapping[str, Site]) -> dict[str, Site]:
    """The sites in the order of the data, those after the last product without a number.

    What follows the last product with weights belongs to the loss.
    """
    keys = sorted(sites, key=number)
    last = max((n for n, key in enumerate(keys) if sites[key].kind == "linear"), default=len(keys))
    return {
        key: sites[key] if n <= last else replace(sites[key], index=-1)
        for n, key in enumerate(keys)
    }


def number(key: str) -> tuple[int, ...]:
    """A key as numbers, by which equations run one after another; before all for a parameter."""
    return tuple(int(part) for part in key.split("/")) if key[:1].isdigit() else (-1,)


def inlined(eqn: Any) -> Any:
    """The jaxpr inside a call that is walked through; None for an equation to be run as it is."""
    if eqn.primitive.name not in INLINE or operation(eqn) in ACTIVATIONS:
        return None
    inner = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
    # Constants of a closed jaxpr are rare here, and only closed ones without any are opened.
    if hasattr(inner, "consts"):
        return inner.jaxpr if not inner.consts else None
    return inner


def operation(eqn: Any) -> str:
    """Name of an operation: that of the function, where JAX's own one was called."""
    name = str(eqn.primitive.name)
    if name in ("pjit", "jit", "custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"):
        return _function(eqn) or name
    if name == "max" and any(_is(v, 0.0) for v in eqn.invars):
        return "relu"
    if name == "mul" and any(_is(v, (2 / math.pi) ** 0.5) for v in eqn.invars):
        return GELU
    return name


def _function(eqn: Any) -> str:
    name = eqn.params.get("name")
    if name:
        return str(name)
    inner = eqn.params.get("call_jaxpr", eqn.params.get("fun_jaxpr"))
    eqns: list[Any] = list(getattr(getattr(inner, "jaxpr", inner), "eqns", ()))
    return str(eqns[0].params.get("name") or eqns[0].primitive.name) if len(eqns) == 1 else ""


def _is(var: Any, number: float) -> bool:
    """Whether a variable is a literal of that value, in any precision."""
    if not hasattr(var, "val") or jnp.ndim(var.val) != 0 or jnp.iscomplexobj(var.val):
        return False
    return abs(float(var.val) - number) <= 4e-3 * number


def _layer(path: str) -> str:
    """Name of the layer that a parameter belongs to."""
    head, _, tail = path.rpartition(".")
    return head if head and tail in WEIGHTS else path


def _place(eqn: Any) -> str:
    for file, line in _frames(eqn.source_info.traceback):
        if not file.startswith((*_HOUSES, "<")):
            return f"{Path(file).name}:{line}"
    return ""


def _frames(trace: Any) -> Iterator[tuple[str, int]]:
    for frame in trace.frames if trace is not None else ():
        yield frame.file_name, frame.line_num
