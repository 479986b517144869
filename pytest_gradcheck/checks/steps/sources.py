"""The loss of a window as a function of the parameters: as it is, with parts held still, wide."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pytest_gradcheck.backends.steps import Stopped
from pytest_gradcheck.checks.steps import products
from pytest_gradcheck.checks.steps.measure import Run
from pytest_gradcheck.checks.steps.windows import Grads, Window
from pytest_gradcheck.errors import UsageError
from pytest_gradcheck.numerics import precision

ALIKE = 1e3  # roundings by which a loss in float64 may be another number
MOST = 0.05  # of the loss, in half precision
HALF = ("float16", "bfloat16")

Loss = Callable[[Sequence[np.ndarray]], float]


@dataclass(frozen=True, slots=True)
class Source:
    """A loss, and where it can be had in float64.

    Args:
        loss: At other parameters.
        dtype: The coarsest precision in it.
        widened: The same in a finer one, float64 at best; None where it cannot be had.
        gradients: What is differentiated in this precision, batch by batch; None where that is not
            known.
    """

    loss: Loss
    dtype: str
    widened: Callable[[], Source | None] = lambda: None
    gradients: Callable[[], Sequence[Grads]] | None = None


def shares(run: Run, window: Window) -> list[float]:
    """The share of each batch of a window in its loss."""
    sizes = [run.loop.size(batch) for batch in window.batches]
    return [n / sum(sizes) for n in sizes]


def again(run: Run, window: Window) -> list[float]:
    """The losses at the parameters of a window once more: what else they depend on may have moved.

    Where they are what they were, so are their gradients.
    """
    if not window.again:
        window.again = window.each(run.loop.value)
    return window.again


def plain(run: Run, window: Window) -> Source:
    """The loss of a window."""
    narrow = _valued(run, window, run.loop)
    return Source(narrow, _coarsest(run), functools.cache(lambda: _widened(run, window, narrow)))


def _coarsest(run: Run) -> str:
    """The coarsest precision of parameters and loss, and of what the loss itself casts to."""
    return precision.coarsest({run.coarsest, *getattr(run.loop, "inner", ())})


def _valued(run: Run, window: Window, source: Any) -> Loss:
    """The loss of a window as a loop gives it, or what a loop gives in float64."""

    def loss(at: Sequence[np.ndarray]) -> float:
        if at is window.at and source is run.loop:
            return float(np.dot(again(run, window), shares(run, window)))
        return float(np.dot(window.each(source.value, at), shares(run, window)))

    return loss


def _widened(run: Run, window: Window, narrow: Loss) -> Source | None:
    """The loss in float64, if it is the same one: random numbers may be drawn otherwise there."""
    if not hasattr(run.loop, "wide"):
        return _unrounded(run, narrow)
    source = run.loop.wide()
    wide = _same(run, window, narrow, _valued(run, window, source))
    if wide is not None and hasattr(source, "arrays"):
        wide = replace(wide, gradients=lambda: window.each(source.arrays))
    return wide or _unrounded(run, narrow)


def _unrounded(run: Run, narrow: Loss) -> Source | None:
    """The loss in float32 with all digits of its products; None where it has them, or fewer."""
    if products.exactly(run) is None or _coarsest(run) != "float32":
        return None

    def loss(at: Sequence[np.ndarray]) -> float:
        with products.exactly(run) or nullcontext():
            return narrow(list(at))  # another list: what was seen there before was rounded

    return Source(loss, "float32")


def _same(run: Run, window: Window, narrow: Loss, wide: Loss) -> Source | None:
    dtype = _coarsest(run)
    near = min(ALIKE * precision.epsilon(dtype), MOST)
    if dtype in HALF and getattr(run.loop, "draws", False):
        return None  # other numbers that are drawn would look like rounding
    try:
        a, b = narrow(window.at), wide(window.at)
    except UsageError:  # a part of it is float32 whatever the parameters are
        return None
    # Or all of it at the end, by float(): then it is no finer than that.
    finest = "float32" if float(np.float32(b)) == b else "float64"
    is_same = abs(a - b) <= near * max(abs(a), abs(b))
    is_finer = precision.epsilon(finest) < precision.epsilon(dtype)
    return Source(wide, finest) if is_same and is_finer else None


def stopped(run: Run, window: Window) -> tuple[Source, tuple[str, ...], tuple[str, ...]] | None:
    """The loss of a window with what it holds back held still; None where it holds nothing back.

    Beside it: what holds back, and whose backward is written by the user.
    """
    if not hasattr(run.loop, "stopped"):
        return None
    narrow, places, functions = _held(run, window, run.loop)
    if not places and not functions:
        return None

    @functools.cache
    def widened() -> Source | None:
        source = getattr(run.loop, "wide", None)
        try:
            wide = source and _same(run, window, narrow, _held(run, window, source())[0])
        except UsageError:
            wide = None
        return wide or _unrounded(run, narrow)

    return Source(narrow, _coarsest(run), widened), places, functions


def _held(run: Run, window: Window, source: Any) -> tuple[Loss, tuple[str, ...], tuple[str, ...]]:
    parts: list[Stopped] = window.each(source.stopped)
    weights = shares(run, window)

    def loss(at: Sequence[np.ndarray]) -> float:
        return float(np.dot([part.value(at) for part in parts], weights))

    places = dict.fromkeys(place for part in parts for place in part.places)
    functions = dict.fromkeys(name for part in parts for name in part.functions)
    return loss, tuple(places), tuple(functions)
