"""What was seen of a training, judged: the findings of every part, and what is worth a plot."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from pytest_gradcheck.checks.steps import (
    claims,
    counted,
    coverage,
    entering,
    examples,
    following,
    handmade,
    headings,
    inferred,
    ladder,
    left,
    lessened,
    order,
    perturbing,
    received,
    replaying,
    sharpness,
    spared,
    states,
    updates,
    weak,
    withheld,
)
from pytest_gradcheck.checks.steps.contract import Contract
from pytest_gradcheck.checks.steps.expected import flat
from pytest_gradcheck.checks.steps.measure import Run
from pytest_gradcheck.checks.steps.received import Pair
from pytest_gradcheck.checks.steps.verdict import UNDECIDED, UNNAMED
from pytest_gradcheck.limits import Limits
from pytest_gradcheck.results import Evidence, Finding

# Other readings of a gradient that is wrong, by what is said of it.
ADOPTED = {
    "step-wrong-gradient": (examples.adopted, handmade.adopted, perturbing.adopted),
    **dict.fromkeys(
        ("step-gradient-scale", "step-clip-varied"), (handmade.adopted, perturbing.adopted)
    ),
    "step-gradient-dropped": (lessened.adopted,),
}


def judged(
    seen: Run, contract: Contract, limits: Limits
) -> tuple[list[Finding], tuple[Evidence, ...]]:
    """Findings and evidence on a run."""
    failed = next((c for c in seen.calls if c.error), None)
    if failed is not None:
        number = seen.calls.index(failed) + 1
        told = f"the step raised at call {number}: {failed.error}"
        finding = Finding(code="step-raised", severity="fail", message=told)
        return [finding, *order.findings(seen, contract)], ()
    broken = order.unfinite(seen)
    if broken:
        return broken, ()
    if not seen.windows:
        found = coverage.findings(seen, (), contract, limits, {})
        return [_no_step(seen), *found], ()
    withheld.freeze(seen)
    pairs = [received.pair(seen, w, contract, limits) for w in seen.windows]
    nothing = weak.vacuous(seen, pairs, contract)
    if nothing is not None:
        found = coverage.findings(seen, pairs, contract, limits, {})
        known = {nothing.code}
        if weak.is_cut(seen):  # of a loss without a graph nobody has seen what it changes with
            known |= {"step-detached", "step-unused"}
        return [nothing, *(f for f in found if f.code not in known)], ()
    return _all(seen, pairs, contract, limits)


def _no_step(seen: Run) -> Finding:
    return Finding(
        code="step-no-update",
        severity="fail",
        message=f"{len(seen.calls)} calls of the step made no update with {seen.loop.shown}; call "
        f"its step(), and hand over the one that the step uses",
    )


def _all(
    seen: Run, pairs: Sequence[Pair], contract: Contract, limits: Limits
) -> tuple[list[Finding], tuple[Evidence, ...]]:
    by_hand = handmade.adopted(seen, pairs, contract, limits)
    pairs = by_hand[0] if by_hand else pairs
    is_random = any(p.wrong for p in pairs) and _is_random(seen, pairs[0])
    pairs, wrong, each = _told(seen, pairs, contract, limits, is_random)
    replay = replaying.judged(seen, pairs, contract, limits)
    if any(f.severity == "fail" for f in replay.findings):
        read = inferred.pairs(seen, pairs, contract, limits)
        if read is not None and any(p.wrong for p in read):
            read, told, each = _told(seen, read, contract, limits, False)
            is_rate = replay.findings[0].code in ("step-rate", "step-decay")
            # A factor on the gradient and one on the learning rate look the same in an update.
            is_either = is_rate and [f.code for f in told] == ["step-gradient-scale"]
            # A state that is lost is read for a gradient that nobody knows.
            is_named = not replay.findings[0].message.startswith(replaying.UNEXPLAINED)
            if not is_either and not (is_named and any(f.code in UNNAMED for f in told)):
                pairs, wrong = read, told
                replay = replaying.judged(seen, pairs, contract, limits)
    found = [*wrong, *counted.findings(seen, pairs, contract), *order.findings(seen, contract)]
    covered = coverage.findings(seen, pairs, contract, limits, replay.replays)
    if any(f.code == "step-not-replayed" for f in replay.findings) and not wrong:
        found += headings.findings(seen, pairs, contract)
    found += [] if wrong or by_hand or each else entering.findings(seen, pairs, contract)
    found += [*replay.findings, *covered, *states.findings(seen, contract, bool(replay.replays))]
    is_comparable = not any(f.code == "step-random" for f in wrong)
    climbed = ladder.measured(seen, pairs[0], contract) if is_comparable else None
    evidence = [updates.table(seen, pairs)]
    if climbed is not None:
        is_fresh = not any(start for start, _ in seen.loop.starts)
        trusted = not wrong and bool(replay.replays) and not replay.findings
        trusted |= not is_fresh  # momentum from before may go uphill
        trusted |= not any(seen.loop.rules) and ladder.turns(seen, pairs, contract)
        followed = following.findings(seen, pairs[0], contract, limits)
        if all(f.code == "weak-claim" for f in followed):
            followed = _hooked(seen, pairs, contract, limits) or followed
        meant = [g for g in pairs[0].expected.clipped if g is not None]
        doubt = math.hypot(*pairs[0].expected.doubts)
        is_kinked = doubt > ladder.STEEP * seen.sizes.whole(meant)
        if not is_kinked and not any(f.severity == "fail" for f in followed):
            followed += ladder.findings(pairs[0], climbed, contract, trusted)
        found += followed
        evidence.append(ladder.evidence(climbed))
    found += [*([by_hand[1]] if by_hand else []), *each]
    if all(f.code in UNDECIDED for f in found if f.severity == "fail"):
        found += claims.findings(seen, pairs, contract)
    if not any(f.severity == "fail" for f in found):
        found += [*spared.findings(seen), *weak.findings(seen, pairs, contract)]
        found += [*weak.skipped(seen, pairs), *left.findings(seen, pairs)]
        points = sharpness.measured(seen, contract)
        if points:
            found.append(sharpness.finding(points))
            evidence.append(sharpness.evidence(points))
    return found, tuple(evidence)


def _hooked(seen: Run, pairs: Sequence[Pair], contract: Contract, limits: Limits) -> list[Finding]:
    """The slope once more, where the step itself has put hooks on gradients, or taken them off."""
    calls = {k for k, call in enumerate(seen.calls, start=1) if call.is_hooked}
    ranges = ((p, range(p.window.first, p.window.first + len(p.window.batches))) for p in pairs[1:])
    pair = next((p for p, numbers in ranges if calls & {*numbers}), None)
    if pair is None:
        return []
    when = f"at update {pair.window.number}, where hooks on gradients are others, "
    found = following.findings(seen, pair, contract, limits)
    return [f if f.code == "weak-claim" else replace(f, message=when + f.message) for f in found]


def _told(
    seen: Run, pairs: Sequence[Pair], contract: Contract, limits: Limits, is_random: bool
) -> tuple[Sequence[Pair], list[Finding], list[Finding]]:
    """What is wrong with gradients; the windows and a finding, where examples are clipped."""
    wrong = received.findings(seen, pairs, contract, limits, is_random)
    ways = ADOPTED.get(wrong[0].code, ()) if wrong else ()
    tried = (adopt(seen, pairs, contract, limits) for adopt in ways)
    found = next(filter(None, tried), None)
    return (pairs, wrong, []) if found is None else (found[0], [], [found[1]])


def _is_random(seen: Run, pair: Pair) -> bool:
    """Whether the loss draws random numbers: from other states it has another gradient."""
    if getattr(seen.loop, "looks_inside", False) and not seen.loop.is_strayed:  # type: ignore[attr-defined]  # of torch
        return False  # the step was seen to draw what the loss draws
    batch, mark = pair.window.batches[0], pair.window.marks[0]
    elsewhere = getattr(seen.loop, "elsewhere", lambda _: seen.loop.mark())
    grads = [
        flat(seen.loop.gradient(batch, pair.window.at, m)[1], pair.window.at)
        for m in (mark, elsewhere(mark))
    ]
    size = float(np.linalg.norm(grads[0]))
    return bool(np.linalg.norm(grads[0] - grads[1]) > 1e-6 * size)
