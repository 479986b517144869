"""A point at which the loss has kinks: what can be told of its gradient beside it.

Blocks that begin at zero leave rectifiers exactly at their kinks (ResNets whose last normalisation
starts at 0: Goyal et al. 2017, section 5.1). There, automatic differentiation takes one side of
each, a direction goes to both, and no slope along it need be what the gradient says.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from pytest_gradcheck.checks.steps.measure import Run
from pytest_gradcheck.checks.steps.windows import Window, are_finite
from pytest_gradcheck.errors import UsageError
from pytest_gradcheck.numerics import clipping, precision

AWAY = 1e-2  # of each number, or of the numbers of a tensor of zeros, how far beside


def beside(run: Run, window: Window) -> Window | None:
    """The window with other parameters and the fresh gradients there; None where none can be had.

    Everything keeps its sign: some losses have roots or logarithms of their parameters.
    """
    rng = np.random.default_rng(0)
    count = sum(x.size for x in window.at) or 1
    typical = clipping.norm(window.at, 2) / math.sqrt(count) or 1.0
    pairs = zip(window.at, run.loop.parameters, strict=True)
    at = [_rounded(_away(x, typical, rng), p.dtype) for x, p in pairs]
    moved = replace(window, at=at, again=[], is_retaken=False)
    try:
        found = moved.each(run.loop.gradient)
    except UsageError:  # what the loss takes may be bounded
        return None
    losses, micro = [loss for loss, _ in found], [grads for _, grads in found]
    if not all(map(math.isfinite, losses)) or not all(map(are_finite, micro)):
        return None
    return replace(moved, losses=losses, micro=micro)


def _away(x: np.ndarray, typical: float, rng: np.random.Generator) -> np.ndarray:
    noise = np.clip(rng.standard_normal(x.shape), -3, 3)
    return np.where(x == 0, AWAY * typical * np.abs(noise), x * (1 + AWAY * noise))


def _rounded(x: np.ndarray, dtype: str) -> np.ndarray:
    """The nearest numbers that a precision has."""
    digits = 1 - math.log2(precision.epsilon(dtype))
    mantissa, exponent = np.frexp(x)
    rounded: np.ndarray = np.ldexp(np.rint(mantissa * 2**digits) / 2**digits, exponent)
    return rounded
