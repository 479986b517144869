"""Gradients of single examples that are clipped one by one before their mean (DP-SGD).

The mean of the clipped ones is ``A + c B``: A of those below the threshold c, B the directions of
those above. Each way to divide them gives a threshold by least squares; it counts if that explains
what arrived, and is the same in every update (Abadi et al. 2016, algorithm 1, without its noise).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from pytest_gradcheck.checks.steps import received
from pytest_gradcheck.checks.steps.contract import Contract
from pytest_gradcheck.checks.steps.expected import flat
from pytest_gradcheck.checks.steps.measure import Run
from pytest_gradcheck.checks.steps.received import Pair
from pytest_gradcheck.limits import Limits
from pytest_gradcheck.numerics import clipping
from pytest_gradcheck.results import Finding

FIT = 1e-3  # of a gradient that may stay unexplained
SAME = 1e-2  # of a threshold, by which those of two updates may differ
MOST = 256  # examples of an update that are differentiated one by one
WORK = 50_000  # examples times elements, where each element takes two evaluations

Fit = tuple[float, np.ndarray]  # a threshold, and the mean of what it leaves


class Rows(NamedTuple):
    """The gradients of examples.

    Args:
        each: One a row.
        inner: Their inner products.
    """

    each: np.ndarray
    inner: np.ndarray


def adopted(
    run: Run, pairs: Sequence[Pair], contract: Contract, limits: Limits
) -> tuple[list[Pair], Finding] | None:
    """The windows as such clips explain them, every one, and what is told of it."""
    wrong = [p for p in pairs if p.wrong]
    rows: list[Rows] = []
    for pair in wrong:  # the first one tells, mostly
        found = _rows(run, pair)
        if found is None or not any(_fits(found, pair, f) for f in _factors(run, pairs, pair)):
            return None
        rows.append(found)
    for told, way in (("averaged", 0), ("added and divided by {}", 1), ("added, not averaged", 2)):
        factors = [_factors(run, pairs, p)[way] for p in wrong]
        fits = [_fits(r, p, f) for r, p, f in zip(rows, wrong, factors, strict=True)]
        known = [fit for fit in fits if fit is not None]
        sizes = [c for c, _ in known]
        if len(known) < len(fits) or max(sizes) - min(sizes) > SAME * max(sizes):
            continue
        again = _cut(run, pairs, [f * x for f, (_, x) in zip(factors, known, strict=True)], limits)
        if not any(p.wrong for p in again):
            shown = told.format(max(_count(run, p) for p in pairs))
            return again, _finding(sizes[0], shown, way == 2, contract)
    return None


def _count(run: Run, pair: Pair) -> int:
    """The number of examples of an update."""
    return sum(run.loop.size(batch) for batch in pair.window.batches)


def _factors(run: Run, pairs: Sequence[Pair], pair: Pair) -> tuple[float, ...]:
    """What the mean is multiplied by: by nothing, divided by a full batch, or not at all."""
    count = float(_count(run, pair))
    return 1.0, count / max(_count(run, p) for p in pairs), count


def _rows(run: Run, pair: Pair) -> Rows | None:
    """The gradient of each example; None where their mean is not that of the batch."""
    window = pair.window
    count = _count(run, pair)
    elements = sum(x.size for x in window.at)
    if pair.got is None or not 1 < count <= MOST:
        return None
    if run.loop.name == "numpy" and count * elements > WORK:
        return None
    found = []
    try:
        for batch, mark in zip(window.batches, window.marks, strict=True):
            size = run.loop.size(batch)
            for k in range(size):
                _, grads = run.loop.gradient(_one(batch, k, size), window.at, mark)
                found.append(flat(grads, window.at))
    except Exception:  # a loss that takes no single example is no mean over them
        return None
    rows, right = np.stack(found), flat(pair.expected.raw, window.at)
    is_mean = np.linalg.norm(rows.mean(axis=0) - right) <= FIT * np.linalg.norm(right)
    return Rows(rows, rows @ rows.T) if is_mean else None


def _one(batch: Any, k: int, size: int) -> Any:
    """One example of a batch, as a batch."""
    if isinstance(batch, dict):
        return {key: _one(value, k, size) for key, value in batch.items()}
    if isinstance(batch, (list, tuple)):
        parts = [_one(value, k, size) for value in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
    shape = list(getattr(batch, "shape", ()))
    return batch[k : k + 1] if shape[:1] == [size] else batch


def _fits(rows: Rows, pair: Pair, factor: float) -> Fit | None:
    """The threshold with which clipped examples, averaged, times a factor, make what arrived."""
    target = flat(pair.got or (), pair.window.at) / factor
    along, size = rows.each @ target, float(np.linalg.norm(target))
    count, inner = len(rows.each), rows.inner
    norms = np.sqrt(np.diag(inner))
    order = np.argsort(norms)
    for kept in range(count):  # of the shortest ones, which are not clipped
        low = norms[order[kept - 1]] if kept else 0.0
        rest = order[kept:]
        base, steep = np.zeros(count), np.zeros(count)  # as sums of the rows
        base[order[:kept]] = 1 / count
        steep[rest] = 1 / (np.maximum(norms[rest], 1e-300) * count)
        square = float(steep @ inner @ steep)
        threshold = float(steep @ (along - inner @ base)) / square if square else 0.0
        is_inside = (1 - SAME) * low <= threshold <= (1 + SAME) * norms[order[kept]]
        if not is_inside or threshold <= 0:
            continue
        found = (base + threshold * steep) @ rows.each
        if float(np.linalg.norm(found - target)) <= FIT * size:
            return threshold, found
    return None


def _cut(
    run: Run, pairs: Sequence[Pair], means: Sequence[np.ndarray], limits: Limits
) -> list[Pair]:
    """The windows, the wrong ones with the mean of their clipped examples."""
    found, rest = [], iter(means)
    for pair in pairs:
        if pair.wrong:
            clipped = clipping.split(next(rest), pair.window.at)
            expected = replace(pair.expected, clipped=clipped, bites=True)
            wrong, error = received.compared(
                run, pair.got or (), clipped, expected, limits, pair.window
            )
            pair = replace(pair, expected=expected, wrong=wrong, error=error)
        found.append(pair)
    return found


def _finding(threshold: float, told: str, is_sum: bool, contract: Contract) -> Finding:
    what = f"each example's gradient is clipped by its own norm at {threshold:.4g}, then {told}"
    numbers = (("threshold", threshold),)
    if is_sum:
        return Finding(
            code="step-gradient-sum",
            severity="fail",
            message=f"{what}; divide by the number of examples",
            numbers=numbers,
        )
    if contract.max_norm is not None or contract.max_value is not None:
        return Finding(
            code="step-clip-kind",
            severity="fail",
            message=f"{what}, where a clip of their mean is claimed; clip that, or leave the claim "
            f"out where examples are meant to be clipped (DP-SGD)",
            numbers=numbers,
        )
    return Finding(
        code="step-clip-unclaimed",
        severity="warn",
        message=f"{what}: what clips them is written by hand; see that this is meant (DP-SGD)",
        numbers=numbers,
    )
