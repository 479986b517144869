"""Clips that are written by hand and claimed by nobody, read off the gradients that arrived.

A clip leaves its threshold behind: in every update in which it bites, the same norm (the same
largest element, the same norm of a tensor) arrives, whatever the right one is. What a wrong factor
makes is not the same each time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from pytest_gradcheck.checks.steps import norms, received
from pytest_gradcheck.checks.steps.contract import Contract
from pytest_gradcheck.checks.steps.measure import Run
from pytest_gradcheck.checks.steps.norms import At, Cut
from pytest_gradcheck.checks.steps.received import Pair
from pytest_gradcheck.checks.steps.windows import Grads
from pytest_gradcheck.limits import Limits
from pytest_gradcheck.numerics import clipping
from pytest_gradcheck.results import Finding

FEWEST = 3  # updates beside the only one that is clipped
SAME = 1e-3  # of a threshold, by which what is read in two updates may differ
APART = 1e-2  # of the right gradients' own sizes, by which these must differ

Level = Callable[[Grads, At], float]  # what a clip holds below its threshold


def _norm(grads: Grads, _: At) -> float:
    return clipping.norm([g for g in grads if g is not None], 2.0)


def _element(grads: Grads, _: At) -> float:
    return max((float(np.max(np.abs(g), initial=0.0)) for g in grads if g is not None), default=0.0)


def _tensor(grads: Grads, _: At) -> float:
    return max((float(np.linalg.norm(g)) for g in grads if g is not None), default=0.0)


def _ratio(grads: Grads, at: At) -> float:
    pairs = zip(grads, at, strict=True)
    return max((norms.relative(g, x) for g, x in pairs if g is not None), default=0.0)


def _row_ratio(grads: Grads, at: At) -> float:
    pairs = [(g, x) for g, x in zip(grads, at, strict=True) if g is not None]
    rows = (norms.relative_rows(g, x) for g, x in pairs)
    return max((float(np.max(r, initial=0.0)) for r in rows), default=0.0)


KINDS: tuple[tuple[str, str, Level, Cut], ...] = (
    ("by their norm at {}", "claim max_norm={}", _norm, norms.by_norm),
    ("by value at {}", "claim max_value={}", _element, norms.by_value),
    ("each tensor by its own norm, at {}", "", _tensor, norms.each_alone),
    ("each unit by {} times its weights", "", _row_ratio, norms.adaptive_rows),
    ("each tensor by {} times its weights", "", _ratio, norms.adaptive),
)


def adopted(
    run: Run, pairs: Sequence[Pair], contract: Contract, limits: Limits
) -> tuple[list[Pair], Finding] | None:
    """The windows as such a clip explains them, every one, and what is told of it."""
    is_claimed = contract.max_norm is not None or contract.max_value is not None
    wrong = [p for p in pairs if p.wrong]
    if is_claimed or not wrong or any(p.got is None or p.window.clips for p in pairs):
        return None
    if len(wrong) == 1 and (len(pairs) <= FEWEST or _is_short(pairs, wrong[0])):
        return None
    for told, advice, level, cut in KINDS:
        threshold = _threshold(pairs, wrong, level)
        if threshold is None:
            continue
        again = [_cut(run, p, cut, threshold, limits) for p in pairs]
        if not any(p.wrong for p in again):
            return again, _unclaimed(told, advice, threshold)
    return None


def _is_short(pairs: Sequence[Pair], pair: Pair) -> bool:
    """Whether a window has fewer calls than others: it is divided by their number, maybe."""
    return len(pair.window.batches) < max(len(p.window.batches) for p in pairs)


def _threshold(pairs: Sequence[Pair], wrong: Sequence[Pair], level: Level) -> float | None:
    """What arrived at the same level each time, of gradients that have others by themselves."""
    got = [level(p.got or (), p.window.at) for p in wrong]
    raw = [level(p.expected.raw, p.window.at) for p in wrong]
    some = raw if len(wrong) > 1 else [level(p.expected.raw, p.window.at) for p in pairs]
    is_one = min(got) > 0 and max(got) - min(got) <= SAME * max(got)
    if not is_one or max(some) - min(some) <= APART * max(some):
        return None
    # What is added to a norm that divides counts least where that is largest.
    return got[raw.index(max(raw))]


def _cut(run: Run, pair: Pair, cut: Cut, threshold: float, limits: Limits) -> Pair:
    """A window whose right gradient is clipped so."""
    clipped = cut(pair.expected.raw, pair.window.at, threshold)
    expected = replace(pair.expected, clipped=clipped, bites=True)
    got = pair.got or ()
    wrong, error = received.compared(run, got, clipped, expected, limits, pair.window)
    return replace(pair, expected=expected, wrong=wrong, error=error)


def _unclaimed(told: str, advice: str, threshold: float) -> Finding:
    shown = f"{threshold:.4g}"
    more = advice.format(shown) or "see that this is meant"
    return Finding(
        code="step-clip-unclaimed",
        severity="warn",
        message=f"the gradients arrive clipped, {told.format(shown)}: what clips them is written "
        f"by hand, and nobody claims it; {more}",
        numbers=(("threshold", threshold),),
    )
