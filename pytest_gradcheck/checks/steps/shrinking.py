"""Clips that are written by hand and whose threshold changes: by a percentile, a running mean.

They leave some gradients as they are and shorten others, each by a factor of its own. So does a
factor on the loss that only the step has; what is wrong with a mean gives batches of one size one
factor, in proportion to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pytest_gradcheck.checks.steps.contract import Contract
from pytest_gradcheck.checks.steps.expected import flat
from pytest_gradcheck.checks.steps.measure import Run
from pytest_gradcheck.numerics import clipping
from pytest_gradcheck.results import Finding

if TYPE_CHECKING:
    from pytest_gradcheck.checks.steps.received import Pair

SAME = 1e-3  # of a factor


def is_shrinking(run: Run, pairs: Sequence[Pair], contract: Contract) -> bool:
    """Whether batches of one size arrive as they are, and shorter, and none longer."""
    is_claimed = contract.max_norm is not None or contract.max_value is not None
    if is_claimed or any(p.window.clips for p in pairs):
        return False
    factors = [_factor(p) for p in pairs]
    if not all(0 < f < 1 + SAME for f in factors):
        return False
    sizes = [sum(run.loop.size(batch) for batch in p.window.batches) for p in pairs]
    whole = [size for size, p in zip(sizes, pairs, strict=True) if not p.wrong]
    shorter = [(size, f) for size, f, p in zip(sizes, factors, pairs, strict=True) if p.wrong]
    rates = [f / size for size, f in shorter]
    is_by_size = max(rates) - min(rates) <= SAME * max(rates)
    return bool(whole) and (any(size in whole for size, _ in shorter) or not is_by_size)


def _factor(pair: Pair) -> float:
    if not pair.wrong:
        return 1.0
    at = pair.window.at
    return clipping.ratio(flat(pair.got or (), at), flat(pair.expected.clipped, at))[0]


def finding(pairs: Sequence[Pair]) -> Finding:
    """What is told of such gradients."""
    factors = [_factor(p) for p in pairs if p.wrong]
    return Finding(
        code="step-clip-varied",
        severity="fail",
        message=f"{len(factors)} of {len(pairs)} gradients arrive shorter ({min(factors):.3g} to "
        f"{max(factors):.3g} times the right one), the others as they are: a clip whose threshold "
        f"changes, or a factor that the loss does not have; clip by clip_grad_norm_, which is "
        f"seen, or put the factor into Training.loss",
        numbers=(("low", min(factors)), ("high", max(factors))),
    )
