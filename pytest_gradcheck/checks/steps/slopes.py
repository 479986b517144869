"""Slopes of the loss along its gradient, and along all tensors of it alike, by differences.

Autograd against the step sees no gradient hook and no wrong backward: both have it. Differences do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pytest_gradcheck.checks.steps import directions, products, sources
from pytest_gradcheck.checks.steps.expected import combined
from pytest_gradcheck.checks.steps.ladder import filled, shown
from pytest_gradcheck.checks.steps.measure import Run
from pytest_gradcheck.checks.steps.sources import HALF, Source, shares
from pytest_gradcheck.checks.steps.windows import Grads, Window
from pytest_gradcheck.limits import Limits
from pytest_gradcheck.numerics import clipping, precision
from pytest_gradcheck.numerics.slopes import RATIO, Slope, at_zero, bounded

LEVELS = 5  # steps of a difference
BEND = 8.0  # by which a bend costs less from one step to the next, among kinks
KINK = 0.1  # of a slope, by which those on both sides of a smooth point may differ
COARSE = 0.1  # of the largest gradient, in half precision: a smaller one may be rounding alone
FADED = {"float32": 1e-4, "float64": 1e-8}  # the same in these, by differences in float64


@dataclass(frozen=True, slots=True)
class Gap:
    """A gradient that is not the slope of the loss.

    Args:
        measured: The slope along it by differences.
        claimed: What the gradient says.
        names: Tensors along whose gradient alone it is not the slope either.
        is_part: Whether it is 0 in a part of these, where the loss has a slope.
    """

    measured: float
    claimed: float
    names: tuple[str, ...]
    is_part: bool = False

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
        start: The loss at the point as it was seen to be: enough for central differences, of which
            it is no part; asked for again before anything is accused. NaN where it was not.
    """

    def __init__(
        self,
        at: Sequence[np.ndarray],
        source: Source,
        grads: Sequence[np.ndarray],
        is_sharp: bool = True,
        start: float = math.nan,
        is_careful: bool = True,
    ) -> None:
        self._at, self._loss, self.grads, self._is_sharp = at, source.loss, grads, is_sharp
        self._epsilon, self._seen = precision.epsilon(source.dtype), start
        self._start, self._is_careful = math.nan, is_careful
        self.slack = math.inf  # rounding of the longest step of the last slope that was asked for
        self.is_excused = False  # whether a slope was let pass that no step could tell
        self.is_late = False  # whether a shorter step alone agreed: one of many may do so by chance

    def is_open(self, is_spared: bool) -> bool:
        """Whether an agreement is worth a look in float64."""
        return self.is_excused or (self.is_late and not is_spared)

    def gap(self, move: Sequence[np.ndarray], limit: float) -> tuple[float, float] | None:
        """Slope along a direction by differences and by the gradient; None where they agree."""
        claimed = clipping.inner(self.grads, move)
        if not claimed or not math.isfinite(claimed):
            return None
        found = self._off(move, claimed, limit * abs(claimed))
        return None if found is None else (found.middle, claimed)

    def climb(self, move: Sequence[np.ndarray], allowed: float) -> float | None:
        """Slope along a direction in which the gradient has none; None where the loss has none.

        At a kink none of the slopes on both sides need be 0, so they must be the same one.
        """
        found = self._off(move, 0.0, allowed, is_smooth=True)
        return None if found is None else found.middle

    def _off(
        self, move: Sequence[np.ndarray], claimed: float, allowed: float, is_smooth: bool = False
    ) -> Slope | None:
        ends: dict[int, tuple[float, float, float]] = {}
        longest = 0  # step of which an agreement is taken for what it is
        powers = list(range(LEVELS))
        while powers:
            power = powers.pop(0)
            ends[power] = self._ends(move, power)
            start = self._started() if math.isnan(self._seen) else self._seen
            self.slack = self._slope(start, *ends[0]).slack
            slope = self._slope(start, *ends[power])
            if slope.agrees(claimed, allowed, self.slack):
                if not power and self._is_bent(slope, allowed):
                    longest = 1  # what the bend puts there may be what is missing
                    continue
                self.is_late |= power > longest
                return None
            if not power:  # what is passed over is asked for at last, before anything is accused
                k = _powers(abs(slope.middle - claimed), allowed)
                powers = powers[k - 1 :] + powers[: k - 1]
        self.is_excused = True
        seen = [self._slope(self._started(), *ends[power]) for power in range(LEVELS)]
        there = at_zero(seen, allowed)
        if there.holds(claimed, allowed):
            return None
        if is_smooth and not _is_narrow(there):
            return None
        narrow = [] if self._is_sharp else filter(_is_narrow, seen)
        if any(each.holds(claimed, allowed) for each in narrow):
            return None
        best = min(bounded(seen), key=lambda each: each.slack)
        return None if best.agrees(claimed, allowed, best.slack) else best

    def _is_bent(self, slope: Slope, allowed: float) -> bool:
        """Whether a step is so long that its central difference may be off by what is allowed.

        Where one side of a smooth point is off by a share of the slope, the middle is by about its
        square; a quarter of a step is off by a sixteenth of that.
        """
        apart, least = (slope.high - slope.low) / 2, max(abs(slope.middle), allowed)
        return self._is_careful and apart * (apart / least) > allowed

    def _ends(self, move: Sequence[np.ndarray], power: int) -> tuple[float, float, float]:
        """A step, the shorter the higher its power, and the losses after it and before it."""
        size, length = clipping.norm(self._at, 2) or 1.0, clipping.norm(move, 2)
        h = RATIO**-power * self._epsilon**0.25 * size / length
        return h, self._moved(move, h), self._moved(move, -h)

    def _slope(self, start: float, h: float, high: float, low: float) -> Slope:
        """The slopes on both sides of a point, with their rounding as slack."""
        noise = 8 * self._epsilon * max(abs(start), abs(high)) / h
        return Slope((start - low) / h, (high - start) / h, noise)

    def _started(self) -> float:
        if math.isnan(self._start):
            self._start = self._loss(self._at)
        return self._start

    def _moved(self, move: Sequence[np.ndarray], h: float) -> float:
        return self._loss([x + h * u for x, u in zip(self._at, move, strict=True)])


def _is_narrow(slope: Slope) -> bool:
    """Whether the slopes on both sides are not too far apart to tell."""
    return slope.high - slope.low <= KINK * abs(slope.middle) + 2 * slope.slack


def _powers(off: float, allowed: float) -> int:
    """How much shorter a step must be for a bend to cost no more than what is allowed."""
    if not (math.isfinite(off) and off > allowed > 0):
        return 1
    return min(max(round(math.log(off / allowed) / math.log(BEND)), 1), LEVELS - 1)


def gap(run: Run, window: Window, source: Source, limits: Limits) -> Gap | None:
    """Where the loss does not follow its gradient: as a whole, or in some of its tensors.

    A gradient of float32 is accused by differences in float64, where these can be had: a network
    with many kinks, or a gradient near zero, leaves no step that float32 would be right for. They
    cost, and a large training that is spared gradients is spared those that accuse nobody.
    """
    limit = limits.number("step_slope", source.dtype)
    grads = _combined(run, window, window.micro)
    start = math.nan if window.is_retaken else float(np.dot(window.losses, shares(run, window)))
    dtype = source.dtype  # of the gradient
    least = COARSE if dtype in HALF else directions.LEAST
    if dtype in HALF and (finer := source.widened()) is not None:
        source, start = finer, math.nan  # its own rounding would hide anything
    is_spared = any(w.is_spared for w in run.windows)
    line = _Line(window.at, source, grads, start=start, is_careful=not is_spared)
    found = _of_line(run, line, limit, least)
    if (found or line.is_open(is_spared)) and _has_moved(run, window):
        grads = _combined(run, window, _again(run, window))
        line = _Line(window.at, source, grads)
        found = _of_line(run, line, limit, least)
    if (found or line.is_open(is_spared)) and source.dtype != "float64":
        is_told = found is not None or source.widened() is not None
        found = _of_line(run, _second(window, source, grads), limit, least) if is_told else None
    if found is None and dtype in FADED and not (is_spared and dtype == "float32"):
        found = _of_faded(run, window, source, line, limit)
    return found or _of_parts(run, window, source, line, limit)


def _of_faded(run: Run, window: Window, source: Source, line: _Line, limit: float) -> Gap | None:
    """Where the loss does not follow what fades on its way back, which float32 hardly sees.

    Where products are rounded, what is small may be made of that.
    """
    least = FADED[source.dtype]
    sizes = [float(np.linalg.norm(g)) for g in line.grads]
    if not any(least * max(sizes) < size <= directions.LEAST * max(sizes) for size in sizes):
        return None
    if source.dtype == "float64":
        return _of_line(run, line, limit, least)
    wide = source.widened() if products.exactly(run) is None else None
    if wide is None or wide.dtype != "float64":
        return None
    return _of_line(run, _Line(window.at, wide, line.grads), limit, least)


def _second(window: Window, source: Source, grads: Sequence[np.ndarray]) -> _Line:
    """The line that confirms: in float64, or by all steps together."""
    wide = source.widened()
    if wide is not None:
        return _Line(window.at, wide, grads)
    return _Line(window.at, source, grads, is_sharp=False)


def _of_parts(run: Run, window: Window, source: Source, line: _Line, limit: float) -> Gap | None:
    """Where the loss changes with what the gradient is exactly 0 for, beside what it is not."""
    if all(map(np.all, line.grads)):
        return None
    moves = directions.zeros(line.grads)
    if not any(np.any(v) for v in moves) or line.climb(moves, limit) is None:
        return None
    if hasattr(run.loop, "padding"):
        masks = run.loop.padding(window.batches, window.at, window.marks)
        moves = [v if m is None else v * m for v, m in zip(moves, masks, strict=True)]
    if source.dtype != "float64":
        line = _second(window, source, line.grads)
    alone = {}
    for i, v in enumerate(moves):
        one = [v if j == i else 0 * x for j, x in enumerate(moves)]
        slope = line.climb(one, limit) if np.any(v) else None
        if slope is not None:
            alone[run.names[i]] = slope
    return Gap(next(iter(alone.values())), 0.0, tuple(alone), True) if alone else None


def _of_line(run: Run, line: _Line, limit: float, least: float) -> Gap | None:
    """Along a direction in which each tensor counts the same, and along the gradient itself.

    In the gradient the largest tensors count the most, so that it is asked only where the first
    direction is too coarse to tell, or sees something. What only that one sees must be seen along a
    tensor alone, too.
    """
    sizes = [float(np.linalg.norm(g)) for g in line.grads]
    are_small = [not size > least * max(sizes) for size in sizes]
    move = directions.even(line.grads, sizes, are_small)
    count = max(are_small.count(False), 1)
    even = line.gap(move, limit / count)
    if even is None and line.slack <= limit:  # of a slope that is the number of tensors
        return None
    whole = line.gap(line.grads, limit)
    if whole is None and even is None:
        return None
    alone: dict[str, tuple[float, float]] = {}
    for i, v in enumerate(move):
        if not np.any(v) or (least == COARSE and are_small[i]):
            continue
        for parts in (line.grads, move):
            off = line.gap([x if j == i else 0 * x for j, x in enumerate(parts)], limit)
            if off is not None:
                alone[run.names[i]] = off
                break
    found = whole or next(iter(alone.values()), None)
    return None if found is None else Gap(*found, tuple(alone))


def _has_moved(run: Run, window: Window) -> bool:
    """Whether what else the loss depends on may have changed since."""
    return window.is_retaken or list(window.losses) != sources.again(run, window)


def _again(run: Run, window: Window) -> list[Grads]:
    return [grads for _, grads in window.each(run.loop.gradient)]


def _combined(run: Run, window: Window, fresh: Sequence[Grads]) -> list[np.ndarray]:
    """The gradient of a window, as differences see it."""
    # Differences along what a loss itself writes (an embedding with a maximal norm) see that.
    written = getattr(run.loop, "written", ())
    grads = filled(combined(fresh, shares(run, window)), window)
    return shown(run, [0 * g if i in written else g for i, g in enumerate(grads)])
