"""From what was measured to a verdict on a derivative, in the words of its user."""

from __future__ import annotations

from dataclasses import replace

from pytest_gradcheck.checks import accuse, power
from pytest_gradcheck.checks.advice import advised
from pytest_gradcheck.checks.amended import outside, short
from pytest_gradcheck.checks.compare import strongest
from pytest_gradcheck.checks.form import WrongDerivative
from pytest_gradcheck.checks.look import Look
from pytest_gradcheck.checks.measured import Measured
from pytest_gradcheck.checks.problem import Problem
from pytest_gradcheck.limits import Limits
from pytest_gradcheck.results import Context, Evidence, Finding, Result, Verdict

DIFFERENT_VALUES = "two equal calls of the function give different values"
NO_STATE = "make it a function of its inputs: no counter, no generator of its own"


def of(seen: Measured, limits: Limits) -> Result:
    """The verdict on what was measured."""
    if seen.culprits:
        return _wrong(seen, limits)
    is_rough = seen.is_rough and seen.plan.native.is_repeatable  # else nothing shows a kink
    if is_rough and limits.use("at_kink").value == "fail":
        return _forbidden(seen, limits)
    if seen.beside is not None:
        return _beside(seen, seen.beside, limits)
    if seen.suspect is not None:
        return _unconfirmed(seen, limits)
    if any(not item.arithmetic for item in seen.lossy):
        return _low_precision(seen, limits)
    return _uncontradicted(seen, limits)


def of_form(problem: Problem, error: WrongDerivative, limits: Limits) -> Result:
    """The verdict on a derivative that is wrong by its form."""
    verdict: Verdict = "undecided" if error.code == "domain-edge" else "fail"
    words = "undecided on" if verdict == "undecided" else "wrong gradient of"
    what, _, advice = error.message.partition("; ")
    finding = Finding(code=error.code, severity="fail", where=error.where, message=what)
    return Result(
        check="gradient",
        label=problem.label,
        verdict=verdict,
        headline=short(f"{words} {problem.label}: {what}"),
        findings=(finding,),
        limits=limits.used(problem.dtype),
        advice=(advice,) if advice else (),
        context=Context(precision=problem.dtype),
    )


def _result(
    seen: Measured,
    limits: Limits,
    verdict: Verdict,
    headline: str,
    findings: tuple[Finding, ...],
    advice: tuple[str, ...] = (),
    evidence: tuple[Evidence, ...] = (),
) -> Result:
    plan = seen.plan
    return Result(
        check="gradient",
        label=plan.probe.problem.label,
        verdict=verdict,
        headline=short(headline),
        findings=findings + power.circumstances(seen),
        evidence=evidence,
        limits=limits.used(
            plan.probe.precision, tolerance=plan.claimed_in, rounding=plan.asis.dtype
        ),
        context=Context(precision=plan.reason),
        advice=advice,
    )


def _wrong(seen: Measured, limits: Limits) -> Result:
    findings = tuple(accuse.accusation(seen, culprit) for culprit in seen.culprits)
    first = findings[0]
    others = f" (and {len(findings) - 1} more)" if len(findings) > 1 else ""
    advice = advised(seen)
    findings += accuse.hooks(seen)
    if seen.is_right_beside:
        findings += (
            Finding(
                code="right-beside",
                severity="note",
                message="a little beside the given point the gradient is right",
            ),
        )
        advice = (
            "look for a test for equality, or for kinks that cancel at this very point "
            "(relu(x) - relu(-x) at 0)",
        )
    return _result(
        seen,
        limits,
        "fail",
        f"wrong gradient of {seen.label}: {first.message}{others}",
        findings,
        advice,
        (accuse.table(seen), accuse.steps(seen, seen.culprits[0])),
    )


def _beside(seen: Measured, beside: Measured, limits: Limits) -> Result:
    judged = of(beside, limits)
    if judged.verdict == "vacuous" and seen.survey.live:
        return _unconfirmed(seen, limits)
    if seen.outside is not None and judged.verdict == "pass":
        return outside(judged, seen.outside)
    if not seen.plan.native.is_repeatable:
        return judged
    code = "jump" if seen.jumps else "kink"
    note = Finding(
        code=code,
        severity="note",
        message=f"the function has a {code} at the given point; its gradient was checked beside it",
    )
    if judged.verdict == "pass":
        note = replace(note, severity="warn" if note.code == "jump" else "note")
    return replace(judged, findings=(*judged.findings, note))


def _forbidden(seen: Measured, limits: Limits) -> Result:
    code = "jump" if seen.jumps else "kink"
    message = f"the function has a {code} at the given point"
    finding = Finding(code=code, severity="fail", message=message)
    place = limits.use("at_kink").place
    return _result(
        seen,
        limits,
        "fail",
        f"no gradient of {seen.label}: {message}",
        (finding,),
        (f"give another point, or allow it: at_kink='accept' (now 'fail', {place})",),
    )


def _unconfirmed(seen: Measured, limits: Limits) -> Result:
    suspect = seen.suspect
    look = suspect if suspect is not None else seen.survey.looks[-1]
    worst = strongest(look.comparisons)
    numbers = (("claimed", worst.claimed), ("reference", worst.reference), ("bound", worst.bound))
    if not seen.plan.native.is_repeatable:
        code, why, advice = "unrepeatable", DIFFERENT_VALUES, NO_STATE
    elif seen.is_rough:
        code = "jump" if seen.jumps else "kink"
        why = f"the function has a {code} at the point, and nothing can be said beside it either"
        advice = "give a smooth point, or leave labels and counts among the inputs out with wrt="
    else:
        code, why = "borderline", "a difference at the edge of the bound did not show again"
        advice = "raise tolerance= if the derivative is meant to be approximate"
    finding = Finding(code=code, severity="fail", message=why, numbers=numbers)
    return _result(
        seen, limits, "undecided", f"undecided on {seen.label}: {why}", (finding,), (advice,)
    )


def _low_precision(seen: Measured, limits: Limits) -> Result:
    unexplained = [item for item in seen.lossy if not item.arithmetic]
    worst = max(unexplained, key=lambda item: item.loss / item.allowed)
    dtype, name = seen.plan.asis.dtype, seen.name(worst.index)
    findings = tuple(accuse.loss(seen, item) for item in unexplained)
    return _result(
        seen,
        limits,
        "fail",
        f"wrong gradient of {seen.label} in {dtype}: {name} is off by {power.percent(worst.loss)}, "
        f"right in float64",
        findings,
        (
            f"compute the backward of {name} in more precision, or raise rounding= "
            f"(now {worst.allowed:.2g})",
        ),
    )


def _uncontradicted(seen: Measured, limits: Limits) -> Result:
    survey, label = seen.survey, seen.label
    if not any(_is_known(look) for look in survey.looks):
        return _no_reference(seen, limits)
    live = [i for i in range(len(survey.plan.probe.scales)) if survey.gradient_size(i) > 0]
    still = [i for i in range(survey.count) if i not in live]
    dim = [i for i in still if survey.is_dim(i)]
    quiet = tuple(power.independent(seen, i) for i in still if i not in dim)
    if dim:
        return _unresolved(seen, limits, dim, quiet)
    if not live:
        return _nothing_moves(seen, limits, quiet)
    open_ = survey.unresolved(live)
    faint = [i for i in open_ if survey.is_below_noise(i)]
    coarse = [i for i in open_ if i not in faint and survey.is_coarse(i)]
    dull = [i for i in open_ if i not in faint + coarse]
    notes = quiet + tuple(power.faint(seen, i) for i in faint)
    notes += tuple(power.coarse(seen, i) for i in coarse)
    if dull or len(faint) == len(live):
        return _unresolved(seen, limits, dull or faint, notes)
    clear = [i for i in live if i not in faint]
    worst = max(survey.resolution(i) for i in clear)
    count = f"{len(clear)} input" + ("s" if len(clear) > 1 else "")
    return _result(
        seen,
        limits,
        "pass",
        f"gradient of {label} is right in {count}; "
        f"an error of {power.percent(worst)}{_alone(seen, limits)} would show",
        notes,
        (),
        (power.resolutions(seen, clear),),
    )


def _alone(seen: Measured, limits: Limits) -> str:
    """What an error in the function's own precision alone could be, if that is another one."""
    plan = seen.plan
    if not plan.is_in_two_precisions or seen.lossy:  # a note tells what its arithmetic explains
        return ""
    accepted = limits.number("rounding", plan.asis.dtype)
    return f" ({power.percent(accepted)} in {plan.asis.dtype})"


def _nothing_moves(seen: Measured, limits: Limits, quiet: tuple[Finding, ...]) -> Result:
    what = "the output does not change to first order"
    if any(look.climbs_stairs for look in seen.survey.looks):
        what = "the output moves in steps"
    return _result(
        seen,
        limits,
        "vacuous",
        f"nothing to check in {seen.label}: every gradient is zero and {what}",
        tuple(replace(finding, severity="fail") for finding in quiet),
        ("give inputs on which the output depends, at a point where it changes with them",),
    )


def _is_known(look: Look) -> bool:
    return any(c.is_known for c in look.comparisons)


def _no_reference(seen: Measured, limits: Limits) -> Result:
    if any(look.line.estimate.exponent is not None for look in seen.survey.looks):
        why = "its differences settle on no slope at any step tried"
        finding = Finding(code="unresolved", severity="fail", message=f"{seen.label}: {why}")
        advice = "give a point where it is smoother, or round and draw less in it"
        return _result(
            seen, limits, "undecided", f"undecided on {seen.label}: {why}", (finding,), (advice,)
        )
    why = "it is not finite (or raises) on both sides of the point at every step tried"
    finding = Finding(code="domain-edge", severity="fail", message=f"{seen.label}: {why}")
    return _result(
        seen,
        limits,
        "undecided",
        f"undecided on {seen.label}: {why}",
        (finding,),
        (
            "give a point inside the domain, away from its edge; elements of very different size "
            "are better separate inputs",
        ),
    )


def _unresolved(
    seen: Measured, limits: Limits, dull: list[int], notes: tuple[Finding, ...]
) -> Result:
    survey = seen.survey
    asked = survey.demand.resolution
    findings = tuple(
        Finding(
            code="unresolved",
            severity="fail",
            where=seen.name(i),
            message=f"{seen.name(i)}: {power.blindness(survey.resolution(i))} would not have been "
            f"seen; asked: {power.percent(asked)}",
            numbers=(("resolution", survey.resolution(i)), ("asked", asked)),
        )
        for i in dull
    )
    worst = max(survey.resolution(i) for i in dull)
    advice = power.sharper(seen, worst, limits)
    if survey.plan.probe.cost.is_spent:
        findings = (power.spent(seen, limits, dull), *findings)
        advice = "raise budget=, or check fewer inputs at a time with wrt="
    why = f"{power.blindness(worst)} would not have been seen"
    if not seen.plan.native.is_repeatable:
        why, advice = DIFFERENT_VALUES, NO_STATE
    return _result(
        seen,
        limits,
        "undecided",
        f"undecided on {seen.label}: {why}",
        findings + notes,
        (advice,),
        (power.resolutions(seen, dull),),
    )
