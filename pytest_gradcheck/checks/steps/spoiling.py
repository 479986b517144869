"""A batch whose gradient is not finite, handed to the step: what it does with it, and after it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pytest_gradcheck.backends import tree
from pytest_gradcheck.backends.protocol import Leaf
from pytest_gradcheck.backends.steps import Call, Loop
from pytest_gradcheck.checks.steps.windows import are_finite
from pytest_gradcheck.errors import UsageError

FILLS = (float("inf"), float("nan"))  # a bound on its inputs may hide the first from a model


@dataclass(frozen=True, slots=True, eq=False)
class Spoilt:
    """What a step did with a batch whose gradient is not finite.

    Args:
        call: The last call of its window.
        moved: Names of the parameters that it moved.
        is_finite: Whether all numbers of parameters that were finite before were so afterwards.
        buffers: Names of what the model holds beside, finite before and not after.
        by: What was not finite: ``a batch``, or the name of a parameter.
        after: Number of the call after which it was made, and the training went on from there; 0
            where all was put back.
    """

    call: Call
    moved: tuple[str, ...]
    is_finite: bool
    buffers: tuple[str, ...]
    by: str
    after: int = 0

    def keeps(self, policy: str) -> bool:
        """Whether that is what is claimed."""
        if policy == "raise":
            return bool(self.call.error)
        if policy == "skip":
            return not self.call.error and not self.moved
        return not self.call.error and not self.is_finite


@dataclass(frozen=True, slots=True, eq=False)
class Spoiling:
    """A batch, and other parameters, at which the gradient is not finite.

    Args:
        batches: What the calls of a window are given.
        at: The parameters, where it is they that are not finite.
        by: What is not finite, in words.
    """

    batches: Sequence[Any]
    at: Sequence[np.ndarray] | None
    by: str

    def made(self, loop: Loop, after: int) -> Spoilt:
        """Call the step with it."""
        held = loop.unfinite()
        calls = []
        for batch in self.batches:
            calls.append(loop.call(batch) if self.at is None else loop.call_at(batch, self.at))
            if calls[-1].error:
                break
        pairs = list(zip(loop.parameters, calls[0].before, calls[-1].after, strict=True))
        moved = [p.name for p, a, b in pairs if not np.array_equal(a, b, equal_nan=True)]
        is_finite = all(bool(np.all(np.isfinite(b) | ~np.isfinite(a))) for _, a, b in pairs)
        buffers = [name for name in loop.unfinite() if name not in held]
        return Spoilt(calls[-1], tuple(moved), is_finite, tuple(buffers), self.by, after)


def found(loop: Loop, batch: Any, count: int) -> Spoiling | None:
    """How to make a gradient that is not finite; None where nothing that is tried makes one.

    Numbers in the batch, and where it has none that count, in a parameter.

    Args:
        loop: The training.
        batch: A batch as it is.
        count: Calls of a window, all of which are given what is spoilt: whether one that is good
            still counts beside a bad one is for the step to say.
    """
    for bad in _batches(batch):
        if not _is_finite(loop, bad, None):
            return Spoiling([bad] * count, None, "a batch")
    here = [np.array(x) for x in loop.now()]
    for i, tracked in enumerate(loop.parameters):
        if tracked.trainable and here[i].size > 1:
            at = [x.copy() if k == i else x for k, x in enumerate(here)]
            at[i].flat[0] = np.nan  # the others show whether it is moved
            if not _is_finite(loop, batch, at):
                return Spoiling([batch] * count, at, tracked.name)
    return None


def _is_finite(loop: Loop, batch: Any, at: Sequence[np.ndarray] | None) -> bool:
    """Whether the loss has a gradient that is finite; where it raises, there is none to skip."""
    try:
        _, grads = loop.gradient(batch, at, loop.mark())
    except UsageError:
        return True
    return are_finite(grads)


def _batches(batch: Any) -> Iterator[Any]:
    """The batch with numbers that are not finite: in all of its arrays, and in one by one."""
    flat = tree.flatten(batch, Leaf, lambda node: None)
    places = [i for i, leaf in enumerate(flat.leaves) if _is_floating(leaf.value)]
    chosen = [places, *([i] for i in places if len(places) > 1)]
    for these in chosen if places else ():
        for fill in FILLS:
            yield flat.rebuild(
                [x.value * fill if i in these else x.value for i, x in enumerate(flat.leaves)]
            )


def _is_floating(value: Any) -> bool:
    is_array = "float" in str(getattr(value, "dtype", "")) and bool(math.prod(value.shape))
    return is_array or isinstance(value, float)
