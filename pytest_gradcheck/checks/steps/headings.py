"""Where later updates go, of an optimizer that nobody can replay: it may do what it likes there."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from pytest_gradcheck.checks.steps.contract import Contract
from pytest_gradcheck.checks.steps.ladder import STEEP, filled, shown, signs, turned
from pytest_gradcheck.checks.steps.measure import Run
from pytest_gradcheck.checks.steps.received import Pair
from pytest_gradcheck.numerics import clipping
from pytest_gradcheck.results import Finding

MOST = 0.5  # of the later updates: momentum may climb for a while
LAST = 3  # updates at the end that move nothing


def findings(run: Run, pairs: Sequence[Pair], contract: Contract) -> list[Finding]:
    """Later updates that go uphill as a rule, or that are none."""
    cosines = [_cosine(run, pair, contract) for pair in pairs]
    gaps = [len(list(g)) for still, g in itertools.groupby(c is None for c in cosines) if still]
    last = gaps.pop() if gaps and cosines[-1] is None else 0
    if max([LAST - 1, *gaps]) < last < len(cosines):  # it does not gather calls by itself
        return [_stopped(last, len(cosines))]
    later = [c for c in cosines[1:] if c is not None]
    climbs = sum(c > STEEP for c in later)
    if len(later) >= LAST and climbs > MOST * len(later):
        return [_climbs(climbs, len(later))]
    return []


def _cosine(run: Run, pair: Pair, contract: Contract) -> float | None:
    """Between gradient and update; None for an update that moves nothing, and could."""
    grads = turned(signs(run, pair, contract), filled(pair.expected.raw, pair.window))
    after = pair.window.updates[-1].after
    move = shown(run, [b - a for a, b in zip(pair.window.at, after, strict=True)])
    if not any(map(np.any, grads)):
        return 0.0
    if not any(map(np.any, move)):
        return None
    return clipping.ratio(clipping.flat(move), clipping.flat(grads))[1]


def _stopped(last: int, count: int) -> Finding:
    return Finding(
        code="step-not-applied",
        severity="warn",
        message=f"the last {last} of {count} updates move nothing, though there is a gradient; "
        f"look at what the optimizer, which is not replayed, does with its state",
        numbers=(("still", last), ("updates", count)),
    )


def _climbs(climbs: int, count: int) -> Finding:
    return Finding(
        code="step-uphill",
        severity="warn",
        message=f"{climbs} of {count} updates after the first one go uphill; look at what the "
        f"optimizer, which is not replayed, does with its state",
        numbers=(("uphill", climbs), ("updates", count)),
    )
