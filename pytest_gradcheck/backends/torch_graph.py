"""Which seen outputs of a PyTorch model feed which, by the graph that autograd recorded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these


def parents(nodes: Sequence[Sequence[Any]]) -> list[tuple[int, ...]]:
    """Numbers of the outputs that feed each one with nothing seen between.

    Args:
        nodes: Nodes of the graph at each output, in the order of the forward pass; an output
            without any was not recorded.
    """
    owner: dict[Any, int] = {}
    found: list[tuple[int, ...]] = []
    near: dict[Any, frozenset[int]] = {}
    for number, own in enumerate(nodes):
        fed: set[int] = set()
        for node in own:
            # A container hands on what a part of it put out.
            fed |= {owner[node]} if node in owner else _near(node, owner, near)
        for node in own:
            owner.setdefault(node, number)
            near[node] = frozenset({owner[node]})
        found.append(tuple(sorted(fed - {number})))
    return found


def _near(root: Any, owner: dict[Any, int], near: dict[Any, frozenset[int]]) -> frozenset[int]:
    """The nearest owned nodes that a node depends on; what is found stays in ``near``."""
    pending = [root]
    while pending:
        node = pending[-1]
        if node in near:
            pending.pop()
            continue
        before = [n for n, _ in node.next_functions if n is not None]
        missing = [n for n in before if n not in near]
        if missing:
            pending += missing
            continue
        near[node] = frozenset().union(*(near[n] for n in before))
        pending.pop()
    return near[root]
