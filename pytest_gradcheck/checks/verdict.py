"""From what was measured to a verdict on a derivative, in the words of its user."""

from __future__ import annotations

import math
from dataclasses import replace

from pytest_gradcheck.checks.compare import strongest
from pytest_gradcheck.checks.derivative import WrongDerivative
from pytest_gradcheck.checks.gradient import Measured
from pytest_gradcheck.checks.locate import Culprit
from pytest_gradcheck.checks.problem import Problem
from pytest_gradcheck.checks.rounding import Lossy
from pytest_gradcheck.checks.survey import Look
from pytest_gradcheck.limits import Limits
from pytest_gradcheck.numerics.precision import real_part
from pytest_gradcheck.results import Context, Evidence, Finding, Result, Scalar, Verdict

_ADVICE = {
    "missing": "look for detach, .data, .item(), a non-differentiable step, or a None in backward",
    "zero": "look for detach, stop_gradient, an input left out of backward, or a mask of zeros",
    "sign": "look for a minus sign, or a difference written the other way round",
    "factor": "look for a constant that forward and backward do not share (a mean, a square, a scale)",
    "other": "compare the formula for this input term by term",
}


def of(seen: Measured, limits: Limits) -> Result:
    """The verdict on what was measured."""
    if seen.culprits:
        return _wrong(seen, limits)
    if seen.beside is not None:
        return _beside(seen, seen.beside, limits)
    if seen.suspect is not None:
        return _unconfirmed(seen, limits)
    if seen.lossy:
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
        headline=_short(f"{words} {problem.label}: {what}"),
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
        headline=_short(headline),
        findings=findings + _circumstances(seen),
        evidence=evidence,
        limits=limits.used(plan.probe.precision),
        context=Context(precision=plan.reason),
        advice=advice,
    )


def _short(sentence: str) -> str:
    return sentence if len(sentence) < 100 else sentence[:98] + "…"


def _label(seen: Measured) -> str:
    return seen.plan.probe.problem.label


def _name(seen: Measured, index: int) -> str:
    return seen.plan.probe.problem.names[index]


# --- a wrong gradient -------------------------------------------------------------------------


def _wrong(seen: Measured, limits: Limits) -> Result:
    findings = tuple(_accusation(seen, culprit) for culprit in seen.culprits)
    first = findings[0]
    others = f" (and {len(findings) - 1} more)" if len(findings) > 1 else ""
    patterns = dict.fromkeys(culprit.pattern for culprit in seen.culprits)
    return _result(
        seen,
        limits,
        "fail",
        f"wrong gradient of {_label(seen)}: {first.message}{others}",
        findings,
        tuple(_ADVICE[pattern] for pattern in patterns),
        (_table(seen), _steps(seen, seen.culprits[0])),
    )


def _accusation(seen: Measured, culprit: Culprit) -> Finding:
    name, worst = _name(seen, culprit.index), culprit.worst
    return Finding(
        code=f"gradient-{culprit.pattern}" if culprit.pattern != "other" else "wrong-gradient",
        severity="fail",
        where=name,
        message=_sentence(seen, culprit, name),
        numbers=(
            ("claimed", worst.claimed),
            ("reference", worst.reference),
            ("bound", worst.bound),
            ("ratio", worst.ratio),
        ),
    )


def _sentence(seen: Measured, culprit: Culprit, name: str) -> str:
    worst = culprit.worst
    if culprit.pattern == "missing":
        return f"none reaches {name}, though the output depends on it"
    if culprit.pattern == "zero":
        return f"{name} gets zero, though the output depends on it"
    if culprit.pattern == "sign":
        return f"{name} has the wrong sign"
    if culprit.pattern == "factor":
        return f"{name} gets {_factor(seen, culprit.factor)} times the right one"
    if all(look.stood_still for look in culprit.looks):
        return f"{name} gets a gradient, though the output does not change with it"
    size = abs(worst.difference) / max(abs(worst.reference), abs(worst.claimed))
    return f"{name} is off by {size:.2%} along a random direction"


def _factor(seen: Measured, factor: float) -> str:
    problem = seen.plan.probe.problem
    extents = {n for leaf in problem.leaves if leaf.dtype for n in leaf.shape if n > 2}
    for n in sorted(extents):
        if abs(factor * n - 1) < 1e-6:
            return f"1/{n}"
    return f"{factor:.4g}"


def _table(seen: Measured) -> Evidence:
    rows: list[tuple[Scalar, ...]] = []
    for culprit in seen.culprits:
        c = culprit.worst
        rows.append((_name(seen, culprit.index), c.claimed, c.reference, c.bound, c.ratio))
    return Evidence(
        name="inputs",
        title="derivative along a random direction in one input",
        columns=("input", "claimed", "reference", "bound", "claimed/reference"),
        rows=tuple(rows),
    )


def _steps(seen: Measured, culprit: Culprit) -> Evidence:
    look = culprit.looks[0]
    column = look.comparisons.index(strongest(look.comparisons))
    ladder, claimed = look.line.ladder, look.comparisons[column].claimed
    rows = tuple(
        (float(h), float(d[column] / (2 * h)), claimed - float(d[column] / (2 * h)))
        for h, d in zip(ladder.steps, ladder.first, strict=True)
    )
    return Evidence(
        name="differences",
        title=f"central differences against step, input {_name(seen, culprit.index)}",
        columns=("step [input size]", "difference quotient", "claimed minus quotient"),
        rows=rows,
    )


# --- no verdict on the point itself -----------------------------------------------------------


def _beside(seen: Measured, beside: Measured, limits: Limits) -> Result:
    suspect = seen.suspect
    what = "jump" if suspect is not None and suspect.jumps else "kink"
    judged = of(beside, limits)
    note = Finding(
        code=what,
        severity="note",
        message=f"the function has a {what} at the given point; its gradient was checked beside it",
    )
    if judged.verdict == "pass":
        note = replace(note, severity="warn" if what == "jump" else "note")
    return replace(judged, findings=(*judged.findings, note))


def _unconfirmed(seen: Measured, limits: Limits) -> Result:
    suspect = seen.suspect
    look = suspect if suspect is not None else seen.survey.looks[-1]
    worst = strongest(look.comparisons)
    numbers = (
        ("claimed", worst.claimed),
        ("reference", worst.reference),
        ("bound", worst.bound),
    )
    if any(c.kink for c in look.comparisons) or look.jumps:
        code, why = "kink", "the function has kinks or jumps at the point and beside it"
        advice = "give a point where the function is smooth"
    else:
        code, why = "borderline", "a difference at the edge of the bound did not show again"
        advice = "raise tolerance= if the derivative is meant to be approximate"
    finding = Finding(code=code, severity="fail", message=why, numbers=numbers)
    return _result(
        seen, limits, "undecided", f"undecided on {_label(seen)}: {why}", (finding,), (advice,)
    )


# --- precision --------------------------------------------------------------------------------


def _low_precision(seen: Measured, limits: Limits) -> Result:
    worst = max(seen.lossy, key=lambda item: item.loss / item.allowed)
    dtype, name = seen.plan.asis.dtype, _name(seen, worst.index)
    findings = tuple(_loss(seen, item) for item in seen.lossy)
    return _result(
        seen,
        limits,
        "fail",
        f"wrong gradient of {_label(seen)} in {dtype}: {name} is off by {worst.loss:.2%}, "
        f"right in float64",
        findings,
        (
            f"compute the backward of {name} in more precision, or raise tolerance= "
            f"(now {worst.allowed:.2g})",
        ),
    )


def _loss(seen: Measured, item: Lossy) -> Finding:
    name, dtype = _name(seen, item.index), seen.plan.asis.dtype
    return Finding(
        code="low-precision",
        severity="fail",
        where=name,
        message=f"the {dtype} gradient for {name} differs from the float64 one by {item.loss:.2%}",
        numbers=(("loss", item.loss), ("allowed", item.allowed)),
    )


# --- nothing contradicts ----------------------------------------------------------------------


def _uncontradicted(seen: Measured, limits: Limits) -> Result:
    survey, label = seen.survey, _label(seen)
    if not any(_is_known(look) for look in survey.looks):
        return _no_reference(seen, limits)
    live = [i for i in range(len(survey.plan.probe.scales)) if survey.gradient_size(i) > 0]
    quiet = tuple(
        _independent(seen, i) for i in range(len(survey.plan.probe.scales)) if i not in live
    )
    if not live:
        return _nothing_moves(seen, limits, quiet)
    open_ = survey.unresolved(live)
    faint = [i for i in open_ if survey.is_below_noise(i)]
    dull = [i for i in open_ if i not in faint]
    notes = quiet + tuple(_faint(seen, i) for i in faint)
    if dull or len(faint) == len(live):
        return _unresolved(seen, limits, dull or faint, notes)
    clear = [i for i in live if i not in open_]
    worst = max(survey.resolution(i) for i in clear)
    count = f"{len(clear)} input" + ("s" if len(clear) > 1 else "")
    return _result(
        seen,
        limits,
        "pass",
        f"gradient of {label} is right in {count}: an error of {_percent(worst)} would have been seen",
        notes,
        (),
        (_resolutions(seen, clear),),
    )


def _nothing_moves(seen: Measured, limits: Limits, quiet: tuple[Finding, ...]) -> Result:
    what = "the output does not change"
    if any(look.climbs_stairs for look in seen.survey.looks):
        what = "the output moves in steps"
    return _result(
        seen,
        limits,
        "vacuous",
        f"nothing to check in {_label(seen)}: every gradient is zero and {what}",
        tuple(replace(finding, severity="fail") for finding in quiet),
        ("give inputs on which the output depends, at a point where it changes with them",),
    )


def _is_known(look: Look) -> bool:
    return any(c.is_known for c in look.comparisons)


def _no_reference(seen: Measured, limits: Limits) -> Result:
    why = "it is not finite (or raises) on both sides of the point at every step"
    finding = Finding(code="domain-edge", severity="fail", message=f"{_label(seen)}: {why}")
    return _result(
        seen,
        limits,
        "undecided",
        f"undecided on {_label(seen)}: {why}",
        (finding,),
        ("give a point inside the domain, away from its edge",),
    )


def _independent(seen: Measured, index: int) -> Finding:
    name = _name(seen, index)
    looks = [look for look in seen.survey.looks if index in look.inputs]
    if any(look.climbs_stairs for look in looks):
        return Finding(
            code="staircase",
            severity="warn",
            where=name,
            message=f"the output moves in steps with {name}; its gradient is zero, right in between",
        )
    return Finding(
        code="independent-input",
        severity="warn",
        where=name,
        message=f"the output does not change with {name}, and its gradient is zero",
    )


def _faint(seen: Measured, index: int) -> Finding:
    name = _name(seen, index)
    return Finding(
        code="below-noise",
        severity="note",
        where=name,
        message=f"the gradient of {name} moves the output by less than its rounding error",
        numbers=(("gradient", seen.survey.gradient_size(index)),),
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
            where=_name(seen, i),
            message=f"{_name(seen, i)}: {_blindness(survey.resolution(i))} would not have been "
            f"seen; asked: {_percent(asked)}",
            numbers=(("resolution", survey.resolution(i)), ("asked", asked)),
        )
        for i in dull
    )
    worst = max(survey.resolution(i) for i in dull)
    return _result(
        seen,
        limits,
        "undecided",
        f"undecided on {_label(seen)}: {_blindness(worst)} would not have been seen",
        findings + notes,
        (
            f"give float64 inputs, or a smoother point; or accept it with resolution={min(1.0, 2 * worst):.1g}",
        ),
        (_resolutions(seen, dull),),
    )


def _blindness(resolution: float) -> str:
    if resolution >= 1:
        return "an error as large as the gradient"
    return f"an error of {_percent(resolution)} of the gradient"


def _percent(value: float) -> str:
    return f"{value:.2g}" if value < 1e-4 else f"{100 * value:.3g} %"


def _resolutions(seen: Measured, inputs: list[int]) -> Evidence:
    survey = seen.survey
    return Evidence(
        name="resolution",
        title="smallest relative error of each input's gradient that would have been seen",
        columns=("input", "resolution [relative]", "gradient size [input size]"),
        rows=tuple((_name(seen, i), survey.resolution(i), survey.gradient_size(i)) for i in inputs),
    )


# --- circumstances ----------------------------------------------------------------------------


def _circumstances(seen: Measured) -> tuple[Finding, ...]:
    plan, findings = seen.plan, []
    wobble = max(plan.native.rounding, default=0.0)
    if wobble:
        findings.append(
            Finding(
                code="nondeterministic",
                severity="warn",
                message="two equal calls of the function differ, random state set back in between",
                numbers=(("difference", wobble),),
            )
        )
    cut = [leaf for leaf in plan.native.outputs.leaves if leaf.dtype and not leaf.trainable]
    if cut and len(cut) < sum(bool(leaf.dtype) for leaf in plan.native.outputs.leaves):
        findings += [
            Finding(
                code="detached-output",
                severity="note",
                where=leaf.path,
                message=f"output {leaf.path} is declared not differentiable and was left out",
            )
            for leaf in cut
        ]
    if "not promoted" in plan.reason and real_part(plan.native.precision) != "float64":
        findings.append(
            Finding(
                code="native-precision",
                severity="note",
                message=f"the reference was computed in {plan.reason}",
            )
        )
    return tuple(findings)
