"""Which values inside a traced JAX function are layers, by which names, and what feeds which.

The equations of the jaxpr are walked once, through ``jit``, ``remat``, ``scan``, every branch of a
``cond``, one turn of a ``while``, and what a rule by hand computes. A product with a parameter, or
with what is computed from parameters alone (a normalised or masked weight), starts a layer, which
goes by the path of that parameter; what adds a bias to it still belongs to it. An activation goes
by the layer that feeds it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pytest_gradcheck.backends.jax_contracts import scan_counts
from pytest_gradcheck.backends.jax_loss import Traced
from pytest_gradcheck.backends.jax_quotients import NONE, is_softmax, is_variance
from pytest_gradcheck.backends.jax_sites import (
    GELU,
    SHAPED,
    Around,
    Site,
    branches,
    inlined,
    is_loop,
    operation,
    place_of,
    ruled,
    turn,
)
from pytest_gradcheck.backends.jax_weights import Known, layer_of, multiplies, weight_of
from pytest_gradcheck.backends.layers import ACTIVATIONS, Kind

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

LOOKUPS = frozenset({"gather", "take"})


@dataclass(eq=False)
class Walk:
    """A walk through a jaxpr.

    Args:
        sites: The values that are layers, by key.
        sources: Keys of the values that each value is computed from.
        ops: Operation, place and layer of every equation, by key.
        merges: Of each output of a choice or a loop, the values that it may be, and what must run.
        around: What every equation lies in.
    """

    sites: dict[str, Site] = field(default_factory=dict)
    sources: dict[str, tuple[str, ...]] = field(default_factory=dict)
    ops: dict[str, tuple[str, str, str]] = field(default_factory=dict)
    merges: dict[str, tuple[tuple[str, str], ...]] = field(default_factory=dict)
    around: dict[str, Around] = field(default_factory=dict)
    _latest: str = ""
    _counts: dict[str, int] = field(default_factory=lambda: {"linear": 0, "activation": 0})

    def through(
        self,
        jaxpr: Any,
        inputs: Sequence[Known],
        constants: Known = Known(),  # noqa: B008  # frozen
        prefix: str = "",
        around: Around = Around(),  # noqa: B008  # frozen
    ) -> list[Known]:
        """Walk; what is known of the outputs.

        Args:
            jaxpr: An open jaxpr.
            inputs: What is known of its inputs.
            constants: What is known of its constants.
            prefix: Key of the equation around it.
            around: What it lies in.
        """
        known = {id(v): k for v, k in zip(jaxpr.invars, inputs, strict=True)}
        known |= {id(v): constants for v in jaxpr.constvars}
        for number, eqn in enumerate(jaxpr.eqns):
            key = f"{prefix}{number}"
            given = [known.get(id(v), Known()) for v in eqn.invars]
            inner = inlined(eqn)
            if inner is not None:
                ends = self.through(inner, given, Known(), f"{key}/", around)
            elif eqn.primitive.name == "scan":
                ends = self._scan(eqn, given, key, around)
            elif (choices := branches(eqn)) is not None:
                ends = self._cond(eqn, choices, given, key, around)
            elif is_loop(eqn):
                ends = self._while(eqn, given, key, around)
            else:
                ends = [self._note(eqn, key, given, around)] * len(eqn.outvars)
            known |= {id(v): k for v, k in zip(eqn.outvars, ends, strict=True)}
        return [known.get(id(v), Known()) for v in jaxpr.outvars]

    def _scan(self, eqn: Any, given: list[Known], key: str, around: Around) -> list[Known]:
        fixed, carried = scan_counts(eqn.params)
        xs = given[fixed + carried :]
        # What is carried is another value after the first iteration.
        is_still = all(k.is_still for k in given)
        carries = [Known(k.maker, "", k.is_data, is_still) for k in given[fixed : fixed + carried]]
        is_stack = any(k.weight for k in xs)
        body = eqn.params["jaxpr"].jaxpr
        inputs = [*given[:fixed], *carries, *xs]
        is_reverse = around.is_reverse if around.stacks else bool(eqn.params["reverse"])
        stacks = (*around.stacks, is_stack)
        inside = replace(around, stacks=stacks, loop=key, is_reverse=is_reverse)
        return self.through(body, inputs, Known(), f"{key}/", inside)

    def _cond(
        self, eqn: Any, choices: Sequence[Any], given: list[Known], key: str, around: Around
    ) -> list[Known]:
        """Each branch by itself; an output comes from that of any."""
        ends = []
        for n, branch in enumerate(choices):
            prefix = f"{key}/{n}/"
            inside = replace(around, branch=prefix)
            ends.append(self.through(branch.jaxpr, given[1:], Known(), prefix, inside))
        prefixes = [f"{key}/{n}/" for n in range(len(choices))]
        columns = zip(*ends, strict=True)
        return self._merged(eqn, columns, prefixes, f"{key}/{len(choices)}", around)

    def _while(self, eqn: Any, given: list[Known], key: str, around: Around) -> list[Known]:
        """One turn of the loop; an output comes from that of the turn, or from before."""
        body, fixed, start = turn(eqn, given)
        prefix = f"{key}/1/"
        inside = replace(
            around,
            stacks=(*around.stacks, False),
            loop=key,
            branch=prefix,
            is_held=True,
            is_layer=True,
        )
        is_still = all(k.is_still for k in given)
        carries = [Known(k.maker, "", k.is_data, is_still) for k in start]
        ends = self.through(body.jaxpr, [*fixed, *carries], Known(), prefix, inside)
        columns = zip(ends, carries, strict=True)
        return self._merged(eqn, columns, (prefix, ""), f"{key}/2", around)

    def _merged(
        self,
        eqn: Any,
        columns: Iterable[Sequence[Known]],
        prefixes: Sequence[str],
        prefix: str,
        around: Around,
    ) -> list[Known]:
        """Outputs that come from one of several values each."""
        merged = []
        for n, column in enumerate(columns):
            key, weights = f"{prefix}/{n}", {k.weight for k in column}
            pairs = zip(prefixes, column, strict=True)
            self.merges[key] = tuple((run, k.maker) for run, k in pairs if k.maker)
            self.sources[key] = tuple(maker for _, maker in self.merges[key])
            layer = self._latest or str(eqn.source_info.name_stack)
            self.ops[key] = (eqn.primitive.name, place_of(eqn), layer)
            is_still = all(k.is_still for k in column)
            self.around[key] = replace(around, is_still=is_still)
            is_data = any(k.is_data for k in column)
            weight = weights.pop() if len(weights) == 1 and not is_data else ""
            merged.append(Known(key, weight, is_data, is_still))
        return merged

    def _note(self, eqn: Any, key: str, given: Sequence[Known], around: Around) -> Known:
        op, place = operation(eqn), place_of(eqn)
        origin = [k.maker for k in given if k.maker]
        self.sources[key] = (*origin, *self._inside_rule(eqn, key, given, around))
        is_still = op == "stop_gradient" or all(k.is_still for k in given)
        around = replace(around, is_still=is_still) if is_still else around
        weight, position = weight_of(eqn, given)
        is_data = any(k.is_data for k in given)
        is_product = bool(weight) and multiplies(eqn, position)
        if is_product:
            self._latest = layer_of(weight)
            operand = next((n for n, k in enumerate(given) if not k.weight), 1 - position)
            self._add(key, self._latest, "linear", op, place, around, operand)
        elif op == "add" and weight and (owner := self._product(origin)):
            moved = self.sites.pop(owner)
            self.sites[key] = Site(
                key,
                moved.name,
                "linear",
                moved.op,
                moved.index,
                moved.place,
                around,
                owner,
                moved.operand,
            )
        elif op == "tanh" and any(self.ops.get(o, NONE)[0] == GELU for o in origin):
            self._add(key, f"{self._latest}.gelu".lstrip("."), "other", "gelu", place, around)
        elif op == "erfc" and is_data:
            self._add(key, f"{self._latest}.gelu".lstrip("."), "other", op, place, around)
        elif op in ACTIVATIONS and is_data and self._activates(op, origin):
            self._add(key, f"{self._latest}.{op}".lstrip("."), "activation", op, place, around)
        elif op == "div" and is_data and is_softmax(self.ops, self.sources, origin):
            self._add(key, f"{self._latest}.softmax".lstrip("."), "other", "softmax", place, around)
        elif op in LOOKUPS and weight:
            self._add(key, layer_of(weight), "other", op, place, around)
        self.ops[key] = (op, place, self._latest or str(eqn.source_info.name_stack))
        self.around[key] = around
        is_data = is_data or is_product or (op in LOOKUPS and bool(weight))
        return Known(key, "" if is_data else weight, is_data, is_still)

    def _inside_rule(self, eqn: Any, key: str, given: Sequence[Known], around: Around) -> list[str]:
        """What makes the outputs of a function whose derivative somebody wrote."""
        inner = ruled(eqn)
        if inner is None:
            return []
        inside = replace(around, is_held=True, is_layer=False)
        ends = self.through(inner.jaxpr, given, Known(), f"{key}/0/", inside)
        return [k.maker for k in ends if k.maker]

    def _activates(self, op: str, origin: Sequence[str]) -> bool:
        if op == "exp":  # elsewhere it is part of a softmax or of a loss
            return bool(self._product(origin))
        return op != "relu" or not is_variance(self.ops, self.sources, origin)

    def _product(self, origin: Sequence[str]) -> str:
        """The key of a product among the makers of an equation's inputs, through mere shapes."""
        for start in origin:
            key = start
            while key and key not in self.sites and self.ops.get(key, NONE)[0] in SHAPED:
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
        around: Around,
        operand: int = 0,
    ) -> None:
        if not around.is_layer:
            return
        kind, index = "other" if around.is_held else kind, -1
        if kind != "other":
            index = self._counts[kind]
            self._counts[kind] += 1
        self.sites[key] = Site(key, name, kind, op, index, place, around, operand=operand)


def parents(
    walk: Walk, sites: Sequence[str], runs: Callable[[str], bool]
) -> list[tuple[int, ...]] | None:
    """Of each site, positions of those that feed it; None where layers are stacked in a scan.

    Args:
        walk: The walk.
        sites: Keys of the sites.
        runs: Whether what has a prefix ran.
    """
    if any(walk.around[key].stacks for key in sites):
        return None
    position = {key: n for n, key in enumerate(sites)}
    found: dict[str, frozenset[int]] = {}
    for key, before in walk.sources.items():  # in the order of the data
        if key in walk.merges:
            before = tuple(maker for run, maker in walk.merges[key] if runs(run))
        fed = [{position[k]} if k in position else found.get(k, frozenset()) for k in before]
        found[key] = frozenset().union(*fed)
    return [tuple(sorted(found[key])) for key in sites]


def inputs_of(names: Sequence[str]) -> list[Known]:
    """What is known of the inputs of a traced loss, by the paths of those that are parameters."""
    return [Known(f"parameter {n}", n, is_still=False) if n else Known(is_data=True) for n in names]


def walked(traced: Traced) -> tuple[Walk, list[Known]]:
    """A walk through a traced loss, and what is known of its output."""
    walk = Walk()
    constants = Known(is_data=not traced.batch)  # where the batch is no input, it is among these
    return walk, walk.through(traced.jaxpr.jaxpr, inputs_of(traced.inputs), constants)
