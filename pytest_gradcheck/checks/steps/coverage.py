"""Which parameters are trained: registered once, given a gradient, moved; or frozen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from pytest_gradcheck.checks.steps import still, withheld
from pytest_gradcheck.checks.steps.contract import Contract, matches
from pytest_gradcheck.checks.steps.measure import Run
from pytest_gradcheck.checks.steps.received import Pair
from pytest_gradcheck.errors import listed
from pytest_gradcheck.limits import Limits
from pytest_gradcheck.numerics import clipping
from pytest_gradcheck.numerics.replay import Followed
from pytest_gradcheck.results import Finding, Severity

ALIKE = 1e-4  # of a cosine from 1, and of a share


def findings(
    run: Run,
    pairs: Sequence[Pair],
    contract: Contract,
    limits: Limits,
    replays: Mapping[int, Followed],
) -> list[Finding]:
    """What is wrong with who is trained."""
    found = [*_registered(run, pairs, contract), *_replaced(run), *_added(run)]
    found += _frozen(run, contract)
    if run.windows:
        found += [*still.findings(run, pairs, contract), *withheld.findings(run, contract)]
        found += _lost(run, limits, replays)
    return found


def _registered(run: Run, pairs: Sequence[Pair], contract: Contract) -> list[Finding]:
    found, left = [], []
    for i, tracked in enumerate(run.loop.parameters):
        if tracked.owners is None or still.is_frozen(run, i, contract):
            continue
        if tracked.owners == 0 and pairs and all(p.expected.raw[i] is None for p in pairs):
            left.append(_of_no_use(tracked.name))
        elif tracked.owners == 0:
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
    own = sum(not tracked.is_beside for tracked in run.loop.parameters)
    is_another = 0 < own == len(left) and not _depends(run, pairs[0])
    return _one(found) + ([_of_another_model()] if is_another else _one(left))


def _depends(run: Run, pair: Pair) -> bool:
    """Whether the loss changes with the parameters of the model, which may have no gradient."""
    window, tracked = pair.window, run.loop.parameters
    moved = [x if t.is_beside else 1.5 * x + 0.1 for x, t in zip(window.at, tracked, strict=True)]
    batch, mark = window.batches[0], window.marks[0]
    try:
        return run.loop.value(batch, window.at, mark) != run.loop.value(batch, moved, mark)
    except Exception:  # of a loss that is not made for such parameters
        return True


def _of_another_model() -> Finding:
    return Finding(
        code="step-not-registered",
        severity="fail",
        message="no optimizer holds a parameter of Training.model, and the loss does not depend on "
        "any: the step trains another model; hand that one over, and make it, the loss and the "
        "step in one place (a factory)",
    )


def _of_no_use(name: str) -> Finding:
    return Finding(
        code="step-not-registered",
        severity="warn",
        where=name,
        message=f"{name} is trainable, no optimizer holds it, and the loss has no gradient for it, "
        f"as with the target of a network; freeze it, or claim it with frozen=",
    )


def _replaced(run: Run) -> list[Finding]:
    """Parameters of the model that are other objects than those that the optimizer holds."""
    told = (
        "which no optimizer holds; write the values into the old one, or give the new one to the "
        "optimizer"
    )
    return _another(run, [call.replaced for call in run.calls], "fail", f", {told}")


def _added(run: Run) -> list[Finding]:
    """Parameters that are made on the way, and that an optimizer holds."""
    told = (
        "the optimizer holds it, and nothing of it is checked; hand over a training that begins "
        "with it"
    )
    return _another(run, [call.added for call in run.calls], "warn", f": {told}")


def _another(
    run: Run, names: Sequence[Sequence[str]], severity: Severity, told: str
) -> list[Finding]:
    """The first call after which some names have other tensors."""
    number = next((k for k, those in enumerate(names, start=1) if those), 0)
    return _one(
        [
            Finding(
                code="step-replaced",
                severity=severity,
                where=name,
                message=f"{name} is another tensor after call {number} of the step{told}",
            )
            for name in (names[number - 1] if number else ())
        ]
    )


def _one(found: list[Finding]) -> list[Finding]:
    """The first of several findings alike, which names the others."""
    if len(found) < 2:
        return found
    first = found[0]
    head, _, advice = first.message.partition("; ")
    names = [f.where for f in found[1:]]
    others = listed([*names[:3], f"{len(names) - 3} more"] if len(names) > 4 else names)
    message = f"{head} (so {'is' if len(found) == 2 else 'are'} {others}); {advice}"
    return [replace(first, message=message)]


def _frozen(run: Run, contract: Contract) -> list[Finding]:
    moved = [i for i in range(len(run.names)) if _moves_frozen(run, i, contract)]
    by_hand = [i for i in moved if not _is_optimized(run, i)]
    claimed = [i for i in by_hand if matches(run.names[i], contract.frozen)]
    denied = [i for i in claimed if not _is_average(run, i)]
    return [
        *_one([_of_optimizer(run.names[i]) for i in moved if i not in by_hand]),
        *_one([_denied(run, i) for i in denied]),
        *_one([_of_step(run.names[i]) for i in by_hand if i not in denied]),
    ]


def _moves_frozen(run: Run, i: int, contract: Contract) -> bool:
    """Whether a parameter moves in a call in which it is frozen: for good, or for a while."""
    if still.is_frozen(run, i, contract):
        return still.moved(run, i)
    frozen = [c for c in run.calls if c.trained and not c.trained[i]]
    return any(not np.array_equal(c.before[i], c.after[i], equal_nan=True) for c in frozen)


def _is_optimized(run: Run, i: int) -> bool:
    """Whether an optimizer moves a parameter, or what moves it was not seen.

    One that holds it and leaves it alone, since it has no gradient, does not: an average moves.
    """
    tracked = run.loop.parameters[i]
    if tracked.owners != 0 and not any(c.updates for c in run.calls):
        return True
    pairs = [(u.before[i], u.after[i]) for c in run.calls for u in c.updates]
    is_held = tracked.owners is None or tracked.owners > 0
    return is_held and any(not np.array_equal(a, b, equal_nan=True) for a, b in pairs)


def _is_average(run: Run, i: int) -> bool:
    """Whether a parameter that no optimizer moves only goes towards another that is trained.

    As the target of a network does by Polyak's average, or by a copy of it once in a while. One
    that takes no gradient needs no claim to be left alone: there the claim denies just that.
    """
    if not run.loop.parameters[i].trainable:
        return False
    shape = run.calls[0].before[i].shape
    trained = [k for k, p in enumerate(run.loop.parameters) if p.owners and p.trainable]
    moved = [c for c in run.calls if not np.array_equal(c.before[i], c.after[i], equal_nan=True)]
    return any(
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


def _denied(run: Run, i: int) -> Finding:
    """What is claimed not to move is moved by the step itself: as an average of weights, maybe."""
    name = run.names[i]
    advice = "look at what writes into it; leave it out of frozen= if it is an average of weights"
    if not run.loop.parameters[i].trainable:
        advice += ", since what takes no gradient needs no claim to be left alone"
    return Finding(
        code="step-frozen-moved",
        severity="fail",
        where=name,
        message=f"{name} is claimed as frozen, and moves outside of every optimizer; {advice}",
    )


def _of_step(name: str) -> Finding:
    return Finding(
        code="step-frozen-moved",
        severity="warn",
        where=name,
        message=f"{name} takes no gradient, and moves outside of every optimizer, as an average "
        f"of weights does; if it must not, claim it with frozen=",
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
