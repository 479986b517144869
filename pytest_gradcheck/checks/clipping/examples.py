"""Clipping per example (Abadi et al. 2016, algorithm 1): each example's gradient has its own norm.

What goes in has the examples along the first axis of every gradient; what comes out is the sum or
the mean of the clipped ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pytest_gradcheck.backends.clips import Clipper
from pytest_gradcheck.checks.clipping.cases import SCALES, Case
from pytest_gradcheck.checks.clipping.claim import TORCH_FLOOR, Claim
from pytest_gradcheck.limits import Limits
from pytest_gradcheck.numerics import clipping, seeds
from pytest_gradcheck.results import Evidence, Finding

LOOSE = 1e-4  # the mistakes differ by far more
_BY_TENSOR = "clips each tensor of an example by itself; take one norm for all of an example"
_BOOSTED = "scales small examples up to the threshold; the factor is min(1, max_norm / norm)"
RATIOS = (0.5, 4.0, 0.2, 10.0, 1.5)  # norms of the examples over the threshold


def findings(
    call: Callable[[Case], Any],
    clipper: Clipper,
    claim: Claim,
    dtypes: Sequence[str],
    seed: int,
    limits: Limits,
) -> tuple[list[Finding], Evidence]:
    """What is wrong with the sum of clipped examples, and the norms that were used."""
    found: list[Finding] = []
    rows: list[tuple[str, float, float, float, float, float]] = []
    for dtype in dtypes:
        values = _values(clipper, claim, seed)
        got = call(Case("examples", "plain", dtype, tuple(values), claim))
        tolerance = limits.number("clip_rounding", dtype)
        told = _told(got, claim, tolerance)
        if told:
            found.append(Finding(code="clip-per-example", severity="fail", message=told))
        for ratio in RATIOS:
            size = ratio * claim.threshold
            factor = min(1.0, 1 / ratio)
            rows.append((f"{ratio:g} times", size, claim.threshold, size * factor, factor, 1.0))
    return found, Evidence(
        name="clipping",
        title="norm of each example before and after, as claimed",
        columns=("gradients", "before", "threshold", "after", "factor", "cosine"),
        rows=tuple(rows),
    )


def _values(clipper: Clipper, claim: Claim, seed: int) -> list[np.ndarray]:
    generator = np.random.default_rng(seeds.derive(seed, "examples"))
    values = [
        SCALES[i % len(SCALES)] * generator.standard_normal(shape)
        for i, shape in enumerate(clipper.shapes)
    ]
    for i in range(values[0].shape[0]):
        size = clipping.norm([v[i] for v in values], claim.norm_type)
        for v in values:
            v[i] *= RATIOS[i % len(RATIOS)] * claim.threshold / size
    return values


def _told(got: Any, claim: Claim, tolerance: float) -> str:
    if got.error:
        return f"raised for examples: {got.error}"
    c, p = claim.threshold, claim.norm_type
    each = list(zip(*(tuple(v) for v in got.before), strict=True))
    sizes = [clipping.norm(g, p) for g in each]
    out = clipping.flat(got.after)
    total = _summed(each, [[min(1.0, c / n)] * len(g) for n, g in zip(sizes, each, strict=True)])
    plain = np.sum([clipping.flat(g) for g in each], axis=0)
    if out.shape != total.shape:
        return "does not sum over the examples; give back one gradient for all of them"
    size, whole = len(each), clipping.norm([plain], p)
    # What torch and Opacus add to a norm shows in each example, and where these cancel.
    floor = sum(min(n, c) * TORCH_FLOOR / n for n in sizes if n + TORCH_FLOOR > c)
    bound = tolerance * size + floor / max(float(np.linalg.norm(total)), TORCH_FLOOR)
    if any(_near(out, total / n, bound) for n in (1, size)):
        return ""
    after = plain * min(1.0, c / whole), plain / size * min(1.0, c * size / whole), plain / size
    if any(_near(out, guess, LOOSE) for guess in (*after, plain)):
        return "clips what all examples add up to, or nothing; clip each example before the sum"
    by_tensor = [[min(1.0, c / clipping.norm([x], p)) for x in g] for g in each]
    boosted = [[c / n] * len(g) for n, g in zip(sizes, each, strict=True)]
    for scale, told in ((by_tensor, _BY_TENSOR), (boosted, _BOOSTED)):
        guess = _summed(each, scale)
        if any(_near(out, guess / n, LOOSE) for n in (1, size)):
            return told
    factor, cosine = clipping.ratio(out, total)
    return f"is {factor:.4g} times the sum of clipped examples (cosine {cosine:.4g})"


def _summed(each: Sequence[Sequence[np.ndarray]], scale: Sequence[Sequence[float]]) -> np.ndarray:
    """The sum over the examples, each tensor of each times its factor."""
    rows = [[f * x for f, x in zip(fs, g, strict=True)] for fs, g in zip(scale, each, strict=True)]
    total: np.ndarray = np.sum([clipping.flat(row) for row in rows], axis=0)
    return total


def _near(a: np.ndarray, b: np.ndarray, tolerance: float) -> bool:
    return bool(np.linalg.norm(a - b) <= tolerance * np.linalg.norm(b))
