"""Parameters that never moved, by the reason: no gradient, a rate of 0, an update that is lost."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pytest_gradcheck.checks.steps import stuck
from pytest_gradcheck.checks.steps.contract import Contract, matches
from pytest_gradcheck.checks.steps.measure import Run
from pytest_gradcheck.checks.steps.received import Pair
from pytest_gradcheck.numerics import clipping, precision
from pytest_gradcheck.results import Finding

WAYS = (0.5, 0.01)  # shares of a parameter's largest element by which all of it is moved
SOME = 1000  # elements, of which one has moved where anything has, as a rule
NOISE = 100.0  # roundings by which a loss may change with what it does not depend on


def is_frozen(run: Run, i: int, contract: Contract) -> bool:
    """Whether a parameter takes no gradient, or is claimed not to move."""
    tracked = run.loop.parameters[i]
    return not tracked.trainable or matches(tracked.name, contract.frozen)


def moved(run: Run, i: int) -> bool:
    """Whether a parameter is another one after some call."""
    first, last = run.calls[0].before[i], run.calls[-1].after[i]
    if not np.array_equal(first.flat[:SOME], last.flat[:SOME], equal_nan=True):
        return True  # which is seen without a look at all of it
    return not np.array_equal(first, last, equal_nan=True) or any(
        not np.array_equal(c.before[i], c.after[i], equal_nan=True) for c in run.calls
    )


def findings(run: Run, pairs: Sequence[Pair], contract: Contract) -> list[Finding]:
    """Parameters that never moved, by the reason."""
    found: list[Finding] = []
    unused: list[int] = []
    for i, tracked in enumerate(run.loop.parameters):
        is_ours = not is_frozen(run, i, contract) and tracked.owners != 0
        if not is_ours or any(t.shadow == i for t in run.loop.parameters):
            continue
        fresh = [p.expected.raw[i] for p in pairs]
        is_without = all(g is None or not np.any(g) for g in fresh)
        if not is_without and moved(run, i):
            continue
        if is_without:
            found.append(_without(run, pairs, i, all(g is None for g in fresh)))
            if found[-1].code == "step-unused":
                unused.append(i)
        elif all(_is_nothing(run, p, i) for p in pairs) and not _counts(run, pairs, i):
            found.append(_unused(run.names[i], "a gradient that is rounding"))
        elif _rate_is_zero(run, i, contract):
            found.append(
                Finding(
                    code="step-rate-zero",
                    severity="warn",
                    where=tracked.name,
                    message=f"{tracked.name} never moved: its learning rate was 0 in all updates",
                )
            )
        elif all(_is_at_kink(p, i) for p in pairs):
            more = ", at which it stands"
            found.append(_unused(tracked.name, "a gradient that is zero on a side of a kink", more))
        elif _is_told_to_rest(run, i):
            found.append(_unused(run.names[i], "no update by what the optimizer says", ""))
        else:
            found.append(_unmoved(run, i))
    return found + stuck.findings(run, pairs, unused)


def _is_nothing(run: Run, pair: Pair, i: int) -> bool:
    """Whether a gradient is missing, zero, or no more than the rounding of the others."""
    g = pair.expected.raw[i]
    if g is None:
        return True
    others = [x for x in pair.expected.raw if x is not None]
    rounding = NOISE * precision.epsilon(run.coarsest)
    return clipping.norm([g], 2) <= rounding * clipping.norm(others, 2)


def _is_at_kink(pair: Pair, i: int) -> bool:
    """Whether a gradient of zero is between those on both sides of the point."""
    g, doubts = pair.expected.clipped[i], pair.expected.doubts
    return g is not None and bool(doubts) and clipping.norm([g], 2) <= doubts[i]


def _rate_is_zero(run: Run, i: int, contract: Contract) -> bool:
    rates = [
        contract.at(run.names[i], u.hyper[i], k).get("lr")
        for k, w in enumerate(run.windows)
        for u in w.updates
        if u.hyper[i]
    ]
    return bool(rates) and all(rate == 0 for rate in rates)


def _is_told_to_rest(run: Run, i: int) -> bool:
    """Whether the optimizer, asked alone, would not move a parameter either (centred, masked)."""
    told = [u.oracle[i] for w in run.windows for u in w.updates if u.oracle]
    return bool(told) and not any(np.any(x) for x in told)


def _unmoved(run: Run, i: int) -> Finding:
    name = run.names[i]
    return Finding(
        code="step-never-moved",
        severity="fail",
        where=name,
        message=f"{name} has a gradient and never moved in {len(run.windows)} updates; look for "
        f"an update on a copy, or one too small for {run.loop.parameters[i].dtype}",
    )


def _without(run: Run, pairs: Sequence[Pair], i: int, is_none: bool) -> Finding:
    """No gradient: right where the loss does not depend on the parameter."""
    name = run.names[i]
    what = "no gradient" if is_none else "a gradient that is zero"
    if not _counts(run, pairs, i):
        return _unused(name, what)
    return Finding(
        code="step-detached",
        severity="fail",
        where=name,
        message=f"{name} has {what}, and the loss changes with it; look for detach, .data, or a "
        f"loss that is computed outside the graph",
    )


def _counts(run: Run, pairs: Sequence[Pair], i: int) -> bool:
    """Whether the loss changes with a parameter, by more than its rounding.

    A short way is enough for what was detached; only a long one wakes up a rectifier that is off.
    """
    window = pairs[0].window
    here = run.loop.value(window.batches[0], window.at, window.marks[0])
    x = window.at[i]
    size = float(np.max(np.abs(x), initial=0.0)) or 1.0
    signs = np.where(np.arange(x.size).reshape(x.shape) % 2, -1.0, 1.0)
    for share in WAYS:
        moved = list(window.at)
        moved[i] = x + share * size * signs
        there = run.loop.value(window.batches[0], moved, window.marks[0])
        rounding = NOISE * precision.epsilon(run.coarsest) * max(abs(here), abs(there))
        if not (abs(there - here) > rounding and np.isfinite(there)):
            return False
    return True


def _unused(name: str, what: str, more: str = ", and the loss does not change with it") -> Finding:
    return Finding(
        code="step-unused",
        severity="warn",
        where=name,
        message=f"{name} has {what} in all updates{more}",
    )
