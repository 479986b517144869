"""Slopes of the loss along its gradient, and along all tensors of it alike, by differences.

Autograd against the step sees no gradient hook and no wrong backward: both have it. Differences do.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pytest_gradcheck.backends.steps import Stopped
from pytest_gradcheck.checks.steps.expected import combined
from pytest_gradcheck.checks.steps.ladder import filled, shown
from pytest_gradcheck.checks.steps.measure import Run, Window
from pytest_gradcheck.limits import Limits
from pytest_gradcheck.numerics import clipping, precision

LEVELS = 5  # steps of a difference
RATIO = 4.0  # between them
GAPS = 2.0  # how many gaps between steps a central difference may be off
LEAST = 1e-2  # of the largest tensor's gradient: a smaller one needs steps that are too long

Loss = Callable[[Sequence[np.ndarray]], float]


@dataclass(frozen=True, slots=True)
class Slope:
    """The slope of the loss along a direction, by differences of one step.

    Args:
        down: The slope behind.
        up: The slope ahead.
        slack: How far they may be off.
    """

    down: float
    up: float
    slack: float

    @property
    def low(self) -> float:
        """The smaller of both."""
        return min(self.down, self.up)

    @property
    def high(self) -> float:
        """The larger one."""
        return max(self.down, self.up)

    @property
    def middle(self) -> float:
        """The central difference."""
        return (self.down + self.up) / 2

    def agrees(self, claimed: float, tolerance: float, slack: float) -> bool:
        """Whether a claimed slope is the central difference, or near enough."""
        return not abs(self.middle - claimed) > slack + tolerance

    def holds(self, claimed: float, tolerance: float) -> bool:
        """Whether a claimed slope lies between both sides, or near enough."""
        slack = self.slack + tolerance
        return not self.low - slack > claimed and not self.high + slack < claimed


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
    """A loss, a point, and the gradient there."""

    def __init__(self, run: Run, window: Window, loss: Loss, grads: Sequence[np.ndarray]) -> None:
        self._run, self._at, self._loss, self.grads = run, window.at, loss, grads
        self._start = math.nan

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
        if _at_zero(seen, allowed).holds(claimed, allowed):
            return None
        best = min(_bounded(seen), key=lambda each: each.slack)
        return None if best.agrees(claimed, allowed, best.slack) else (best.middle, claimed)

    def _slopes(self, move: Sequence[np.ndarray]) -> Iterator[Slope]:
        """Slopes for a ladder of steps, the longest first, each with its rounding as slack."""
        epsilon = precision.epsilon(self._run.coarsest)
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


def _at_zero(seen: Sequence[Slope], allowed: float) -> Slope:
    """The slopes on both sides of the point itself, where a right gradient lies between them.

    A kink keeps them apart however short the step; what a bend puts between them goes with the step
    and is taken off (Richardson), by the two shortest steps that rounding does not rule.
    """
    last = max((k for k, each in enumerate(seen) if each.slack <= allowed), default=0)
    fine, coarse = seen[max(last, 1)], seen[max(last, 1) - 1]
    parts = [(RATIO * b - a) / (RATIO - 1) for a, b in _sides(coarse, fine)]
    return Slope(parts[0], parts[1], (RATIO * fine.slack + coarse.slack) / (RATIO - 1))


def _sides(one: Slope, other: Slope) -> tuple[tuple[float, float], tuple[float, float]]:
    return (one.down, other.down), (one.up, other.up)


def _bounded(seen: Sequence[Slope]) -> list[Slope]:
    """The slopes with the gaps to their neighbours among the slack: what a bend may cost."""
    gaps = [abs(a.middle - b.middle) for a, b in itertools.pairwise(seen)]
    return [
        replace(each, slack=each.slack + GAPS * max(gaps[max(k - 1, 0) : k + 1]))
        for k, each in enumerate(seen)
    ]


def gap(run: Run, window: Window, loss: Loss, limits: Limits) -> Gap | None:
    """Where the loss does not follow its gradient: as a whole, or in some of its tensors.

    Along the gradient itself the largest tensors count the most, along the second direction each
    one the same. What only the second one sees must be seen along a tensor alone, too.
    """
    line = _Line(run, window, loss, _gradient(run, window))
    limit = limits.number("step_slope", run.coarsest)
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
    return shown(run, filled(combined(fresh, _shares(run, window)), window))


def _shares(run: Run, window: Window) -> list[float]:
    sizes = [run.loop.size(batch) for batch in window.batches]
    return [n / sum(sizes) for n in sizes]


def plain(run: Run, window: Window) -> Loss:
    """The loss of a window."""

    def loss(at: Sequence[np.ndarray]) -> float:
        pairs = zip(window.batches, window.marks, strict=True)
        values = [run.loop.value(batch, at, mark) for batch, mark in pairs]
        return float(np.dot(values, _shares(run, window)))

    return loss


def stopped(run: Run, window: Window) -> Stopped | None:
    """The loss of a window with what it holds back held still; None where it holds nothing."""
    held = getattr(run.loop, "stopped", None)
    if held is None:
        return None
    pairs = zip(window.batches, window.marks, strict=True)
    parts: list[Stopped] = [held(batch, window.at, mark) for batch, mark in pairs]
    shares = _shares(run, window)
    places = tuple(dict.fromkeys(place for part in parts for place in part.places))
    functions = tuple(dict.fromkeys(name for part in parts for name in part.functions))

    def loss(at: Sequence[np.ndarray]) -> float:
        return float(np.dot([part.value(at) for part in parts], shares))

    return Stopped(loss, places, functions) if places or functions else None
