"""The records of the layers of a PyTorch model, from what one pass has noted of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from pytest_gradcheck.backends import layers, torch_graph
from pytest_gradcheck.backends.layers import Kind, Layer
from pytest_gradcheck.backends.torch_sizes import finite

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these


@dataclass(eq=False)
class Seen:
    """A layer while the pass runs; sizes are tensors of one element, read at the end."""

    name: str
    kind: Kind
    op: str
    size: int
    width: int
    index: int
    activation: Tensor
    dead: Tensor | None = None
    saturated: Tensor | None = None
    gradients: list[Tensor] = field(default_factory=list)
    flows: list[Tensor] = field(default_factory=list)  # position by position
    given: Tensor | None = None
    nodes: list[Any] = field(default_factory=list)  # of autograd, at its output
    feeder: str = ""  # name of the layer whose output an activation is given
    is_op: bool = False


def read(seen: Sequence[Seen]) -> Iterator[Layer]:
    """The records, in the order of the data."""
    ends = [n for n, s in enumerate(seen) if s.kind == "linear"]
    # Only the softmax after the last product is of interest: the others are parts of attention.
    seen = [s for n, s in enumerate(seen) if s.op != "softmax" or not ends or n > ends[-1]]
    names = layers.numbered(_names(seen))
    fed = torch_graph.fed([s.nodes for s in seen])
    last = max((n for n, s in enumerate(seen) if s.kind == "linear"), default=-1)
    for n, (name, s) in enumerate(zip(names, seen, strict=True)):
        sizes = [float(g) for g in s.gradients]
        yield Layer(
            name=name,
            kind=s.kind,
            op=s.op,
            size=s.size,
            width=s.width,
            activation=finite(float(s.activation)),
            gradient=finite(math.sqrt(sum(g * g for g in sizes))) if sizes else math.nan,
            dead=math.nan if s.dead is None else float(s.dead),
            saturated=math.nan if s.saturated is None else float(s.saturated),
            index=s.index if n <= last else -1,  # an activation after it belongs to the loss
            given=math.nan if s.given is None else finite(float(s.given)),
            parents=fed[n].parents,
            is_joined=fed[n].is_joined,
            match=_match(s),
        )


def _names(seen: Sequence[Seen]) -> Iterator[str]:
    """Names of the calls; an activation that several layers share goes by each of these."""
    feeders: dict[str, set[str]] = {}
    for s in seen:
        feeders.setdefault(s.name, set()).add(s.feeder)
    for s in seen:
        is_shared = bool(s.feeder) and len(feeders[s.name]) > 1
        yield f"{s.feeder}.{s.op}" if is_shared else s.name


def _match(seen: Seen) -> float:
    """Flow of all positions, each by itself, over the whole."""
    whole = float(seen.activation) * math.hypot(*map(float, seen.gradients))
    flow = math.hypot(*map(float, seen.flows))
    return flow / whole if 0 < whole < math.inf and math.isfinite(flow) else 1.0
