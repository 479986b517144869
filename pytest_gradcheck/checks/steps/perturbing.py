"""Gradients that a functional step takes at a point beside its parameters, uphill from them (SAM).

The point is ``w + r g / |g|`` with one radius r in every update (Foret et al. 2021, equation 2), or
``w + r g`` (Andriushchenko and Flammarion 2022, "unnormalised").
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from pytest_gradcheck.checks.steps import expected as expecting
from pytest_gradcheck.checks.steps import received, retaking
from pytest_gradcheck.checks.steps.contract import Contract
from pytest_gradcheck.checks.steps.expected import flat
from pytest_gradcheck.checks.steps.measure import Run
from pytest_gradcheck.checks.steps.received import Pair
from pytest_gradcheck.checks.steps.windows import Grads
from pytest_gradcheck.errors import UsageError
from pytest_gradcheck.limits import Limits
from pytest_gradcheck.numerics import clipping
from pytest_gradcheck.results import Finding

START = 0.05  # the first radius that is tried: that of the paper
ROUNDS = 6  # of the search for it
NEAR = 1e-9  # of the radius, by which the last round may move it
SAME = 1e-2  # of the radius, by which that of two updates may differ
LARGEST = 10.0  # times the norm of the parameters


def adopted(
    run: Run, pairs: Sequence[Pair], contract: Contract, limits: Limits
) -> tuple[list[Pair], Finding] | None:
    """The windows with gradients at such points, every one, and what is told of it."""
    if hasattr(run.loop, "looks_inside") or any(len(p.window.batches) > 1 for p in pairs):
        return None  # of torch, where the very moment is looked at
    if all(_are_multiples(run, p, limits) for p in pairs):
        return None  # of a quadratic loss, where each way is as good an explanation
    again, radii, steeps = [], [START], list[float]()
    for pair in pairs:
        try:
            found = _moved(run, pair, contract, limits, radii[-1])
        except UsageError:  # of a loss that is none uphill
            return None
        if found is None:
            return None
        changed, radius = found
        again.append(changed)
        radii.append(radius)
        steeps.append(radius / _size(pair))
    is_one = any(max(sizes) - min(sizes) <= SAME * max(sizes) for sizes in (radii[1:], steeps))
    return (again, retaking.perturbed(radii[1])) if is_one else None


def _size(pair: Pair) -> float:
    """The norm of the gradient, before it is clipped."""
    return clipping.norm([g for g in pair.expected.raw if g is not None], 2)


def _are_multiples(run: Run, pair: Pair, limits: Limits) -> bool:
    """Whether what arrived is the right gradient but for a factor of each tensor."""
    if pair.got is None:
        return False
    scaled: list[np.ndarray | None] = []
    for a, b in zip(pair.got, pair.expected.clipped, strict=True):
        is_there = a is not None and b is not None
        ratio = clipping.ratio(a.ravel(), b.ravel())[0] if is_there else 1.0  # type: ignore[union-attr]
        scaled.append(b if b is None or not math.isfinite(ratio) else ratio * b)
    return not received.compared(run, pair.got, scaled, pair.expected, limits, pair.window)[0]


def _moved(
    run: Run, pair: Pair, contract: Contract, limits: Limits, start: float
) -> tuple[Pair, float] | None:
    """The window as a radius explains it, and that radius; None where none does.

    It is found by secants along what it changes.
    """
    at, got = pair.window.at, pair.got
    size = _size(pair)
    if got is None or not size:
        return None
    up = clipping.split(flat(pair.expected.raw, at) / size, at)
    target, right = flat(got, at), flat(pair.expected.clipped, at)
    most = LARGEST * max(float(np.linalg.norm(clipping.flat(at))), 1.0)
    radius = start
    for _ in range(ROUNDS):
        meant = _at(run, pair, contract, up, radius)
        chord = (flat(meant, at) - right) / radius
        steep = float(np.vdot(chord, chord))
        old, radius = radius, float(np.vdot(chord, target - right)) / steep if steep else 0.0
        if not 0 < radius < most:
            return None
        if abs(radius - old) <= NEAR * radius:
            break
    meant = _at(run, pair, contract, up, radius)
    expected = replace(pair.expected, clipped=meant)
    wrong, error = received.compared(run, got, meant, expected, limits, pair.window)
    if wrong:
        return None
    return replace(pair, expected=expected, wrong=wrong, error=error), radius


def _at(run: Run, pair: Pair, contract: Contract, up: Grads, radius: float) -> Grads:
    """What should arrive if the gradient is taken so far up."""
    window = pair.window
    there = [x + radius * (0.0 if d is None else d) for x, d in zip(window.at, up, strict=True)]
    _, found = run.loop.gradient(window.batches[0], there, window.marks[0])
    # What is frozen gets no gradient there either.
    grads = [None if raw is None else g for g, raw in zip(found, pair.expected.raw, strict=True)]
    return expecting.finished(run, window, contract, grads, pair.expected.shares).clipped
