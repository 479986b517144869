"""PyTorch: what happens inside of one call of a step, in its order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pytest_gradcheck.backends.seen import Clip
from pytest_gradcheck.backends.steps import Update
from pytest_gradcheck.backends.torch_moments import Moments, Taken
from pytest_gradcheck.backends.torch_values import are_near


class Record:
    """The events of a call, the clips and the updates.

    Args:
        loop: The training.
        batch: What the call is given.
        mark: The state of the generators before it.
        start: The parameters before it.
    """

    def __init__(self, loop: Any, batch: Any, mark: Any, start: list[np.ndarray]) -> None:
        self._loop = loop
        loop.passes.append(0)
        self.moments = Moments(loop, batch, mark)
        self._lay = self.lay()
        self.lying = loop.received() if loop.looks_inside else []
        self._flags = [p.requires_grad for p in loop.tensors]  # before
        self.trained = list(self._flags)
        self.start = start  # parameters at which a gradient is right: those of the last update
        self.is_stepping = False  # inside of an optimizer, which may look elsewhere (SAM)
        self.updates: list[Update] = []
        self.events: list[tuple[str, float]] = []
        self.clips: list[Clip] = []
        self.fresh: Taken | None = None
        self._is_taking = False
        self.is_hooked = loop.is_hooked()  # whether gradients pass through other hooks at any time
        self._shifted: Taken | None = None  # at parameters that the step has moved

    def note(self, word: str, number: float, *clip: Any) -> None:
        """Told of everything; of a clip with its parameters, order and given norm."""
        if self._is_taking:
            return
        if word == "grad":  # no gradient lies anywhere: what it is for is not known
            self._stir()
            return
        if word == "backward":
            self.see_flags()
            self._loop.scene.backward()
            if self._loop.looks_inside:
                self._take()
            self._stir()
        else:
            self.see()
        if clip and math.isfinite(number):
            made = self._clip(word == "clip by value", number, *clip)
            if made.with_gradient and not made.places:  # of a model that is not ours
                word = "other clip"
            else:
                self.clips.append(made)
        self.events.append((word, number))

    def see(self, *_: Any) -> None:
        """A loss may begin now."""
        if self._loop.looks_inside and not self._is_taking:
            self.moments.see()

    def _stir(self) -> None:
        """Let what is drawn after the last backward pass of an update be other numbers."""
        self._loop.passes[-1] += 1
        if self._loop.stirred is not None:
            left, mark = self._loop.stirred
            self._loop.stirred = None if left == 1 else (left - 1, mark)
            if left == 1:
                self._loop.rewind(mark)

    def _take(self) -> None:
        """Take the fresh gradient at this very moment, whatever the step moved before it."""
        self._is_taking = True  # of what the check does, nothing is told
        try:
            self._taken()
        finally:
            self._is_taking = False

    def _taken(self) -> None:
        self.is_hooked |= self._loop.is_hooked()
        right = self._right()
        self.fresh, is_alike = self.moments.gradient(None if self.is_stepping else right)
        self._loop.is_strayed |= not is_alike
        pairs = zip(right, self._loop.now(), strict=True)
        is_moved = not self.is_stepping and any(not np.array_equal(a, b) for a, b in pairs)
        self._shifted = self.moments.gradient(None)[0] if is_moved else None
        self.moments.see()

    def fresh_at(self, before: Sequence[np.ndarray]) -> Taken | None:
        """The fresh gradient for an update that starts from some parameters.

        What a step moves, differentiates there and puts back (SAM) means the gradient there.
        """
        if self._shifted is None or not are_near(before, self._right()):
            return self.fresh
        self._loop.is_shifted = True
        return self._shifted

    def is_toggled(self) -> bool:
        """Whether anybody was frozen or thawed, told after the call."""
        self.see_flags()
        now = [p.requires_grad for p in self._loop.tensors]
        return not self._flags == now == self.trained

    def see_flags(self) -> None:
        """Note who takes a gradient: what is frozen for a while only is trained (pix2pix)."""
        now = [p.requires_grad for p in self._loop.tensors]
        self.trained = [a or b for a, b in zip(self.trained, now, strict=True)]

    def _right(self) -> list[np.ndarray]:
        """Parameters at which a gradient is right; what no optimizer holds is as it is now."""
        now = self._loop.now()
        pairs = zip(self._loop.parameters, self.start, now, strict=True)
        return [old if tracked.owners else new for tracked, old, new in pairs]

    @property
    def is_idle(self) -> bool:
        """Whether the call left the gradients and the parameters alone."""
        words = [word for word, _ in self.events]
        is_still = self._lay == self.lay() and "backward" not in words
        return not self.updates and (is_still or "other step" in words)

    def lay(self) -> list[Any]:
        """Which gradients lie at the parameters, and how often each was written."""
        grads = [p.grad for p in self._loop.tensors]
        return [None if g is None else (id(g), g._version) for g in grads]

    def _clip(
        self, is_value: bool, threshold: float, held: Sequence[Tensor], order: float, size: float
    ) -> Clip:
        tensors = enumerate(self._loop.tensors)
        places = tuple(i for i, p in tensors if any(p is q for q in held))
        having = sum(q.grad is not None for q in held)
        entering = _norm([self._loop.tensors[i].grad for i in places])
        return Clip(places, threshold, order, is_value, size, len(held), having, entering)


def _norm(grads: Sequence[Tensor | None]) -> float:
    """The norm of all elements of some gradients, NaN where one is not as others are."""
    found = [g for g in grads if g is not None]
    try:
        dense = [g.coalesce().values() if g.is_sparse else g for g in found]
        sizes = [torch.linalg.vector_norm(g.float() if g.itemsize < 4 else g) for g in dense]
        return math.hypot(*(x.item() for x in sizes))
    except (NotImplementedError, RuntimeError, TypeError):  # of a kind that has no norm
        return math.nan
