"""Which parameters are trained: registered once, given a gradient, moved; or frozen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from pytest_gradcheck.checks.steps.contract import Contract, matches
from pytest_gradcheck.checks.steps.measure import Run
from pytest_gradcheck.checks.steps.received import Pair
from pytest_gradcheck.limits import Limits
from pytest_gradcheck.numerics import clipping, precision
from pytest_gradcheck.numerics.replay import Followed
from pytest_gradcheck.results import Finding

WAYS = (0.5, 0.01)  # shares of a parameter's largest element by which all of it is moved
ALIKE = 1e-4  # of a cosine from 1, and of a share
NOISE = 100.0  # roundings by which a loss may change with what it does not depend on


def findings(
    run: Run,
    pairs: Sequence[Pair],
    contract: Contract,
    limits: Limits,
    replays: Mapping[int, Followed],
) -> list[Finding]:
    """What is wrong with who is trained."""
    found = [*_registered(run, contract), *_frozen(run, contract)]
    if run.windows:
        found += _still(run, pairs, contract)
        found += _lost(run, limits, replays)
    return found


def _is_frozen(run: Run, i: int, contract: Contract) -> bool:
    tracked = run.loop.parameters[i]
    return not tracked.trainable or matches(tracked.name, contract.frozen)


def _moved(run: Run, i: int) -> bool:
    first, last = run.calls[0].before[i], run.calls[-1].after[i]
    return not np.array_equal(first, last, equal_nan=True) or any(
        not np.array_equal(c.before[i], c.after[i], equal_nan=True) for c in run.calls
    )


def _registered(run: Run, contract: Contract) -> list[Finding]:
    found = []
    for i, tracked in enumerate(run.loop.parameters):
        if tracked.owners is None or _is_frozen(run, i, contract):
            continue
        if tracked.owners == 0:
            found.append(
                Finding(
                    code="step-not-registered",
                    severity="fail",
                    where=tracked.name,
                    message=f"{tracked.name} is trainable and no optimizer holds it; give it to "
                    f"the optimizer, or freeze it",
                )
            )
        elif tracked.owners > 1:
            found.append(
                Finding(
                    code="step-registered-twice",
                    severity="fail",
                    where=tracked.name,
                    message=f"{tracked.name} is held by {tracked.owners} optimizers or groups; "
                    f"give each parameter to one of them",
                )
            )
    return _one(found)


def _one(found: list[Finding]) -> list[Finding]:
    """The first of several findings alike, which counts the others."""
    if len(found) < 2:
        return found
    first = found[0]
    head, _, advice = first.message.partition("; ")
    message = f"{head} (and {len(found) - 1} more); {advice}"
    return [replace(first, message=message)]


def _frozen(run: Run, contract: Contract) -> list[Finding]:
    moved = [i for i in range(len(run.names)) if _moves_frozen(run, i, contract)]
    by_hand = [i for i in moved if _is_left_alone(run, i, contract) or _is_average(run, i)]
    return _one([_of_optimizer(run.names[i]) for i in moved if i not in by_hand]) + _one(
        [_of_step(run.names[i]) for i in by_hand]
    )


def _moves_frozen(run: Run, i: int, contract: Contract) -> bool:
    """Whether a parameter moves in a call in which it is frozen: for good, or for a while."""
    if _is_frozen(run, i, contract):
        return _moved(run, i)
    frozen = [c for c in run.calls if c.trained and not c.trained[i]]
    return any(not np.array_equal(c.before[i], c.after[i], equal_nan=True) for c in frozen)


def _is_left_alone(run: Run, i: int, contract: Contract) -> bool:
    """Whether no optimizer holds a parameter that nobody said must not move: an average, say."""
    return run.loop.parameters[i].owners == 0 and not matches(run.names[i], contract.frozen)


def _is_average(run: Run, i: int) -> bool:
    """Whether no optimizer holds a parameter, and it only goes towards another that is trained.

    As the target of a network does by Polyak's average, or by a copy of it once in a while. One
    that takes no gradient needs no claim to be left alone: there the claim denies just that.
    """
    if not run.loop.parameters[i].trainable:
        return False
    shape = run.calls[0].before[i].shape
    trained = [k for k, p in enumerate(run.loop.parameters) if p.owners and p.trainable]
    moved = [c for c in run.calls if not np.array_equal(c.before[i], c.after[i], equal_nan=True)]
    return run.loop.parameters[i].owners == 0 and any(
        all(_goes_towards(c.before[i], c.after[i], (c.before[k], c.after[k])) for c in moved)
        for k in trained
        if run.calls[0].before[k].shape == shape
    )


def _goes_towards(before: np.ndarray, after: np.ndarray, ends: Sequence[np.ndarray]) -> bool:
    for end in ends:
        share, cosine = clipping.ratio((after - before).ravel(), (end - before).ravel())
        if 0 < share <= 1 + ALIKE and cosine > 1 - ALIKE:
            return True
    return False


def _of_optimizer(name: str) -> Finding:
    return Finding(
        code="step-frozen-moved",
        severity="fail",
        where=name,
        message=f"{name} is frozen and moves; take it out of the optimizer (decay and "
        f"momentum move it without a gradient)",
    )


def _of_step(name: str) -> Finding:
    return Finding(
        code="step-frozen-moved",
        severity="warn",
        where=name,
        message=f"{name} is in no optimizer and moves, as an average of weights does; if it must "
        f"not, claim it with frozen=",
    )


def _still(run: Run, pairs: Sequence[Pair], contract: Contract) -> list[Finding]:
    """Parameters that never moved, by the reason."""
    found: list[Finding] = []
    for i, tracked in enumerate(run.loop.parameters):
        is_ours = not _is_frozen(run, i, contract) and tracked.owners != 0
        if not is_ours or any(t.shadow == i for t in run.loop.parameters):
            continue
        fresh = [p.expected.raw[i] for p in pairs]
        is_without = all(g is None or not np.any(g) for g in fresh)
        if not is_without and _moved(run, i):
            continue
        if is_without:
            found.append(_without(run, pairs, i, all(g is None for g in fresh)))
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
        else:
            found.append(_unmoved(run, i))
    return found


def _is_nothing(run: Run, pair: Pair, i: int) -> bool:
    """Whether a gradient is missing, zero, or no more than the rounding of the others."""
    g = pair.expected.raw[i]
    if g is None:
        return True
    others = [x for x in pair.expected.raw if x is not None]
    rounding = NOISE * precision.epsilon(run.coarsest)
    return clipping.norm([g], 2) <= rounding * clipping.norm(others, 2)


def _rate_is_zero(run: Run, i: int, contract: Contract) -> bool:
    rates = [
        contract.at(run.names[i], u.hyper[i], k).get("lr")
        for k, w in enumerate(run.windows)
        for u in w.updates
        if u.hyper[i]
    ]
    return bool(rates) and all(rate == 0 for rate in rates)


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


def _unused(name: str, what: str) -> Finding:
    return Finding(
        code="step-unused",
        severity="warn",
        where=name,
        message=f"{name} has {what} in all updates, and the loss does not change with it",
    )


def _lost(run: Run, limits: Limits, replays: Mapping[int, Followed]) -> list[Finding]:
    """Updates that are smaller than half a unit in the last place of what they are added to."""
    lost = sum(each.lost for each in replays.values())
    total = sum(each.total for each in replays.values())
    shares = {i: each.lost / each.total for i, each in replays.items() if each.total}
    most = max(shares, key=lambda i: shares[i], default=0)
    where, worst = run.names[most], shares.get(most, 0.0)
    share = lost / total if total else 0.0
    if share <= limits.number("step_lost"):
        return []
    return [
        Finding(
            code="step-lost-updates",
            severity="fail" if share > 0.5 else "warn",
            where=where,
            message=f"{share:.0%} of the updates of single weights are lost: they are smaller "
            f"than half a unit in the last place (worst: {where}, {worst:.0%}); keep master "
            f"weights in float32, or round stochastically",
            numbers=(("share", share), ("worst", worst)),
        )
    ]
