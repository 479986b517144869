"""What a loss is, where answers and targets tell it for certain, and what a constant answer costs.

A loss is told by its value: it is the cross entropy of labels in the batch, or the squared error of
targets, only where computing that from the answers gives the very same number. With weights, a
smoothing, an offset or a second part it is not, and nothing is said. A constant answer then costs
the entropy of the label frequencies, or the variance of the targets. Told in the same way are three
mistakes that leave a loss which can be trained on: every answer compared with every target, scores
in the place of their logarithms, and probabilities in the place of scores.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

MOST = 4_000_000  # numbers of an answer that are looked at
EXACT = 1e-4  # relative difference that rounding in float32 may make
ONE_HOT = 20_000  # scores that are looked at one by one where labels are numbers of classes
CROSSED = 2000  # samples of which all pairs are looked at
LOG_FLOOR = -100.0  # below which torch's cross entropy of probabilities takes no logarithm


@dataclass(frozen=True, slots=True)
class Constant:
    """What the best constant answer costs.

    Args:
        loss: In the units of the loss; NaN where there is none but an even one.
        kind: ``labels``, ``targets`` or ``distances``; ``crossed`` where each answer is compared
            with each target, ``unlogged`` where scores that are no logarithms are added up.
        even: What it costs to hold all labels equally likely; NaN for targets.
        is_squashed: Whether it takes the softmax of what has been through one.
    """

    loss: float
    kind: str
    even: float = math.nan
    is_squashed: bool = False


def constant(loss: float | None, answer: Any, batch: Iterable[Any]) -> Constant | None:
    """The cost of a constant answer; None unless the loss is known for certain.

    Args:
        loss: Its value.
        answer: What the model answered, samples first; scores, probabilities or numbers.
        batch: The arrays of the batch.
    """
    if not loss or not math.isfinite(loss) or answer is None:
        return None
    scores = np.asarray(answer)
    if scores.size > MOST:
        return None
    if scores.dtype.kind != "f" or scores.ndim < 1 or len(scores) < 2:
        return None
    if not np.all(np.isfinite(scores)):
        return None
    with np.errstate(all="ignore"):
        for target in map(np.asarray, batch):
            for found in (*_labels(scores, target), *_targets(scores, target)):
                for power, value in ((1, loss), (2, loss * loss)):
                    factor = _factor(value, found.each) if power == 1 or found.is_square else 0.0
                    if factor:
                        least = (factor * max(found.least, 0.0)) ** (1 / power) or math.nan
                        even = factor * found.even
                        return Constant(least, found.kind, even, found.is_squashed)
    return None


class Found(NamedTuple):
    """A loss that it may be: cost of each sample, of a constant answer, and of even odds.

    Of squares it may be the root as well.
    """

    each: np.ndarray
    least: float
    kind: str
    even: float = math.nan
    is_squashed: bool = False
    is_square: bool = False


def _factor(loss: float, each: np.ndarray) -> float:
    """By what the sum of the costs is multiplied to give the loss: 1, or one over their number."""
    total = float(each.sum())
    if not math.isfinite(total) or total * loss <= 0:
        return 0.0
    counts = {1.0, float(each.size), float(len(each))}
    known = (half / n for n in counts for half in (1.0, 0.5))
    return next((f for f in known if math.isclose(f * total, loss, rel_tol=EXACT)), 0.0)


def _labels(scores: np.ndarray, target: np.ndarray) -> Iterator[Found]:
    """Cross entropies of labels, in the forms in which answers are given."""
    if target.dtype.kind in "iu" and scores.ndim > 1 and scores.shape[-1] > 1:
        if target.shape == scores.shape[:-1]:
            yield from _classes(scores, target)
        if scores.ndim > 2 and target.shape == (len(scores), *scores.shape[2:]):
            yield from _classes(np.moveaxis(scores, 1, -1), target)  # before places, as in torch
    if _is_alike(scores, target) and set(np.unique(target)) <= {0, 1}:
        on = target.ravel().astype(np.float64)
        # Of several labels to a sample each has odds of its own, and in a batch few are ever on.
        is_one = target.size == len(scores)
        least = len(on) * _entropy(np.array([on.mean(), 1 - on.mean()])) if is_one else math.nan
        yield from _binary(scores.ravel().astype(np.float64), on, least)


def _classes(scores: np.ndarray, target: np.ndarray) -> Iterator[Found]:
    """Those of one label among several, scores of the classes along the last axis."""
    rows, y = scores.reshape(-1, scores.shape[-1]).astype(np.float64), target.ravel()
    used = y >= 0  # a negative label is one to be left out
    rows, y = rows[used], y[used]
    if not len(y) or y.max() >= rows.shape[-1]:
        return
    least, even = len(y) * _entropy(np.bincount(y) / len(y)), len(y) * math.log(rows.shape[-1])
    spots = np.arange(len(y)), y
    is_squashed = bool(np.all(rows >= 0) and _is_one(rows.sum(axis=-1)))
    logs = _log_softmax(rows)
    yield Found(-logs[spots], least, "labels", even, is_squashed)
    yield Found(-_log_softmax(np.exp(logs))[spots], least, "labels", even, True)
    yield Found(-np.log(rows)[spots], least, "labels", even)
    if np.any(rows > 0):  # else they are logarithms of something below 1
        is_bounded = bool(np.all((rows >= 0) & (rows <= 1)))
        yield Found(-rows[spots], math.nan, "unlogged", is_squashed=is_bounded)
    if rows.size <= ONE_HOT:
        yield from _binary(rows.ravel(), np.eye(rows.shape[-1])[y].ravel(), math.nan)


def _binary(z: np.ndarray, on: np.ndarray, least: float) -> Iterator[Found]:
    """Cross entropies of labels that are on or off, of scores and of probabilities."""
    even = len(on) * math.log(2.0)
    yield Found(np.logaddexp(0, z) - on * z, least, "labels", even)
    told = np.maximum(np.log(np.where(on > 0, z, 1 - z)), LOG_FLOOR)
    yield Found(-told, least, "labels", even)


def _targets(scores: np.ndarray, target: np.ndarray) -> Iterator[Found]:
    """Squared errors of targets of the same form."""
    if target.dtype.kind not in "fiu" or not _is_alike(scores, target):
        return
    wide = target.astype(np.float64).reshape(scores.shape)
    error = np.square(scores.astype(np.float64) - wide)
    least = float(np.square(wide - wide.mean(axis=0)).sum())
    yield Found(error, least, "targets", is_square=True)
    if scores.size == target.size == len(scores) <= CROSSED:
        gaps = scores.ravel()[:, None].astype(np.float64) - target.ravel()
        # Where all answers lie on one side, the mean distance of all pairs is that of the pairs.
        pairs = scores.ravel() - wide.ravel()
        for distance in (np.abs, np.square, _huber):
            is_square = distance is np.square
            yield Found(distance(pairs), math.nan, "distances", is_square=is_square)
            yield Found(distance(gaps), math.nan, "crossed", is_square=is_square)


def _huber(gaps: np.ndarray) -> np.ndarray:
    sizes = np.abs(gaps)
    return np.asarray(np.where(sizes < 1, np.square(sizes) / 2, sizes - 0.5))


def _is_one(sums: np.ndarray) -> bool:
    return bool(np.all(np.abs(sums - 1) < EXACT))


def _is_alike(scores: np.ndarray, target: np.ndarray) -> bool:
    return target.shape == scores.shape or target.size == scores.size == len(scores)


def _log_softmax(x: np.ndarray) -> np.ndarray:
    top = x - x.max(axis=-1, keepdims=True)
    return np.asarray(top - np.log(np.exp(top).sum(axis=-1, keepdims=True)))


def _entropy(shares: np.ndarray) -> float:
    some = shares[shares > 0]
    return float(-(some * np.log(some)).sum())
