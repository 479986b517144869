"""The verb: run a training, compare what was seen with what should have been, judge."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pytest_gradcheck.backends.handed import built
from pytest_gradcheck.backends.loading import framework, generators_held
from pytest_gradcheck.backends.steps import Loop, Training
from pytest_gradcheck.checks.steps import (
    adopting,
    claims,
    drawing,
    received,
    replaying,
    rereading,
    retaking,
    several,
    spared,
)
from pytest_gradcheck.checks.steps.contract import Contract, require_matched
from pytest_gradcheck.checks.steps.judged import judged
from pytest_gradcheck.checks.steps.measure import Run, batches_of, run
from pytest_gradcheck.checks.steps.several import Part
from pytest_gradcheck.checks.steps.spared import Usual
from pytest_gradcheck.checks.steps.verdict import UNNAMED, ordered, result
from pytest_gradcheck.limits import Limits
from pytest_gradcheck.numerics import precision
from pytest_gradcheck.results import Context, Evidence, Finding, Result

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these


Told = tuple[Run, tuple[list[Finding], tuple[Evidence, ...]]]
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

    Global generators are left as they were, also by what builds the training and seeds them.

    Raises:
        UsageError: A part of the training is missing or of no use.
    """
    with generators_held():
        return _checked(question, limits, context)


def _checked(question: Question, limits: Limits, context: Context) -> Result:
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
    calls = spares = 0
    for part, loop in zip(parts, loops, strict=True):
        seen, told = _run(part, loop, contract, limits, batches)
        calls += len(seen.calls)
        spares += sum(w.is_spared for w in seen.windows)
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
            derivatives=calls - spares,
            seconds=time.perf_counter() - began,
        ),
    )


def _run(part: Part, loop: Loop, contract: Contract, limits: Limits, batches: list[Any]) -> Told:
    """Run the step, and judge it by one of its losses.

    The batches are drawn once, at first: a loader may give others the next time, or none.
    """
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        usual = spared.usual(loop, contract, limits)
        with loop.held():
            batches += [] if batches else batches_of(part.training.batches)
            told, end = _ended(loop, contract, limits, batches, usual)
        is_doubted = usual is not None and usual.is_open
        if is_doubted or (_is_accused(told) and _is_quick(loop, usual)):
            with loop.held():  # once more, with all gradients, and none of them in a hurry
                told, end = _ended(loop, contract, limits, batches, None)
        found = rereading.reread(loop, batches, contract, limits, told)
        found = rereading.by_batch(loop, batches, contract, limits, found)
        found = _looked_inside(loop, contract, limits, batches, found)
        return _drawn(loop, contract, limits, batches, end, found)


def _ended(
    loop: Loop, contract: Contract, limits: Limits, batches: Sequence[Any], usual: Usual | None
) -> tuple[Told, Any]:
    """What was seen of a run and said of it, and the state of the generators after it."""
    seen = run(loop, batches, contract, int(limits.number("step_calls")), usual)
    return (seen, judged(seen, contract, limits)), loop.mark()


def _is_quick(loop: Loop, usual: Usual | None) -> bool:
    """Whether a run was quicker than it could be: nobody is accused by that."""
    was_hurried = loop.careful()
    return was_hurried or (usual is not None and usual.has_spared)


def _is_accused(told: Told) -> bool:
    return any(f.severity == "fail" for f in told[1][0])


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
    seen, told = rereading.once_more(loop, batches, contract, limits)
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


__all__ = ["Loop", "Question", "check"]
