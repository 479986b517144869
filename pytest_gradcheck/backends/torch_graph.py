"""Which seen outputs of a PyTorch model feed which, by the graph that autograd recorded."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these


# Operations that put things together, each in full: beside a factor, a small input stays small.
JOINS = re.compile(r"(Add|Sub|Rsub|Cat|Stack|Where|Addcmul|Addcdiv|Lerp)Backward\d*")


class Fed(NamedTuple):
    """By what an output is fed with nothing seen between.

    Args:
        parents: Numbers of the outputs before it.
        is_joined: Whether something without a gradient is added to these, or put beside them.
    """

    parents: tuple[int, ...]
    is_joined: bool


def fed(nodes: Sequence[Sequence[Any]]) -> list[Fed]:
    """By what each output is fed.

    Args:
        nodes: Nodes of the graph at each output, in the order of the forward pass; an output
            without any was not recorded.
    """
    owner: dict[Any, int] = {}
    found: list[Fed] = []
    near: dict[Any, Fed] = {}
    for number, own in enumerate(nodes):
        before: set[int] = set()
        is_joined = False
        for node in own:
            # A container hands on what a part of it put out.
            made = Fed((owner[node],), False) if node in owner else _near(node, near)
            before |= {*made.parents}
            is_joined |= made.is_joined
        for node in own:
            owner.setdefault(node, number)
            near[node] = Fed((owner[node],), False)
        found.append(Fed(tuple(sorted(before - {number})), is_joined))
    return found


def _near(root: Any, near: dict[Any, Fed]) -> Fed:
    """The nearest outputs that a node depends on; what is found stays in ``near``."""
    pending = [root]
    while pending:
        node = pending[-1]
        if node in near:
            pending.pop()
            continue
        inputs = [n for n, _ in node.next_functions]
        before = [n for n in inputs if n is not None]
        missing = [n for n in before if n not in near]
        if missing:
            pending += missing
            continue
        is_joined = len(before) < len(inputs) and bool(JOINS.fullmatch(node.name()))
        near[node] = Fed(
            tuple({p for n in before for p in near[n].parents}),
            is_joined or any(near[n].is_joined for n in before),
        )
        pending.pop()
    return near[root]
