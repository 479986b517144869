"""Gradients that a functional step takes at a point beside its parameters, uphill from them (SAM).

The point is ``w + r g / |g|`` with one radius r in every update (Foret et al. 2021, equation 2), or
``w + r g`` (Andriushchenko and Flammarion 2022, "unnormalised").
"""

from __future__ import annotations

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
from pytest_gradcheck.limits import Limits
from pytest_gradcheck.numerics import clipping
from pytest_gradcheck.results import Finding

START = 0.05  # of the radius, as the paper has it
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
    if all(_is_multiple(run, p, limits) for p in pairs):
        return None  # of a quadratic loss, where each way is as good an explanation
    again, radii, steeps = [], [START], list[float]()
    for pair in pairs:
        found = _moved(run, pair, contract, limits, radii[-1])
        if found is None:
            return None
        changed, radius = found
        again.append(changed)
        radii.append(radius)
        steeps.append(radius / pair.expected.norm)
    is_one = any(max(sizes) - min(sizes) <= SAME * max(sizes) for sizes in (radii[1:], steeps))
    return (again, retaking.perturbed(radii[1])) if is_one else None


def _is_multiple(run: Run, pair: Pair, limits: Limits) -> bool:
    """Whether what arrived is the right gradient but for a factor."""
    at, got, right = pair.window.at, pair.got, pair.expected.clipped
    if got is None:
        return False
    ratio, _ = clipping.ratio(flat(got, at), flat(right, at))
    scaled = [None if g is None else ratio * g for g in right]
    return not received.compared(run, got, scaled, pair.expected, limits, pair.window)[0]


def _moved(
    run: Run, pair: Pair, contract: Contract, limits: Limits, start: float
) -> tuple[Pair, float] | None:
    """The window as a radius explains it, and that radius; None where none does.

    It is found by secants along what it changes.
    """
    at, got = pair.window.at, pair.got
    raw = flat(pair.expected.raw, at)
    size = float(np.linalg.norm(raw))
    if got is None or not size:
        return None
    up = clipping.split(raw / size, at)
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
    _, grads = run.loop.gradient(window.batches[0], there, window.marks[0])
    return expecting.finished(run, window, contract, grads, pair.expected.shares).clipped
