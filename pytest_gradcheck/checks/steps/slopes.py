"""Slopes of the loss along its gradient, and along all tensors of it alike, by differences.

Autograd against the step sees no gradient hook and no wrong backward: both have it. Differences do.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pytest_gradcheck.checks.steps.expected import combined
from pytest_gradcheck.checks.steps.ladder import filled, shown
from pytest_gradcheck.checks.steps.measure import Run, Window
from pytest_gradcheck.checks.steps.sources import Source, shares
from pytest_gradcheck.limits import Limits
from pytest_gradcheck.numerics import clipping, precision
from pytest_gradcheck.numerics.slopes import RATIO, Slope, at_zero, bounded

LEVELS = 5  # steps of a difference
LEAST = 1e-2  # of the largest tensor's gradient: a smaller one needs steps that are too long


@dataclass(frozen=True, slots=True)
class Gap:
    """A gradient that is not the slope of the loss.

    Args:
        measured: The slope along it by differences.
        claimed: What the gradient says.
        names: Tensors along whose gradient alone it is not the slope either.
    """

    measured: float
    claimed: float
    names: tuple[str, ...]

    @property
    def ratio(self) -> float:
        """What the gradient says over what was measured."""
        return self.claimed / self.measured if self.measured else math.inf


class _Line:
    """A loss, a point, and the gradient there.

    Args:
        at: The point.
        source: The loss.
        grads: The gradient.
        is_sharp: Whether to trust the best of several steps, or to ask all of them.
    """

    def __init__(
        self,
        at: Sequence[np.ndarray],
        source: Source,
        grads: Sequence[np.ndarray],
        is_sharp: bool = True,
    ) -> None:
        self._at, self._loss, self.grads, self._is_sharp = at, source.loss, grads, is_sharp
        self._epsilon, self._start = precision.epsilon(source.dtype), math.nan

    def gap(self, move: Sequence[np.ndarray], limit: float) -> tuple[float, float] | None:
        """Slope along a direction by differences and by the gradient; None where they agree."""
        claimed = float(np.vdot(clipping.flat(self.grads), clipping.flat(move)))
        if not claimed or not math.isfinite(claimed):
            return None
        allowed = limit * abs(claimed)
        seen: list[Slope] = []
        for each in self._slopes(move):
            seen.append(each)
            if each.agrees(claimed, allowed, seen[0].slack):
                return None
        if at_zero(seen, allowed).holds(claimed, allowed):
            return None
        if not self._is_sharp and any(each.holds(claimed, allowed) for each in seen):
            return None
        best = min(bounded(seen), key=lambda each: each.slack)
        return None if best.agrees(claimed, allowed, best.slack) else (best.middle, claimed)

    def _slopes(self, move: Sequence[np.ndarray]) -> Iterator[Slope]:
        """Slopes for a ladder of steps, the longest first, each with its rounding as slack."""
        epsilon = self._epsilon
        size, length = clipping.norm(self._at, 2) or 1.0, clipping.norm(move, 2)
        if math.isnan(self._start):
            self._start = self._loss(self._at)
        start = self._start
        for power in range(LEVELS):
            h = RATIO**-power * epsilon**0.25 * size / length
            up, down = (self._moved(move, h) - start) / h, (start - self._moved(move, -h)) / h
            noise = 8 * epsilon * max(abs(start), abs(start + up * h)) / h
            yield Slope(down, up, noise)

    def _moved(self, move: Sequence[np.ndarray], h: float) -> float:
        return self._loss([x + h * u for x, u in zip(self._at, move, strict=True)])


def gap(run: Run, window: Window, source: Source, limits: Limits) -> Gap | None:
    """Where the loss does not follow its gradient: as a whole, or in some of its tensors.

    A gradient of float32 is accused by differences in float64, where these can be had: a network
    with many kinks, or a gradient near zero, leaves no step that float32 would be right for.
    """
    grads = _gradient(run, window)
    limit = limits.number("step_slope", run.coarsest)
    found = _of_line(run, _Line(window.at, source, grads), limit)
    if found is None or source.dtype == "float64":
        return found
    wide = source.widened()
    if wide is not None:
        return _of_line(run, _Line(window.at, Source(wide, "float64"), grads), limit)
    return _of_line(run, _Line(window.at, source, grads, is_sharp=False), limit)


def _of_line(run: Run, line: _Line, limit: float) -> Gap | None:
    """Along the gradient itself the largest tensors count the most, then each one the same.

    What only the second direction sees must be seen along a tensor alone, too.
    """
    whole = line.gap(line.grads, limit)
    move = _even(line.grads)
    count = max(sum(bool(np.any(v)) for v in move), 1)
    even = None if whole is not None else line.gap(move, limit / count)
    if whole is None and even is None:
        return None
    alone = {}
    for i, g in enumerate(line.grads):
        off = line.gap([g if j == i else 0 * x for j, x in enumerate(line.grads)], limit)
        if off is not None:
            alone[run.names[i]] = off
    found = whole or next(iter(alone.values()), None)
    return None if found is None else Gap(*found, tuple(alone))


def _even(grads: Sequence[np.ndarray]) -> list[np.ndarray]:
    """A direction along which each tensor's gradient gives the same slope; small ones are left."""
    sizes = [float(np.linalg.norm(g)) for g in grads]
    return [
        g / size**2 if size > LEAST * max(sizes) else 0 * g
        for g, size in zip(grads, sizes, strict=True)
    ]


def _gradient(run: Run, window: Window) -> list[np.ndarray]:
    """The gradient, taken again: what else the loss depends on may have changed since."""
    fresh = [
        run.loop.gradient(batch, window.at, mark)[1]
        for batch, mark in zip(window.batches, window.marks, strict=True)
    ]
    return shown(run, filled(combined(fresh, shares(run, window)), window))
