"""Which values inside a traced JAX function are layers, by which names, and what feeds which.

The equations of the jaxpr are walked once, through ``jit``, ``remat`` and ``scan``. A product with
a parameter, or with what is computed from parameters alone (a normalised or masked weight), starts
a layer, which goes by the path of that parameter; what adds a bias to it still belongs to it. An
activation goes by the layer that feeds it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from pytest_gradcheck.backends.jax_contracts import equations, scan_counts
from pytest_gradcheck.backends.jax_loss import Traced
from pytest_gradcheck.backends.jax_sites import (
    GELU,
    PRODUCTS,
    SHAPED,
    Site,
    inlined,
    operation,
    place_of,
)
from pytest_gradcheck.backends.layers import ACTIVATIONS, Kind

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

WEIGHTS = ("kernel", "weight", "w", "W", "embedding", "scale", "value", "kernel.value")
LOOKUPS = frozenset({"gather", "take"})
# What a mean of squares goes through on its way to the max with zero that keeps it positive.
_STATISTICS = SHAPED | {"div", "mul", "sub", "add", "neg", "select_n", "square", "integer_pow"}
_SQUARES = frozenset({"square", "integer_pow", "mul"})
_NONE = ("", "", "")


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a value.

    Args:
        maker: Key of the equation that made it, or ``parameter`` and its path; empty for an input.
        weight: Path of the parameter that it is, or is computed from; empty if from anything else.
        is_data: Whether the batch, or a product or lookup with weights, is in it.
    """

    maker: str = ""
    weight: str = ""
    is_data: bool = False


@dataclass(eq=False)
class Walk:
    """A walk through a jaxpr.

    Args:
        sites: The values that are layers, by key.
        sources: Keys of the values that each value is computed from.
        ops: Operation, place and layer of every equation, by key.
        stacks: Of every equation, as of a site.
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
        inputs: Sequence[Known],
        constants: Known = Known(),  # frozen
        prefix: str = "",
        stacks: tuple[bool, ...] = (),
    ) -> list[Known]:
        """Walk; what is known of the outputs.

        Args:
            jaxpr: An open jaxpr.
            inputs: What is known of its inputs.
            constants: What is known of its constants.
            prefix: Key of the equation around it.
            stacks: As for a site.
        """
        known = {id(v): k for v, k in zip(jaxpr.invars, inputs, strict=True)}
        known |= {id(v): constants for v in jaxpr.constvars}
        for number, eqn in enumerate(jaxpr.eqns):
            key = f"{prefix}{number}"
            given = [known.get(id(v), Known()) for v in eqn.invars]
            inner = inlined(eqn)
            if inner is not None:
                ends = self.through(inner, given, Known(), f"{key}/", stacks)
            elif eqn.primitive.name == "scan":
                ends = self._scan(eqn, given, key, stacks)
            else:
                ends = [self._note(eqn, key, given, stacks)] * len(eqn.outvars)
            known |= {id(v): k for v, k in zip(eqn.outvars, ends, strict=True)}
        return [known.get(id(v), Known()) for v in jaxpr.outvars]

    def _scan(
        self, eqn: Any, given: list[Known], key: str, stacks: tuple[bool, ...]
    ) -> list[Known]:
        fixed, carried = scan_counts(eqn.params)
        xs = given[fixed + carried :]
        # What is carried is another value after the first iteration.
        carries = [Known(k.maker, "", k.is_data) for k in given[fixed : fixed + carried]]
        is_stack = any(k.weight for k in xs)
        body = eqn.params["jaxpr"].jaxpr
        inputs = [*given[:fixed], *carries, *xs]
        return self.through(body, inputs, Known(), f"{key}/", (*stacks, is_stack))

    def _note(self, eqn: Any, key: str, given: Sequence[Known], stacks: tuple[bool, ...]) -> Known:
        op, place = operation(eqn), place_of(eqn)
        origin = [k.maker for k in given if k.maker]
        self.sources[key] = tuple(origin)
        weight, position = _weight(eqn, given)
        is_data = any(k.is_data for k in given)
        is_product = bool(weight) and _multiplies(eqn, position)
        if is_product:
            self._latest = _layer(weight)
            operand = next((n for n, k in enumerate(given) if not k.weight), 1 - position)
            self._add(key, self._latest, "linear", op, place, stacks, operand)
        elif op == "add" and weight and (owner := self._product(origin)):
            moved = self.sites.pop(owner)
            self.sites[key] = Site(
                key,
                moved.name,
                "linear",
                moved.op,
                moved.index,
                moved.place,
                stacks,
                owner,
                moved.operand,
            )
        elif op == "tanh" and any(self.ops.get(o, _NONE)[0] == GELU for o in origin):
            self._add(key, f"{self._latest}.gelu".lstrip("."), "other", "gelu", place, stacks)
        elif op in ACTIVATIONS and is_data and self._activates(op, origin):
            self._add(key, f"{self._latest}.{op}".lstrip("."), "activation", op, place, stacks)
        elif op in LOOKUPS and weight:
            self._add(key, _layer(weight), "other", op, place, stacks)
        self.ops[key] = (op, place, self._latest or str(eqn.source_info.name_stack))
        self.stacks[key] = stacks
        is_data = is_data or is_product or (op in LOOKUPS and bool(weight))
        return Known(key, "" if is_data else weight, is_data)

    def _activates(self, op: str, origin: Sequence[str]) -> bool:
        if op == "exp":  # elsewhere it is part of a softmax or of a loss
            return bool(self._product(origin))
        return op != "relu" or not self._is_variance(origin)

    def _is_variance(self, origin: Sequence[str]) -> bool:
        """Whether a value is made of means alone, one of them of squares."""
        ends = [end for key in origin for end in self._means(key)]
        return bool(ends) and all(ends) and any(self._of_squares(end) for end in ends)

    def _means(self, key: str) -> Iterator[str]:
        """The sums that a value is made of; nothing for each that is anything else."""
        op = self.ops.get(key, _NONE)[0]
        if op == "reduce_sum":
            yield key
        elif op in _STATISTICS:
            for source in self.sources[key]:
                yield from self._means(source)
        elif op not in ("gt", "ge", "lt", "le", "eq", "ne"):  # the condition of a choice
            yield ""

    def _of_squares(self, key: str) -> bool:
        for source in self.sources[key]:
            op, made = self.ops.get(source, _NONE)[0], self.sources.get(source, ())
            if op in _SQUARES and (op != "mul" or len(set(made)) == 1 < len(made)):
                return True
        return False

    def _product(self, origin: Sequence[str]) -> str:
        """The key of a product among the makers of an equation's inputs, through mere shapes."""
        for start in origin:
            key = start
            while key and key not in self.sites and self.ops.get(key, _NONE)[0] in SHAPED:
                key = next(iter(self.sources.get(key, ())), "")
            if key in self.sites and self.sites[key].kind == "linear":
                return key
        return ""

    def _add(
        self,
        key: str,
        name: str,
        kind: Kind,
        op: str,
        place: str,
        stacks: tuple[bool, ...],
        operand: int = 0,
    ) -> None:
        index = -1
        if kind != "other":
            index = self._counts[kind]
            self._counts[kind] += 1
        self.sites[key] = Site(key, name, kind, op, index, place, stacks, operand=operand)


def parents(walk: Walk, sites: Sequence[str]) -> list[tuple[int, ...]] | None:
    """Of each site, positions of those that feed it; None where layers are stacked in a scan."""
    if any(walk.stacks[key] for key in sites):
        return None
    position = {key: n for n, key in enumerate(sites)}
    found: dict[str, frozenset[int]] = {}
    for key, before in walk.sources.items():  # in the order of the data
        fed = [{position[k]} if k in position else found.get(k, frozenset()) for k in before]
        found[key] = frozenset().union(*fed)
    return [tuple(sorted(found[key])) for key in sites]


def _weight(eqn: Any, given: Sequence[Known]) -> tuple[str, int]:
    """The largest weight among the inputs, and its position."""
    sizes = [(math.prod(v.aval.shape), -n) for n, v in enumerate(eqn.invars) if given[n].weight]
    if not sizes:
        return "", 0
    position = -max(sizes)[1]
    return given[position].weight, position


def _multiplies(eqn: Any, position: int) -> bool:
    """Whether an equation is a product with a weight, or a rule by hand that has one inside."""
    if eqn.primitive.name in PRODUCTS:
        return True
    is_call = eqn.primitive.name.startswith(("custom_vjp", "custom_jvp"))
    is_matrix = len(eqn.invars[position].aval.shape) > 1
    return is_call and is_matrix and any(e.primitive.name in PRODUCTS for e in _inside(eqn))


def _inside(eqn: Any) -> Iterator[Any]:
    inner = eqn.params.get("call_jaxpr", eqn.params.get("fun_jaxpr"))
    return equations(getattr(inner, "jaxpr", inner)) if inner is not None else iter(())


def _layer(path: str) -> str:
    """Name of the layer that a parameter belongs to."""
    head, _, tail = path.rpartition(".")
    return head if head and tail in WEIGHTS else path


def inputs_of(names: Sequence[str]) -> list[Known]:
    """What is known of the inputs of a traced loss, by the paths of those that are parameters."""
    return [Known(f"parameter {n}", n) if n else Known(is_data=True) for n in names]


def walked(traced: Traced) -> tuple[Walk, list[Known]]:
    """A walk through a traced loss, and what is known of its output."""
    walk = Walk()
    constants = Known(is_data=not traced.batch)  # where the batch is no input, it is among these
    return walk, walk.through(traced.jaxpr.jaxpr, inputs_of(traced.inputs), constants)
