"""How sharp the loss is along the way: reported, never failed on.

A few products of the Hessian with a vector, by differences of gradients, at the first update, in
the middle and at the last. Gradient descent is stable below ``lr * largest eigenvalue = 2``, and
training at large hovers there (Cohen et al. 2021).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pytest_gradcheck.checks.steps import sources
from pytest_gradcheck.checks.steps.contract import Contract
from pytest_gradcheck.checks.steps.expected import flat
from pytest_gradcheck.checks.steps.ladder import filled
from pytest_gradcheck.checks.steps.measure import Run
from pytest_gradcheck.checks.steps.windows import Window
from pytest_gradcheck.numerics import clipping, precision
from pytest_gradcheck.numerics.curvature import largest
from pytest_gradcheck.results import Evidence, Finding

# Each is a gradient more. Started from the gradient, two reach 0.8 to 0.95 of the eigenvalue on
# small networks, one 0.6 to 0.75; the same number at every point, or the way would seem to bend.
# A large network is asked once, at the start, and at the end of a long run.
PRODUCTS = 2
ROUNDINGS = 100.0  # by which the same loss may be another number
LONG = 14  # updates, beside which a gradient more is little
LARGE = 100_000  # parameters, beyond which gradients are what a check costs
PLACES = ("at the start", "in the middle", "at the end")


@dataclass(frozen=True, slots=True)
class Point:
    """The sharpness at one update.

    Args:
        update: Number of the update.
        eigenvalue: A lower bound on the largest eigenvalue of the Hessian.
        rate: Learning rate of the update; NaN where it is not known.
    """

    update: int
    eigenvalue: float
    rate: float


def measured(run: Run, contract: Contract) -> list[Point]:
    """The sharpness at the first, the middle and the last update; none where it cannot be had.

    A large network is asked at the first one, and at the last one of many.
    """
    has_copies = any(t.shadow >= 0 for t in run.loop.parameters)
    if has_copies or run.coarsest in sources.HALF:
        return []
    held = [w for w in run.windows if not w.is_spared]
    last = len(held) - 1
    places = {0, last // 2, last}
    if _is_large(held[0]):
        places = {0, last} if len(run.windows) >= LONG else {0}
    elif list(held[0].losses) != sources.again(run, held[0]):
        return []  # what else the loss depends on has moved, and differences would show that
    chosen = [held[k] for k in sorted(places)]
    points = [
        Point(w.number, _eigenvalue(run, w), _rate(run, w, contract)) for w in chosen if w.micro
    ]
    return [p for p in points if math.isfinite(p.eigenvalue)]


def _is_large(window: Window) -> bool:
    return sum(x.size for x in window.at) >= LARGE


def _eigenvalue(run: Run, window: Window) -> float:
    h = precision.epsilon(run.coarsest) ** 0.5 * max(clipping.norm(window.at, 2), 1.0) * 10
    if _is_large(window):
        return _stretch(run, window, h)
    start = flat(window.micro[0], window.at)

    def product(direction: np.ndarray) -> np.ndarray:
        parts = clipping.split(direction, window.at)
        moved = [x + h * v for x, v in zip(window.at, parts, strict=True)]
        _, grads = run.loop.gradient(window.batches[0], moved, window.marks[0])
        found: np.ndarray = (flat(grads, window.at) - start) / h
        return found

    return largest(product, start, PRODUCTS)


def _stretch(run: Run, window: Window, h: float) -> float:
    """``|H g| / |g|`` with the sign of ``g . H g``: one product, tensor by tensor."""
    grads = filled(window.micro[0], window)
    size = clipping.norm(grads, 2)
    if not size:
        return math.nan
    moved = [x + (h / size) * g for x, g in zip(window.at, grads, strict=True)]
    value, found = run.loop.gradient(window.batches[0], moved, window.marks[0])
    ends = filled(found, window)
    stretch = clipping.distance(zip(grads, ends, strict=True)) / h
    start, rounding = window.losses[0], ROUNDINGS * precision.epsilon(run.coarsest)
    if not abs(value - start - h * size) <= h**2 * stretch + rounding * abs(start):
        return math.nan  # what else the loss depends on has moved
    return math.copysign(stretch, clipping.inner(grads, ends) - size**2)


def _rate(run: Run, window: Window, contract: Contract) -> float:
    rates = [
        contract.at(p.name, h, window.number - 1).get("lr")
        for u in window.updates
        for p, h in zip(run.loop.parameters, u.hyper, strict=True)
    ]
    return max((float(r) for r in rates if r is not None), default=math.nan)


def finding(points: Sequence[Point]) -> Finding:
    """What the sharpness is, and how it goes with the learning rate."""
    seen = dict(zip(PLACES if len(points) == len(PLACES) else PLACES[::2], points, strict=False))
    values = ", ".join(f"{p.eigenvalue:.3g} {place}" for place, p in seen.items())
    products = [p.rate * p.eigenvalue for p in points]
    told = f", and lr times it {', '.join(f'{x:.3g}' for x in products)}"
    if any(math.isnan(x) for x in products):
        told = " (the learning rate is not known)"
    return Finding(
        code="step-sharpness",
        severity="note",
        message=f"the largest eigenvalue of the Hessian is at least {values}{told}; plain "
        f"gradient descent is stable where lr times it is below 2",
        numbers=(("eigenvalue", points[0].eigenvalue), ("product", products[0])),
    )


def evidence(points: Sequence[Point]) -> Evidence:
    """The sharpness against the update."""
    return Evidence(
        name="sharpness",
        title="largest eigenvalue of the Hessian, at least, and the learning rate times it",
        columns=("update", "eigenvalue", "lr times eigenvalue"),
        rows=tuple((f"{p.update}", p.eigenvalue, p.rate * p.eigenvalue) for p in points),
    )
