"""The calls of a step that lead to an update, and what is known of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from pytest_gradcheck.backends.seen import Clip
from pytest_gradcheck.backends.steps import Update

Grads = Sequence["np.ndarray | None"]


def are_finite(grads: Grads) -> bool:
    """Whether all gradients are finite, those apart that are not there."""
    return all(g is None or bool(np.all(np.isfinite(g))) for g in grads)


@dataclass(slots=True, eq=False)
class Window:
    """The calls that led to an update.

    Args:
        number: Number of the update, from 1.
        first: Number of the first call, from 1.
        batches: What the calls were given.
        marks: The state of the generators before each.
        losses: The loss before each.
        micro: The fresh gradient before each.
        at: The parameters before.
        events: What was seen in all of them.
        updates: The steps of optimizers with which it ended.
        clips: The clips of the framework that were called.
        retaken: The gradients as they were taken after the call, where they may be others than
            before: under the conditions of the step, at the parameters of each update, with what
            else the loss depends on as the step left it.
        is_altered: Whether the conditions changed.
        is_retaken: Whether ``micro`` are the gradients of ``retaken``, which ``losses`` are not of.
        idle: Places of calls that did nothing, among the batches.
        turns: How often the optimizer steps in the call that ends it.
        again: The losses once more, after everything; empty until they are asked for.
        lying: The gradients that lay at the parameters before; empty where nobody looked.
        starts: Numbers of events and of clips before each call.
        left: Calls at its start that were left out after their backward pass.
        is_spared: Whether ``micro`` is what arrived: no fresh gradient was taken.
    """

    number: int
    first: int
    batches: list[Any] = field(default_factory=list)
    marks: list[Any] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    micro: list[Grads] = field(default_factory=list)
    at: Sequence[np.ndarray] = ()
    events: list[tuple[str, float]] = field(default_factory=list)
    updates: Sequence[Update] = ()
    clips: list[Clip] = field(default_factory=list)
    retaken: list[Grads] = field(default_factory=list)
    is_altered: bool = False
    is_retaken: bool = False
    idle: list[int] = field(default_factory=list)
    turns: int = 1
    again: list[float] = field(default_factory=list)
    lying: Grads = ()
    starts: list[tuple[int, int]] = field(default_factory=list)
    left: int = 0
    is_spared: bool = False

    def without(self, gone: set[int]) -> Window:
        """The window without some of its calls, of which nothing but their events is left."""
        kept = [k for k in range(len(self.batches)) if k not in gone]
        return replace(
            self,
            batches=[self.batches[k] for k in kept],
            marks=[self.marks[k] for k in kept],
            losses=[self.losses[k] for k in kept],
            micro=[self.micro[k] for k in kept],
            idle=[],
        )

    def each(self, found: Callable[..., Any], at: Sequence[np.ndarray] | None = None) -> list[Any]:
        """What a function makes of each batch, at the parameters before or others, and its mark."""
        there = self.at if at is None else at
        pairs = zip(self.batches, self.marks, strict=True)
        return [found(batch, there, mark) for batch, mark in pairs]

    @property
    def count(self) -> int:
        """Calls that do something."""
        return len(self.batches) - len(self.idle)

    @property
    def last(self) -> int:
        """Number of the last call."""
        return self.first + len(self.batches) - 1
