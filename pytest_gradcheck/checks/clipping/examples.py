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
from pytest_gradcheck.checks.clipping.claim import Claim
from pytest_gradcheck.limits import Limits
from pytest_gradcheck.numerics import clipping, seeds
from pytest_gradcheck.results import Evidence, Finding

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
    each = list(zip(*(tuple(v) for v in got.before), strict=True))
    scale = [min(1.0, claim.threshold / clipping.norm(g, claim.norm_type)) for g in each]
    out = clipping.flat(got.after)
    total = np.sum([s * clipping.flat(g) for s, g in zip(scale, each, strict=True)], axis=0)
    plain = np.sum([clipping.flat(g) for g in each], axis=0)
    if out.shape != total.shape:
        return "does not sum over the examples; give back one gradient for all of them"
    size, whole = len(each), clipping.norm([plain], claim.norm_type)
    bound = tolerance * len(each)
    if any(_near(out, total / n, bound) for n in (1, size)):
        return ""
    after = plain * min(1.0, claim.threshold / whole), plain / size
    if any(_near(out, guess, bound) for guess in (*after, plain)):
        return "clips what all examples add up to, or nothing; clip each example before the sum"
    factor, cosine = clipping.ratio(out, total)
    return f"is {factor:.4g} times the sum of clipped examples (cosine {cosine:.4g})"


def _near(a: np.ndarray, b: np.ndarray, tolerance: float) -> bool:
    return bool(np.linalg.norm(a - b) <= tolerance * np.linalg.norm(b))
