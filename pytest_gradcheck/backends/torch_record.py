"""PyTorch: what happens inside of one call of a step, in its order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from pytest_gradcheck.backends.steps import Clip, Update


class Record:
    """The events of a call, the clips and the updates.

    Args:
        loop: The training.
        batch: What the call is given.
        mark: The state of the generators before it.
    """

    def __init__(self, loop: Any, batch: Any, mark: Any) -> None:
        self._loop, self._batch, self._mark = loop, batch, mark
        self._lay = self._lying()
        self.start = loop.now()  # parameters at which a gradient is right: those of the last update
        self.is_stepping = False  # inside of an optimizer, which may look elsewhere (SAM)
        self.updates: list[Update] = []
        self.events: list[tuple[str, float]] = []
        self.clips: list[Clip] = []
        self.fresh: tuple[float, Sequence[np.ndarray | None]] | None = None

    def note(self, word: str, number: float, *clip: Any) -> None:
        """Told of everything; of a clip with its parameters, order and given norm."""
        if word == "backward":
            self._loop.seen_backward()
            if self._loop.looks_inside:  # at this very moment, whatever the step moved before it
                at = None if self.is_stepping else self._right()
                self.fresh = self._loop.inside(self._batch, at, self._mark)
        if clip and math.isfinite(number):
            made = self._clip(word == "clip by value", number, *clip)
            if made.with_gradient and not made.places:  # of a model that is not ours
                word = "other clip"
            else:
                self.clips.append(made)
        self.events.append((word, number))

    def _right(self) -> list[np.ndarray]:
        """Parameters at which a gradient is right; what no optimizer holds is as it is now."""
        now = self._loop.now()
        pairs = zip(self._loop.parameters, self.start, now, strict=True)
        return [old if tracked.owners else new for tracked, old, new in pairs]

    @property
    def is_idle(self) -> bool:
        """Whether the call left the gradients and the parameters alone."""
        words = [word for word, _ in self.events]
        is_still = self._lay == self._lying() and "backward" not in words
        return not self.updates and (is_still or "other step" in words)

    def _lying(self) -> list[Any]:
        """Which gradients lie at the parameters, and how often each was written."""
        grads = [p.grad for p in self._loop.tensors]
        return [None if g is None else (id(g), g._version) for g in grads]

    def _clip(
        self, is_value: bool, threshold: float, held: Sequence[Tensor], order: float, size: float
    ) -> Clip:
        tensors = enumerate(self._loop.tensors)
        places = tuple(i for i, p in tensors if any(p is q for q in held))
        having = sum(q.grad is not None for q in held)
        return Clip(places, threshold, order, is_value, size, len(held), having)
