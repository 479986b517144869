"""How a quantity changes along the paths of a network: what arrives, and what comes on top.

The quantity is the flow of each node, which a product or a rectifier keeps (see ``depth``). Where
paths meet, the flow splits as the contributions do, so that a branch which contributes little has
little of it and is no weaker for that; where they part, a node has the flow of its strongest
child. What is lost on the way is therefore measured from child to the best of its parents.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

LOWEST = -math.inf


@dataclass(frozen=True, slots=True)
class Graph:
    """Nodes in the order of the data, and which feed which.

    Args:
        parents: Of each node, numbers of those before it that feed it.
        ends: Nodes that feed nobody.
        reach: Of each node, the ends that it reaches, as bits in the order of ``ends``.
    """

    parents: Mapping[int, tuple[int, ...]]
    ends: tuple[int, ...]
    reach: Mapping[int, int]

    @property
    def starts(self) -> tuple[int, ...]:
        """Nodes that nobody feeds."""
        return tuple(n for n, before in self.parents.items() if not before)

    def after(self, start: Sequence[int]) -> tuple[int, ...]:
        """Nodes that are among some, or that one of these feeds, directly or not."""
        found = set(start)
        for n, before in self.parents.items():
            if not found.isdisjoint(before):
                found.add(n)
        return tuple(n for n in self.parents if n in found)

    def narrow(self, some: Collection[int]) -> frozenset[int]:
        """Nodes among some that no path inside these goes round."""
        inside = [n for n in self.parents if n in some]
        before = {n: [p for p in self.parents[n] if p in some] for n in inside}
        fed = {p for n in inside for p in before[n]}
        there = dict.fromkeys(inside, 0)  # paths from a beginning
        for n in inside:
            there[n] = sum(there[p] for p in before[n]) if before[n] else 1
        back = {n: 0 if n in fed else 1 for n in inside}  # paths to an end
        for n in reversed(inside):
            for p in before[n]:
                back[p] += back[n]
        total = sum(back[n] for n in inside if not before[n])
        return frozenset(n for n in inside if there[n] * back[n] == total)

    def has_way_round(self, some: Collection[int]) -> bool:
        """Whether every start reaches all its ends without them."""
        found = {n: 1 << self.ends.index(n) if n in self.ends else 0 for n in self.parents}
        for n in reversed(list(self.parents)):
            for p in self.parents[n] if n not in some else ():
                found[p] |= found[n]
        return all(found[n] == self.reach[n] and n not in some for n in self.starts)


def graph(parents: Sequence[Sequence[int]], kept: Sequence[bool], ends: Sequence[bool]) -> Graph:
    """The nodes that are kept and reach an end; others are bridged.

    Args:
        parents: Of each node, numbers of those before it that feed it.
        kept: Whether each is measured.
        ends: Whether each may be an end.
    """
    bridged: list[tuple[int, ...]] = []
    for n, before in enumerate(parents):
        through = {q for p in before if p < n for q in ((p,) if kept[p] else bridged[p])}
        bridged.append(tuple(sorted(through)))
    useful: set[int] = set()
    for n in reversed(range(len(parents))):
        if kept[n] and (ends[n] or n in useful):
            useful |= {n, *bridged[n]}
    nodes = {n: bridged[n] for n in sorted(useful)}
    fed = {p for before in nodes.values() for p in before}
    last = tuple(n for n in nodes if n not in fed)
    reach = dict.fromkeys(nodes, 0) | {n: 1 << k for k, n in enumerate(last)}
    for n in reversed(nodes):
        for p in nodes[n]:
            reach[p] |= reach[n]
    return Graph(nodes, last, reach)


def kept(nodes: Graph, logs: Mapping[int, float], joined: Collection[int] = ()) -> dict[int, float]:
    """Log10 of what arrives at each node of the flow at the ends, by the best of its paths.

    In a chain, the ratio of the flow to that at the end.

    Args:
        nodes: The nodes.
        logs: Log10 of the flow of each.
        joined: Nodes that something which is no node feeds as well, with most of what they get:
            the best of their parents, which loses nothing.
    """
    strongest: dict[int, float] = {}
    for n, fed_by in nodes.parents.items():
        for p in fed_by:
            strongest[p] = max(strongest.get(p, LOWEST), logs[n])
    found = {n: 0.0 if n in nodes.ends else LOWEST for n in nodes.parents}
    for n in reversed(list(nodes.parents)):
        own = nodes.parents[n]
        step = max((_difference(logs[p], strongest[p]) for p in own), default=0.0)
        step = max(step, 0.0) if n in joined else step
        for p in own:
            found[p] = max(found[p], found[n] + step)
    return found


def grown(nodes: Graph, logs: Mapping[int, float]) -> dict[int, float]:
    """Log10 of the flow of each node over that of all ends that it reaches."""
    together: dict[int, float] = {}
    for bits in set(nodes.reach.values()):
        reached = [logs[n] for k, n in enumerate(nodes.ends) if bits >> k & 1]
        together[bits] = _sum(reached)
    return {n: _difference(logs[n], together[bits]) for n, bits in nodes.reach.items()}


def changed(arrived: float, more: float) -> float:
    """One number for both: a loss that no path avoids, a gain that no end explains."""
    return arrived if arrived < 0 else max(0.0, min(arrived, more))


def _difference(a: float, b: float) -> float:
    return 0.0 if a == b else a - b


def _sum(logs: Sequence[float]) -> float:
    top = max(logs)
    if not math.isfinite(top):
        return top
    return top + 0.5 * math.log10(math.fsum(10.0 ** (2 * (x - top)) for x in logs))
