"""The loss along the update: its slope, its decrease, and how long a step would have been right."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pytest_gradcheck.checks.steps.contract import Contract
from pytest_gradcheck.checks.steps.expected import combined, flat
from pytest_gradcheck.checks.steps.measure import Grads, Run, Window
from pytest_gradcheck.checks.steps.received import Pair
from pytest_gradcheck.limits import Limits
from pytest_gradcheck.numerics import clipping, precision
from pytest_gradcheck.results import Evidence, Finding

ARMIJO = 1e-4  # sufficient decrease (Nocedal and Wright 2006, equation 3.4 and below)
LEVELS = 5  # steps of a difference
GAPS = 2.0  # how many gaps between steps a central difference may be off
HALVINGS = 12  # of a step that is too long


@dataclass(frozen=True, slots=True, eq=False)
class Ladder:
    """The loss along the first update.

    Args:
        slope: ``g . u`` with the fresh gradient.
        scale: ``|g| |u|``.
        start: Loss before.
        end: Loss after.
        right: Largest fraction of the step that lowers the loss enough; NaN where none did.
        points: Pairs of fraction and loss.
    """

    slope: float
    scale: float
    start: float
    end: float
    right: float
    points: tuple[tuple[float, float], ...]


class _Line:
    """The loss on the line from the parameters of a window along a direction."""

    def __init__(self, run: Run, window: Window, move: Sequence[np.ndarray]) -> None:
        self._run, self._window, self._move = run, window, move

    def __call__(self, fraction: float) -> float:
        at = [x + fraction * u for x, u in zip(self._window.at, self._move, strict=True)]
        values = [
            self._run.loop.value(batch, at, mark)
            for batch, mark in zip(self._window.batches, self._window.marks, strict=True)
        ]
        sizes = [self._run.loop.size(batch) for batch in self._window.batches]
        return float(np.average(values, weights=sizes))


@dataclass(frozen=True, slots=True)
class Slope:
    """The slope of the loss along a direction, by differences of one step.

    Args:
        low: The smaller of the slopes on both sides.
        high: The larger one.
        slack: How far they may be off.
    """

    low: float
    high: float
    slack: float

    @property
    def middle(self) -> float:
        """The central difference."""
        return (self.low + self.high) / 2

    def allows(self, claimed: float, tolerance: float) -> bool:
        """Whether a claimed slope lies between both, or near enough."""
        slack = self.slack + tolerance
        return not self.low - slack > claimed and not self.high + slack < claimed


def slopes(run: Run, window: Window, move: Sequence[np.ndarray], start: float) -> Iterator[Slope]:
    """Slopes for a ladder of steps from a loss, the longest first, with their rounding as slack.

    At a kink, and for a curved loss, a right gradient lies between the slopes on both sides.
    """
    line = _Line(run, window, move)
    epsilon = precision.epsilon(run.coarsest)
    size, length = clipping.norm(window.at, 2) or 1.0, clipping.norm(move, 2)
    for power in range(LEVELS):
        h = 4.0**-power * epsilon**0.25 * size / length
        up, down = (line(h) - start) / h, (start - line(-h)) / h
        noise = 8 * epsilon * max(abs(start), abs(start + up * h)) / h
        yield Slope(min(up, down), max(up, down), noise)


def _loosened(seen: Sequence[Slope]) -> list[Slope]:
    """The slopes with the gaps to their neighbours among the slack."""
    gaps = [abs(a.middle - b.middle) for a, b in itertools.pairwise(seen)]
    return [
        replace(each, slack=each.slack + GAPS * max(gaps[max(k - 1, 0) : k + 1]))
        for k, each in enumerate(seen)
    ]


def measured(run: Run, pair: Pair) -> Ladder | None:
    """The loss along the first update; None where nothing moved."""
    window = pair.window
    update = window.updates[-1]
    move = _shown(run, [b - a for a, b in zip(window.at, update.after, strict=True)])
    if not any(np.any(u) for u in move) or not all(np.all(np.isfinite(u)) for u in move):
        return None
    g = clipping.flat(_shown(run, _filled(pair.expected.raw, pair.window)))
    u = clipping.flat(move)
    inner = float(np.vdot(g, u))
    line = _Line(run, window, move)
    start, end = line(0.0), line(1.0)
    points = [(0.0, start), (1.0, end)]
    noise = 4 * precision.epsilon(run.coarsest) * abs(start)
    right = math.nan
    if inner < 0:
        fraction = 1.0
        for _ in range(HALVINGS):
            value = end if fraction == 1.0 else line(fraction)
            if fraction != 1.0:
                points.append((fraction, value))
            if value <= start + ARMIJO * fraction * inner + noise:
                right = fraction
                break
            fraction /= 2
    scale = float(np.linalg.norm(g) * np.linalg.norm(u))
    return Ladder(inner, scale, start, end, right, tuple(sorted(points)))


def _filled(grads: Grads, window: Window) -> list[np.ndarray]:
    """A gradient with zeros where there is none."""
    pairs = zip(grads, window.at, strict=True)
    return [np.zeros_like(x) if g is None else g for g, x in pairs]


def _shown(run: Run, move: list[np.ndarray]) -> list[np.ndarray]:
    """What a master copy does, done to the parameter that enters the loss."""
    for i, tracked in enumerate(run.loop.parameters):
        if tracked.shadow >= 0:
            move[tracked.shadow] = move[i]
            move[i] = np.zeros_like(move[i])
    return move


def findings(
    run: Run, pair: Pair, ladder: Ladder, contract: Contract, limits: Limits, is_trusted: bool
) -> list[Finding]:
    """Wrong direction, a loss that does not follow its gradient, a step that is too long."""
    found = _unfollowed(run, pair, ladder.start, limits)
    if found:
        return found
    decay = _decay(pair, contract)
    steep = ladder.slope - decay
    if steep > 1e-3 * ladder.scale and not is_trusted:
        return [
            Finding(
                code="step-uphill",
                severity="fail",
                message=f"the first update goes uphill: slope {ladder.slope:.3g} along the update "
                f"(cosine {ladder.slope / ladder.scale:.2f} with the gradient); look for a sign",
                numbers=(("slope", ladder.slope), ("cosine", ladder.slope / ladder.scale)),
            )
        ]
    if ladder.slope < 0 and ladder.right != 1.0:
        return [_long(pair, ladder)]
    return []


def _decay(pair: Pair, contract: Contract) -> float:
    """What a decay adds to the slope: it need not lower the loss."""
    hyper = [h for u in pair.window.updates for h in u.hyper if h] or [dict(contract.hyper)]
    rate = max((h.get("weight_decay") or 0.0) for h in hyper)
    if not rate:
        return 0.0
    g, x = flat(pair.expected.raw, pair.window.at), clipping.flat(pair.window.at)
    lr = max((h.get("lr") or 0.0) for h in hyper)
    return float(lr * rate * np.linalg.norm(g) * np.linalg.norm(x))


def _unfollowed(run: Run, pair: Pair, start: float, limits: Limits) -> list[Finding]:
    """A loss whose slope along its own gradient is not the gradient's square.

    Autograd against the step sees no gradient hook: both have it. Differences do.
    """
    window = pair.window
    if not _unlike(run, window, window.micro, start, limits):
        return []
    # Taken again: what else the loss depends on may have changed since.
    fresh = [
        run.loop.gradient(batch, window.at, mark)[1]
        for batch, mark in zip(window.batches, window.marks, strict=True)
    ]
    return _unlike(run, window, fresh, start, limits)


def _unlike(
    run: Run, window: Window, micro: Sequence[Grads], start: float, limits: Limits
) -> list[Finding]:
    sizes = [run.loop.size(batch) for batch in window.batches]
    whole = combined(micro, [n / sum(sizes) for n in sizes])
    move = _shown(run, _filled(whole, window))
    square = float(np.vdot(clipping.flat(move), clipping.flat(move)))
    if not square or not math.isfinite(square):
        return []
    allowed = limits.number("step_slope", run.coarsest) * square
    seen = []
    for each in slopes(run, window, move, start):
        if each.allows(square, allowed):
            return []
        seen.append(each)
    if any(each.allows(square, allowed) for each in _loosened(seen)):
        return []
    found = min(seen, key=lambda each: each.high - each.low + each.slack).middle
    ratio = square / found if found else math.inf
    return [
        Finding(
            code="step-slope",
            severity="fail",
            message=f"the loss does not follow its gradient: differences give a slope of "
            f"{found:.4g} along it, the gradient says {square:.4g} (ratio {ratio:.3g}); look for "
            f"a gradient hook, a wrong backward, or a loss that is not what is differentiated",
            numbers=(("measured", found), ("claimed", square)),
        )
    ]


def _long(pair: Pair, ladder: Ladder) -> Finding:
    rates = [float(h["lr"]) for u in pair.window.updates for h in u.hyper if h.get("lr")]
    if math.isnan(ladder.right):
        told = f"no fraction down to {2.0**-HALVINGS:.2g} of it lowers the loss enough"
        advice = "look at the loss along the update"
    else:
        told = f"{ladder.right:.3g} of it does"
        advice = f"try lr <= {max(rates) * ladder.right:.2g}" if rates else "shorten the step"
    return Finding(
        code="step-too-long",
        severity="warn",
        message=f"the first update is too long: the loss goes from {ladder.start:.4g} to "
        f"{ladder.end:.4g} on the same batch, {told}; {advice}",
        numbers=(("fraction", ladder.right), ("start", ladder.start), ("end", ladder.end)),
    )


def evidence(ladder: Ladder) -> Evidence:
    """The loss against the fraction of the step."""
    return Evidence(
        name="ladder",
        title="loss on the same batch against the fraction of the first update",
        columns=("fraction", "loss", "linear prediction"),
        rows=tuple((a, v, ladder.start + a * ladder.slope) for a, v in ladder.points),
    )
