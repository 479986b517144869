"""The loss along the update: its direction, and how long a step would have been right."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np

from pytest_gradcheck.checks.steps import products, sources
from pytest_gradcheck.checks.steps.contract import Contract
from pytest_gradcheck.checks.steps.measure import Run
from pytest_gradcheck.checks.steps.received import Pair
from pytest_gradcheck.checks.steps.windows import Grads, Window
from pytest_gradcheck.numerics import clipping, precision
from pytest_gradcheck.results import Evidence, Finding

ARMIJO = 1e-4  # sufficient decrease (Nocedal and Wright 2006, equation 3.4 and below)
STEEP = 1e-3  # least cosine between a gradient and an update that goes up or down
HALVINGS = 12  # of a step that is too long


@dataclass(frozen=True, slots=True, eq=False)
class Ladder:
    """The loss along the first update.

    Args:
        slope: ``g . u`` with the fresh gradient, turned around where an optimizer maximizes.
        scale: ``|g| |u|``.
        start: Loss before.
        end: Loss after.
        right: Largest fraction of the step that lowers the loss enough; NaN where none did.
        points: Pairs of fraction and loss.
        sense: 1 where the loss must fall, -1 where it must rise, 0 where some parameters maximize
            and others do not: a saddle has no direction of its own.
    """

    slope: float
    scale: float
    start: float
    end: float
    right: float
    points: tuple[tuple[float, float], ...]
    sense: int = 1


class _Line:
    """The loss on the line from the parameters of a window along a direction."""

    def __init__(self, run: Run, window: Window, move: Sequence[np.ndarray]) -> None:
        self._run, self._window, self._move = run, window, move

    def __call__(self, fraction: float) -> float:
        at = [x + fraction * u for x, u in zip(self._window.at, self._move, strict=True)]
        return self.average(self._window.each(self._run.loop.value, at))

    def average(self, values: Sequence[float]) -> float:
        """The mean of the losses of all batches, each sample counting the same."""
        sizes = [self._run.loop.size(batch) for batch in self._window.batches]
        return float(np.average(values, weights=sizes))


def measured(run: Run, pair: Pair, contract: Contract) -> Ladder | None:
    """The loss along the first update; None where nothing moved, or the model is another now."""
    window = pair.window
    if any(call.added or call.replaced for call in run.calls):
        return None
    update = window.updates[-1]
    move = shown(run, [b - a for a, b in zip(window.at, update.after, strict=True)])
    length = clipping.norm(move, 2)
    if not 0 < length < math.inf:
        return None
    each = signs(run, pair, contract)
    g = shown(run, turned(each, filled(pair.expected.raw, window)))
    inner = clipping.inner(g, move)
    sense = int(each[0]) if len(set(each)) == 1 else 0
    line = _Line(run, window, move)
    start, end = line.average(window.losses), line(1.0)
    noise = 4 * precision.epsilon(run.coarsest) * abs(start)
    exact: AbstractContextManager[None] | None = None
    if window.is_retaken or not _is_enough(sense, start, end, inner, noise):
        start = line.average(sources.again(run, window))
        if not _is_enough(sense, start, end, inner, noise):
            exact = products.exactly(run)
    with exact or nullcontext():
        if exact is not None:
            start, end = line(0.0), line(1.0)
        points = [(0.0, start), (1.0, end)]
        right = 1.0 if not sense else math.nan
        if inner < 0 and sense:
            right, more = _fraction(line, sense, start, end, inner, noise)
            points += more
    scale = run.sizes.whole(g) * length
    return Ladder(inner, scale, start, end, right, tuple(sorted(points)), sense)


def _fraction(
    line: _Line, sense: int, start: float, end: float, inner: float, noise: float
) -> tuple[float, list[tuple[float, float]]]:
    """The largest fraction of a step that changes the loss enough, and what was seen on the way."""
    points, fraction = [], 1.0
    for _ in range(HALVINGS):
        value = end if fraction == 1.0 else line(fraction)
        if fraction != 1.0:
            points.append((fraction, value))
        if _is_enough(sense, start, value, fraction * inner, noise):
            return fraction, points
        fraction /= 2
    return math.nan, points


def _is_enough(sense: int, start: float, end: float, inner: float, noise: float) -> bool:
    """Whether the loss changes enough (Armijo) from one value to another."""
    return sense * end <= sense * start + ARMIJO * inner + noise


def signs(run: Run, pair: Pair, contract: Contract) -> list[float]:
    """-1 for each parameter whose optimizer maximizes; a parameter of none goes with the others."""
    found = [0.0] * len(run.names)
    for i, name in enumerate(run.names):
        hyper = next((u.hyper[i] for u in pair.window.updates if u.hyper[i]), None)
        if hyper is not None or contract.hyper:
            is_up = contract.at(name, hyper or {}, pair.window.number - 1).get("maximize")
            found[i] = -1.0 if is_up else 1.0
    usual = -1.0 if -1.0 in found and 1.0 not in found else 1.0
    return [sign or usual for sign in found]


def turned(each: Sequence[float], grads: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Gradients, turned around where an optimizer maximizes."""
    return [g if sign == 1 else sign * g for sign, g in zip(each, grads, strict=True)]


def filled(grads: Grads, window: Window) -> list[np.ndarray]:
    """A gradient with zeros where there is none."""
    pairs = zip(grads, window.at, strict=True)
    return [np.zeros_like(x) if g is None else g for g, x in pairs]


def shown(run: Run, move: list[np.ndarray]) -> list[np.ndarray]:
    """What a master copy does, done to the parameter that enters the loss."""
    for i, tracked in enumerate(run.loop.parameters):
        if tracked.shadow >= 0:
            move[tracked.shadow] = move[i]
            move[i] = np.zeros_like(move[i])
    return move


def turns(run: Run, pairs: Sequence[Pair], contract: Contract) -> bool:
    """Whether an update goes down though the first goes up: rules that climb on purpose do."""
    for pair in pairs[1:]:
        each = signs(run, pair, contract)
        move = [b - a for a, b in zip(pair.window.at, pair.window.updates[-1].after, strict=True)]
        there = turned(each, filled(pair.expected.raw, pair.window))
        _, cosine = clipping.ratio(clipping.flat(shown(run, move)), clipping.flat(there))
        if cosine < -STEEP:
            return True
    return False


def findings(pair: Pair, ladder: Ladder, contract: Contract, is_trusted: bool) -> list[Finding]:
    """Wrong direction, or a step that is too long; and which way the loss was taken to go."""
    return [*_direction(pair, ladder, contract, is_trusted), *_sense(ladder)]


def _sense(ladder: Ladder) -> list[Finding]:
    if ladder.sense > 0:
        return []
    whose = "every parameter" if ladder.sense else "a part of the parameters"
    return [
        Finding(
            code="step-maximizes",
            severity="note",
            message=f"the optimizer maximizes for {whose}: what Training.loss gives is taken for "
            f"the objective that must rise",
        )
    ]


def _direction(pair: Pair, ladder: Ladder, contract: Contract, is_trusted: bool) -> list[Finding]:
    decay = _decay(pair, contract)
    steep = ladder.slope - decay
    if steep > STEEP * ladder.scale and not is_trusted:
        told = "uphill" if ladder.sense >= 0 else "downhill, where it maximizes"
        return [
            Finding(
                code="step-uphill",
                severity="fail",
                message=f"the first update goes {told}: slope {ladder.slope:.3g} along the update "
                f"(cosine {ladder.slope / ladder.scale:.2f} with the gradient); look for a sign",
                numbers=(("slope", ladder.slope), ("cosine", ladder.slope / ladder.scale)),
            )
        ]
    if ladder.slope < 0 and ladder.right != 1.0 and contract.semi_gradient is None:
        return [_long(pair, ladder)]
    return []


def _decay(pair: Pair, contract: Contract) -> float:
    """What a decay adds to the slope: it need not lower the loss."""
    hyper = [h for u in pair.window.updates for h in u.hyper if h] or [dict(contract.hyper)]
    rate = max((h.get("weight_decay") or 0.0) for h in hyper)
    if not rate:
        return 0.0
    lr = max((h.get("lr") or 0.0) for h in hyper)
    size = clipping.norm([g for g in pair.expected.raw if g is not None], 2)
    return float(lr * rate * size * clipping.norm(pair.window.at, 2))


def _long(pair: Pair, ladder: Ladder) -> Finding:
    rates = [float(h["lr"]) for u in pair.window.updates for h in u.hyper if h.get("lr")]
    verb = "lowers" if ladder.sense > 0 else "raises"
    if math.isnan(ladder.right):
        told = f"no fraction down to {2.0**-HALVINGS:.2g} of it {verb} the loss enough"
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
        rows=tuple(
            (a, v, ladder.start + a * (ladder.sense or 1) * ladder.slope) for a, v in ladder.points
        ),
    )
