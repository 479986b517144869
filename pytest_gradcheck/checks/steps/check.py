"""The verb: run a training, compare what was seen with what should have been, judge."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pytest_gradcheck.backends.handed import built
from pytest_gradcheck.backends.loading import framework
from pytest_gradcheck.backends.steps import Loop, Training
from pytest_gradcheck.checks.steps import (
    adopting,
    claims,
    counted,
    coverage,
    drawing,
    examples,
    following,
    handmade,
    inferred,
    ladder,
    left,
    lessened,
    order,
    received,
    replaying,
    rereading,
    retaking,
    several,
    sharpness,
    states,
    updates,
    weak,
    withheld,
)
from pytest_gradcheck.checks.steps.contract import Contract, require_matched
from pytest_gradcheck.checks.steps.expected import flat
from pytest_gradcheck.checks.steps.measure import Run, batches_of, renew, run
from pytest_gradcheck.checks.steps.received import Pair
from pytest_gradcheck.checks.steps.several import Part
from pytest_gradcheck.checks.steps.verdict import UNDECIDED, ordered, result
from pytest_gradcheck.limits import Limits
from pytest_gradcheck.numerics import precision
from pytest_gradcheck.results import Context, Evidence, Finding, Result

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these


Told = tuple[Run, tuple[list[Finding], tuple[Evidence, ...]]]
UNNAMED = ("step-wrong-gradient", "step-random", "step-not-compared")
ADOPTED = {
    "step-wrong-gradient": (examples.adopted, handmade.adopted),
    **dict.fromkeys(("step-gradient-scale", "step-clip-varied"), (handmade.adopted,)),
    "step-gradient-dropped": (lessened.adopted,),
}
ROUGH = ("step-gradient-sum", "step-gradient-scale")  # by about a factor, which may be exact inside


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A call of the verb: the training, and what it claims."""

    training: Training | Callable[[], Training]
    contract: Contract
    backend: str | None = None
    label: str | None = None


def check(question: Question, limits: Limits, context: Context) -> Result:
    """Measure and judge; the caller has resolved limits, seed and place.

    Raises:
        UsageError: A part of the training is missing or of no use.
    """
    began = time.perf_counter()
    training = built(question.training)
    contract = question.contract
    if contract.weights == "samples" and training.weights is not None:
        contract = replace(contract, weights=training.weights)
    name = question.backend or framework(training)
    parts = several.parts(training, name)
    batches: list[Any] = []
    loops = [adopting.loaded(part, name, batches) for part in parts]
    label = question.label or _label(training)
    require_matched(contract, [p.name for loop in loops for p in loop.parameters])
    claims.require_used(contract, loops)
    claims.freeze(contract, loops)
    findings: list[Finding] = []
    evidence: list[Evidence] = []
    calls = 0
    for part, loop in zip(parts, loops, strict=True):
        seen, told = _run(part, loop, contract, limits, batches)
        calls += len(seen.calls)
        for kept, more in zip((findings, evidence), several.labelled(part, *told), strict=True):
            kept += more  # type: ignore[operator]  # findings to findings, evidence to evidence
    dtype = precision.coarsest([p.dtype for loop in loops for p in loop.parameters])
    return result(
        label,
        findings,
        tuple(evidence),
        limits.used(dtype),
        replace(
            context,
            backend=name,
            device=loops[0].device,
            dtype=dtype,
            precision="float64",
            evaluations=calls,
            derivatives=calls,
            seconds=time.perf_counter() - began,
        ),
    )


def _run(part: Part, loop: Loop, contract: Contract, limits: Limits, batches: list[Any]) -> Told:
    """Run the step, and judge it by one of its losses.

    The batches are drawn once, at first: a loader may give others the next time, or none.
    """
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        with loop.held():
            least = int(limits.number("step_calls"))
            batches += [] if batches else batches_of(part.training.batches)
            seen = run(loop, batches, contract, least)
            told = _judged(seen, contract, limits)
            if any(f.severity == "fail" for f in told[0]) and loop.careful():
                renew(seen)  # nobody is accused by a gradient that was taken in a hurry
                told = _judged(seen, contract, limits)
            end = loop.mark()
        found = rereading.reread(loop, batches, contract, limits, (seen, told), _judged)
        found = _looked_inside(loop, contract, limits, batches, found)
        return _drawn(loop, contract, limits, batches, end, found)


def _drawn(
    loop: Loop, contract: Contract, limits: Limits, batches: Sequence[Any], end: Any, told: Told
) -> Told:
    """Nobody is accused of random numbers: what is wrong and has no name may be drawn."""
    seen, (findings, evidence) = told
    wrong = [f for f in ordered(findings) if f.severity == "fail"]
    unknown = [f for f in wrong if f.message.startswith(replaying.UNEXPLAINED)]
    is_open = bool(wrong) and wrong[0].code in (*UNNAMED, "step-gradient-scale")
    is_open |= wrong[:1] == unknown[:1] != []
    if not is_open or not drawing.is_drawn(loop, seen, end, contract, limits, batches):
        return told
    kept = [f for f in findings if f.severity != "fail" or f.code not in received.CODES]
    kept = [f for f in kept if f not in unknown and f.code not in drawing.LUCK]
    error = next((n for f in wrong for name, n in f.numbers if name == "error"), 0.0)
    return seen, ([*kept, drawing.finding(float(error))], evidence)


def _looked_inside(
    loop: Loop, contract: Contract, limits: Limits, batches: Sequence[Any], first: Told
) -> Told:
    """Nobody is accused by a gradient of another moment: a step may move what its loss depends on.

    So the training runs once more, its fresh gradients taken inside of the step, right after each
    backward pass. That counts if they are right then, or if what is wrong has a name at last.
    """
    codes = [f.code for f in ordered(first[1][0]) if f.severity == "fail"]
    if not hasattr(loop, "looks_inside") or not received.CODES & {*codes}:
        return first
    loop.looks_inside = True
    with loop.held():
        seen = run(loop, batches, contract, int(limits.number("step_calls")))
        told = _judged(seen, contract, limits)
    again = [f.code for f in ordered(told[0]) if f.severity == "fail"]
    is_right = not received.CODES & {*again}
    if is_right and getattr(loop, "is_shifted", False):
        # What a step does at other parameters has no name but this one, or it is a mistake.
        return (seen, ([*told[0], retaking.perturbed()], told[1])) if codes[0] in UNNAMED else first
    # Beside other losses a gradient from before the call is of another moment, and a rough guide.
    is_beside = getattr(loop, "is_beside", False)
    is_same = is_beside and again[:1] == codes[:1]
    unsure = (*UNNAMED, *ROUGH) if is_beside else UNNAMED
    is_named = codes[0] in unsure and again and again[0] not in UNNAMED
    is_decided = codes[0] == "step-random" and again[:1] == ["step-wrong-gradient"]
    return (seen, told) if is_right or is_same or is_named or is_decided else first


def _label(training: Training) -> str:
    step = getattr(training.step, "__wrapped__", training.step)
    name = str(getattr(step, "__qualname__", type(step).__name__))
    return name.rpartition("<locals>.")[2] or name


def _judged(
    seen: Run, contract: Contract, limits: Limits
) -> tuple[list[Finding], tuple[Evidence, ...]]:
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
        known = {nothing.code, "step-detached"} if weak.is_cut(seen) else {nothing.code}
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
        if not any(f.severity == "fail" for f in followed):
            followed += ladder.findings(pairs[0], climbed, contract, trusted)
        found += followed
        evidence.append(ladder.evidence(climbed))
    found += [*([by_hand[1]] if by_hand else []), *each]
    if all(f.code in UNDECIDED for f in found if f.severity == "fail"):
        found += claims.findings(seen, pairs, contract)
    if not any(f.severity == "fail" for f in found):
        found += weak.findings(seen, pairs, contract)
        found += [*weak.skipped(seen, pairs), *left.findings(seen, pairs)]
        points = sharpness.measured(seen, contract)
        if points:
            found.append(sharpness.finding(points))
            evidence.append(sharpness.evidence(points))
    return found, tuple(evidence)


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
    grads = [
        flat(seen.loop.gradient(batch, pair.window.at, m)[1], pair.window.at)
        for m in (mark, seen.loop.mark())
    ]
    size = float(np.linalg.norm(grads[0]))
    return bool(np.linalg.norm(grads[0] - grads[1]) > 1e-6 * size)


__all__ = ["Loop", "Question", "check"]
