"""Does the gradient reach every layer, neither vanishing nor exploding, dead or non-finite?"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pytest_gradcheck.backends.probes import Probe
from pytest_gradcheck.checks.flow import reached, result
from pytest_gradcheck.checks.flow.cause import ORDERS, Trial, trials
from pytest_gradcheck.checks.flow.centred import centred
from pytest_gradcheck.checks.flow.frozen import require_fitting
from pytest_gradcheck.checks.flow.gates import shut
from pytest_gradcheck.checks.flow.inputs import inputs
from pytest_gradcheck.checks.flow.more import more
from pytest_gradcheck.checks.flow.outputs import attention, outputs
from pytest_gradcheck.checks.flow.parameters import blank, is_feeble, trainable
from pytest_gradcheck.checks.flow.passes import MORE, MOST, Passes, Statistics, statistics
from pytest_gradcheck.checks.flow.question import FlowQuestion, probe
from pytest_gradcheck.checks.flow.small import is_meant, small
from pytest_gradcheck.checks.flow.still import still
from pytest_gradcheck.checks.flow.symptom import Symptom
from pytest_gradcheck.checks.flow.symptoms import symptoms
from pytest_gradcheck.checks.flow.underflow import underflow
from pytest_gradcheck.errors import UsageError
from pytest_gradcheck.limits import Limits
from pytest_gradcheck.results import Context, Result

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

MOST_SEED = 2**63 - MOST  # the last initialisation's is beyond the first
STEPS = 3  # of training that a small start may need
ZERO_STEPS = 5  # that one at zero may need: one for each zero in a row, and some more
WAKING = ("vanishing", "zero")  # what one step of training may cure
LOST = {"nonfinite", "given"}
ILL = {*WAKING, "dead"}  # what is left where it did not


def check(question: FlowQuestion, limits: Limits, context: Context) -> Result:
    """Measure and judge; the caller has resolved limits, seed and place.

    Raises:
        UsageError: The question cannot be asked as it is.
    """
    began = time.perf_counter()
    if question.seeds < 1:
        raise UsageError(f"seeds={question.seeds} is not allowed; allowed: a number of 1 or more")
    if not abs(context.seed) < MOST_SEED:
        raise UsageError(
            f"seed={context.seed} is not allowed; allowed: an integer of up to 63 bits, which "
            f"generators take"
        )
    asked = probe(question)
    with asked.guard():
        made = _judged(question, asked, limits, context.seed)
    made = result.labelled(replace(made, context=context), asked)
    passes = made.context.evaluations
    return replace(
        made,
        context=replace(
            made.context,
            evaluations=passes + asked.count,
            derivatives=asked.count,
            seconds=time.perf_counter() - began,
        ),
    )


def _judged(question: FlowQuestion, asked: Probe, limits: Limits, seed: int) -> Result:
    label = question.label or asked.label
    is_single = not asked.replicates or question.seeds == 1
    passes = Passes(asked, is_single=is_single, seed=seed)
    passes.add(asked.most or question.seeds)
    require_fitting(passes, question.frozen)
    if not _has_gradient(passes):
        told = "the loss does not depend on any parameter of the model that it is called with"
        lost = (Symptom("detached", "", told),)
        return result.result(label, passes, None, lost, (), limits)
    unmoved = still(passes)
    if unmoved:
        return result.result(label, passes, None, unmoved, (), limits)
    found = _found(passes, limits, question)
    most = asked.most or MOST
    while _is_open(found) and not passes.is_single and len(passes.seen) < most:
        passes.add(MORE)
        found = _found(passes, limits, question)
    seen = statistics(passes.finite) if passes.finite else None
    found, tried = _named(passes, seen, found, limits, question)
    kinds = {s.kind for s in found if s.severity == "fail"}
    failing = next((s for s in found if s.severity in ("fail", "warn") and s.kind in ORDERS), None)
    if failing is not None and not failing.is_open and asked.changes and not tried:
        tried = trials(passes, seen, failing, limits, kinds)
    found, tried = shut(passes, seen, found, tried)
    of_offset = failing is not None and failing.kind == "offset"
    found = _accused(found, next((t for t in tried if t.restored), None), of_offset)
    found = (*_lost_as_given(asked, found), *found, *more(passes, seen, found))
    return result.result(label, passes, seen, found, tried, limits)


def _named(
    passes: Passes,
    seen: Statistics | None,
    found: tuple[Symptom, ...],
    limits: Limits,
    question: FlowQuestion,
) -> tuple[tuple[Symptom, ...], tuple[Trial, ...]]:
    """The symptoms by what they come from, where a change tells it; and that change."""
    frozen = tuple(question.frozen)
    found = small(passes, centred(passes, found, limits, frozen), limits, frozen)
    found, tried = underflow(passes, found, limits, frozen)
    found = reached.settled(passes, _woken(passes, found, limits, question), frozen)
    if seen is not None and not tried:
        found, tried = _beside(passes, seen, found, limits)
    return tuple(_of_zeros(s, passes, frozen) for s in found), tried


def _is_open(found: tuple[Symptom, ...]) -> bool:
    """Whether more initialisations might change the verdict."""
    is_decided = any(s.severity == "fail" and not s.is_open for s in found)
    return not is_decided and any(s.is_open for s in found)


def _has_gradient(passes: Passes) -> bool:
    """Whether any parameter, or any layer of a record without them, has a gradient."""
    for one in passes.seen:
        if one.parameters and any(not math.isnan(p.gradient) for p in one.parameters):
            return True
        if not one.parameters and any(not math.isnan(y.gradient) for y in one.layers):
            return True
        if one.parameters and not trainable(one.parameters):
            return True  # everything is frozen: a finding of its own
    return False


def _found(passes: Passes, limits: Limits, question: FlowQuestion) -> tuple[Symptom, ...]:
    lost = _nonfinite(passes)
    if not passes.finite:
        return lost
    seen: Statistics = statistics(passes.finite)
    return (*lost, *symptoms(passes, seen, limits, tuple(question.frozen)))


def _nonfinite(passes: Passes) -> tuple[Symptom, ...]:
    """The first birth in an initialisation whose loss or gradient is not finite."""
    bad = [number for number, one in enumerate(passes.seen) if not one.is_finite]
    if not bad:
        return ()
    count = len(passes.seen)
    share = "" if count == 1 else f", in {len(bad)} of {count} initialisations"
    return (_origin(passes.probe, passes.lost, share),)


def _lost_as_given(asked: Probe, found: tuple[Symptom, ...]) -> tuple[Symptom, ...]:
    """A given model whose loss or gradient is not finite, where others are judged in its place."""
    own = asked.own()
    if own is None or any(s.kind in LOST for s in found) or asked.bare(own).is_finite:
        return ()
    return (_origin(asked, own, ", in the model as it is given"),)


def _origin(asked: Probe, state: Any, share: str) -> Symptom:
    origin = asked.origin(state)
    if origin is None:
        return Symptom("nonfinite", "", f"loss or gradient is not finite{share}")
    return result.of_origin(replace(origin, reaches=_reach(origin.reaches)), share)


def _reach(reaches: str) -> str:
    return "gradient" if reaches == "nothing" else reaches


def _woken(
    passes: Passes, found: tuple[Symptom, ...], limits: Limits, question: FlowQuestion
) -> tuple[Symptom, ...]:
    """The symptoms, those of a model that a few small steps set going as notes.

    A last layer, or a branch, that starts at zero lets no gradient through until its first update,
    and several in a row until as many (Zhang, Dauphin and Ma 2019, arXiv 1901.09321); that is a
    choice, and no fault.
    """
    if not any(_may_wake(s, passes) for s in found):
        return found
    states, woken = list(passes.states), dict[str, int]()
    most = ZERO_STEPS if any(s.kind == "zero" for s in found) else STEPS
    for steps in range(1, most + 1):
        states = [passes.probe.stepped(state) for state in states]
        stepped = Passes(passes.probe, is_single=passes.is_single)
        stepped.seen += [passes.probe.measure(state) for state in states]
        if len(stepped.finite) < len(states):
            break
        after = symptoms(stepped, statistics(stepped.finite), limits, tuple(question.frozen))
        cured = _cured(after, _moves(passes, stepped))
        woken = {kind: woken.get(kind, steps) for kind in cured}
        if cured >= {s.kind for s in found if _may_wake(s, passes)}:
            break
    if "zero" in woken and reached.is_rounding(passes, states[0], tuple(question.frozen)):
        woken.clear()
    # Beside a start that wakes, a first step that is small says nothing about the learning rate.
    kept = [s for s in found if not (woken and is_feeble(s))]
    return tuple(_asleep(s, woken[s.kind]) if s.kind in woken else s for s in kept)


def _cured(after: Sequence[Symptom], moves: bool) -> set[str]:
    """What steps have cured, going by what they leave.

    An open question whether the gradient fades is another one than whether it is zero.
    """
    failing = [s for s in after if s.severity == "fail"]
    if any(s.kind in ILL and not s.is_open for s in failing):
        return set()
    is_open = {s.kind for s in failing}
    return {"zero"} - is_open | ({"vanishing"} if moves or not is_open & set(WAKING) else set())


def _may_wake(symptom: Symptom, passes: Passes) -> bool:
    """Whether zeros, or a gradient that is lost at the last layer alone, may be a choice."""
    if symptom.severity != "fail" or symptom.kind not in WAKING:
        return False
    if symptom.kind == "zero":
        return True
    return is_meant(passes, statistics(passes.finite), symptom.where)


def _moves(passes: Passes, stepped: Passes) -> bool:
    """Whether a step brings the gradient at least halfway, in decades, to the last layer's."""
    before, after = statistics(passes.finite), statistics(stepped.finite)
    old = [max(a, -12.0) for a in before.attenuations]
    new = [max(a, -12.0) for a in after.attenuations]
    return bool(new) and sum(new) / len(new) > 0.5 * sum(old) / len(old)


def _beside(
    passes: Passes, seen: Statistics, found: tuple[Symptom, ...], limits: Limits
) -> tuple[tuple[Symptom, ...], tuple[Trial, ...]]:
    """The symptoms of output stage, attention and inputs, where nothing but zeros is wrong yet."""
    failing = [s for s in found if s.severity == "fail"]
    if any(s.kind != "zero" for s in failing):
        return found, ()
    told, cure = outputs(passes, seen, limits)
    if told:
        return (*told, *(s for s in found if s not in failing)), cure
    if failing:
        return found, ()
    told = attention(passes)
    told, cure = (told, ()) if told else inputs(passes)
    return (*told, *found), cure


def _of_zeros(symptom: Symptom, passes: Passes, frozen: Sequence[str]) -> Symptom:
    """Dead units, or a gradient of zero, by weights of zero that no step sets going."""
    if symptom.kind not in ("dead", "zero") or symptom.severity != "fail":
        return symptom
    names = blank(passes, frozen)
    if len(names) < 2:
        return symptom
    told = (
        f"the weights {names[0]} and {len(names) - 1} more are zero: their units are all the same, "
        f"and next to no gradient gets through"
    )
    return replace(symptom, kind="symmetric", where=names[0], message=told, is_open=False)


def _asleep(symptom: Symptom, steps: int) -> Symptom:
    numbers = ("one small step", "two", "three", "four", "five")
    count = numbers[0] if steps == 1 else f"{numbers[steps - 1]} small steps"
    told = f"{symptom.message}; {count} of training {'lets' if steps == 1 else 'let'} it through"
    return replace(symptom, kind="asleep", message=told, severity="note", is_open=False)


def _accused(
    found: tuple[Symptom, ...], cause: Trial | None, of_offset: bool
) -> tuple[Symptom, ...]:
    """What the cause says about the symptoms.

    A first loss that is too large is a failure where a change of the model cures it, and a layer
    that is the cause is the place.
    """
    if cause is None:
        return found
    cured = {"first-loss", "offset"} if of_offset else {"first-loss"}
    told = [replace(s, severity="fail") if s.kind in cured else s for s in found]
    first = next((n for n, s in enumerate(told) if s.severity == "fail"), None)
    if first is not None and cause.where:
        one = told[first]
        message = one.message.replace(f" at {one.where}:", f" at {cause.where}:", 1)
        told[first] = replace(one, where=cause.where, message=message)
    return tuple(told)
