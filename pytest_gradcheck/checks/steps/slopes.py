"""Slopes of the loss along its gradient, and along all tensors of it alike, by differences.

Autograd against the step sees no gradient hook and no wrong backward: both have it. Differences do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pytest_gradcheck.checks.steps import directions, products, sources
from pytest_gradcheck.checks.steps.expected import combined
from pytest_gradcheck.checks.steps.ladder import filled, shown
from pytest_gradcheck.checks.steps.lines import Line
from pytest_gradcheck.checks.steps.measure import Run
from pytest_gradcheck.checks.steps.sources import HALF, Source, shares
from pytest_gradcheck.checks.steps.windows import Grads, Window
from pytest_gradcheck.errors import UsageError
from pytest_gradcheck.limits import Limits
from pytest_gradcheck.numerics import precision

COARSE = 0.1  # of the largest gradient, in half precision: a smaller one may be rounding alone
ROUNDINGS = 100.0  # of the largest gradient, below which a slope is rounding, and names no tensor
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


class _Lines:
    """The lines along which a loss is asked at the point of a window."""

    def __init__(self, run: Run, window: Window, limit: float, dtype: str, is_beside: bool) -> None:
        self.run, self.window, self.limit, self.is_beside = run, window, limit, is_beside
        # Of gradients; in half precision, small ones are left out altogether.
        self.rounding = 0.0 if dtype in HALF else ROUNDINGS * precision.epsilon(dtype)
        self._asked: list[Line] = []

    def line(self, source: Source, grads: Sequence[np.ndarray], **how: Any) -> Line:
        """One more."""
        self._asked.append(Line(self.window.at, source, grads, **how))
        return self._asked[-1]

    @property
    def is_kinked(self) -> bool:
        """Whether the point was seen to be a kink."""
        return any(line.is_kinked for line in self._asked)


def gap(
    run: Run, window: Window, source: Source, limits: Limits, *, is_beside: bool = True
) -> tuple[Gap | None, bool]:
    """Where the loss does not follow its gradient: as a whole, or in some of its tensors.

    A gradient of float32 is accused by differences in float64, where these can be had: a network
    with many kinks, or a gradient near zero, leaves no step that float32 would be right for. They
    cost, and a large training that is spared gradients is spared those that accuse nobody.

    Beside it: whether the point itself was seen to be a kink, where nothing can be told: no tensor
    is named there, unless ``is_beside`` says that there is no better point.
    """
    limit = limits.number("step_slope", source.dtype)
    lines = _Lines(run, window, limit, source.dtype, is_beside)
    grads = _combined(run, window, window.micro)
    start = math.nan if window.is_retaken else float(np.dot(window.losses, shares(run, window)))
    dtype, own = source.dtype, source  # of the gradient
    least = COARSE if dtype in HALF else directions.LEAST
    if (dtype in HALF or is_beside) and (finer := source.widened()) is not None:
        source, start = finer, math.nan  # its own rounding would hide anything, or is known to
    is_spared = any(w.is_spared for w in run.windows)
    line = lines.line(source, grads, start=start, is_careful=not is_spared)
    found = _of_line(lines, line, least, source)
    if (found or line.is_open(is_spared)) and _has_moved(run, window):
        grads = _combined(run, window, _again(run, window))
        line = lines.line(source, grads)
        found = _of_line(lines, line, least, source)
    if (found or line.is_open(is_spared)) and source.dtype != "float64":
        is_told = found is not None or source.widened() is not None
        found = _of_line(lines, _second(lines, source, grads), least) if is_told else None
    if found is None and dtype in FADED and not (is_spared and dtype == "float32"):
        found = _of_faded(lines, source, line, dtype)
    if found is not None and dtype == "float32":
        found = _confirmed(lines, own, grads, found)
    found = found or _of_parts(lines, source, line)
    return found, lines.is_kinked


def _confirmed(lines: _Lines, own: Source, grads: Sequence[np.ndarray], found: Gap) -> Gap | None:
    """A gap in float64, unless what is differentiated there follows the loss there.

    Then nothing but float32 itself can say whether its gradient is wrong: a loss may be another
    function there (a jitter on a diagonal that depends on the precision).
    """
    wide = own.widened()
    if wide is None or wide.dtype != "float64" or wide.gradients is None:
        return found
    if any(p.shadow >= 0 for p in lines.run.loop.parameters):
        return found
    try:
        meant = _combined(lines.run, lines.window, wide.gradients())
    except UsageError:  # a backward that takes no float64
        return found
    if _of_line(lines, lines.line(wide, meant), FADED["float32"]) is not None:
        return found
    return _of_line(lines, lines.line(own, grads, is_sharp=False), directions.LEAST)


def _of_faded(lines: _Lines, source: Source, line: Line, dtype: str) -> Gap | None:
    """Where the loss does not follow what fades on its way back, which float32 hardly sees.

    Where products are rounded, what is small may be made of that.
    """
    least = FADED[dtype]
    sizes = [float(np.linalg.norm(g)) for g in line.grads]
    if not any(least * max(sizes) < size <= directions.LEAST * max(sizes) for size in sizes):
        return None
    if dtype == "float64":
        return _of_line(lines, line, least)
    if products.exactly(lines.run) is not None:
        return None
    wide = source if source.dtype == "float64" else source.widened()
    if wide is None or wide.dtype != "float64":
        return None
    return _of_line(lines, lines.line(wide, line.grads), least)


def _second(lines: _Lines, source: Source, grads: Sequence[np.ndarray]) -> Line:
    """The line that confirms: in float64, or by all steps together."""
    wide = source.widened()
    if wide is not None:
        return lines.line(wide, grads)
    return lines.line(source, grads, is_sharp=False)


def _of_parts(lines: _Lines, source: Source, line: Line) -> Gap | None:
    """Where the loss changes with what the gradient is exactly 0 for, beside what it is not."""
    run, window, limit = lines.run, lines.window, lines.limit
    if all(map(np.all, line.grads)):
        return None
    moves = directions.zeros(line.grads)
    if not any(np.any(v) for v in moves) or line.climb(moves, limit) is None:
        return None
    if hasattr(run.loop, "padding"):
        masks = run.loop.padding(window.batches, window.at, window.marks)
        moves = [v if m is None else v * m for v, m in zip(moves, masks, strict=True)]
    if source.dtype != "float64":
        line = _second(lines, source, line.grads)
    alone = {}
    for i, v in enumerate(moves):
        one = [v if j == i else 0 * x for j, x in enumerate(moves)]
        slope = line.climb(one, limit) if np.any(v) else None
        if slope is not None:
            alone[run.names[i]] = slope
    return Gap(next(iter(alone.values())), 0.0, tuple(alone), True) if alone else None


def _of_line(lines: _Lines, line: Line, least: float, source: Source | None = None) -> Gap | None:
    """Along a direction in which each tensor counts the same, and along the gradient itself.

    In the gradient the largest tensors count the most, so that it is asked only where the first
    direction is too coarse to tell, or sees something. What only that one sees must be seen along a
    tensor alone, too. With a source that can be had in float64, that is left to float64.
    """
    limit, names = lines.limit, lines.run.names
    sizes = [float(np.linalg.norm(g)) for g in line.grads]
    are_small = [not size > least * max(sizes) for size in sizes]
    move = directions.even(line.grads, sizes, are_small)
    count = max(are_small.count(False), 1)
    even = line.gap(move, limit / count)
    if even is None and line.slack <= limit:  # of a slope that is the number of tensors
        return None
    if even is not None:
        is_told_beside = line.is_kinked and not lines.is_beside
        if is_told_beside or (source is not None and source.widened() is not None):
            return Gap(*even, ())
    whole = line.gap(line.grads, limit)
    if whole is None and even is None:
        return None
    alone: dict[str, tuple[float, float]] = {}
    for i, v in enumerate(move):
        if not np.any(v) or (least == COARSE and are_small[i]):
            continue
        for parts in (line.grads, move):
            off = line.gap([x if j == i else 0 * x for j, x in enumerate(parts)], limit)
            least_slope = lines.rounding * max(sizes) * float(np.linalg.norm(parts[i]))
            if off is not None and max(map(abs, off)) > least_slope:
                alone[names[i]] = off
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
