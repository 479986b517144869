"""A verdict in the light of what else is known: an intention, a kink, other questions."""

from __future__ import annotations

from dataclasses import replace

from pytest_gradcheck.checks.advice import ADVICE, advice
from pytest_gradcheck.checks.kinks import Slope
from pytest_gradcheck.errors import brief
from pytest_gradcheck.results import SEVERITIES, Finding, Result

# Findings on the form of a derivative, which no intention excuses.
OF_FORM = {"gradient-count", "gradient-shape", "gradient-dtype", "gradient-nonfinite"}


# What was asked for and is not there, which makes no number wrong.
MISSING = {
    "forward-missing": "no forward mode",
    "batched-missing": "no batched gradient",
    "second-order-missing": "no second derivative",
}


def short(sentence: str) -> str:
    """A headline under 100 characters."""
    return brief(sentence, 99)


def intended(judged: Result, reason: str) -> Result:
    """The verdict where the derivative is meant to differ from that of the function."""
    if any(finding.code in OF_FORM for finding in judged.findings):
        return judged
    if judged.verdict == "pass":
        told = f"the derivative agrees with the function, so that intended={reason!r} is not needed"
        unused = Finding(code="intended-unused", severity="warn", message=told)
        return replace(judged, findings=(unused, *judged.findings))
    note = Finding(
        code="intended",
        severity="note",
        message=f"the derivative is meant to differ: {reason}",
    )
    measured = tuple(replace(finding, severity="note") for finding in judged.findings)
    return replace(
        judged,
        verdict="pass",
        headline=short(f"gradient of {judged.label} differs as intended: {reason}"),
        findings=(note, *measured),
        advice=(),
    )


def joined(judged: Result, found: tuple[Finding, ...], backend: str) -> Result:
    """A verdict together with what other questions about the same derivative found."""
    told = {finding.code for finding in judged.findings if finding.severity == "fail"}
    found = tuple(finding for finding in found if finding.code not in told)
    if not found:
        return judged
    wrong = [finding for finding in found if finding.severity == "fail"]
    wrong.sort(key=lambda finding: finding.code in MISSING)  # after what is wrong
    findings = tuple(sorted((*judged.findings, *found), key=lambda f: SEVERITIES.index(f.severity)))
    if not wrong or judged.verdict == "fail":
        return replace(judged, findings=findings)
    if all(finding.code == "second-order-undecided" for finding in wrong):
        headline = short(f"undecided on {judged.label}: {wrong[0].message}")
        return replace(judged, verdict="undecided", headline=headline, findings=findings)
    findings = (*wrong, *(finding for finding in findings if finding not in wrong))
    known = [f.code for f in wrong if f.code in ADVICE]
    tried = tuple(dict.fromkeys(advice(backend, code) for code in known))
    what, sentence = MISSING.get(wrong[0].code, "wrong gradient"), wrong[0].message
    if wrong[0].code in MISSING:
        sentence = sentence.partition(" raises ")[2] or sentence
    headline = short(f"{what} of {judged.label}: {sentence}")
    return replace(judged, verdict="fail", headline=headline, findings=findings, advice=tried)


def outside(judged: Result, slope: Slope) -> Result:
    """A pass beside a kink, where the value at the kink is none that belongs to it."""
    finding = Finding(
        code="not-a-subgradient",
        severity="fail" if slope.by_hand else "warn",
        where=slope.output,
        message=f"at the kink the slope {slope.claimed:.3g} is claimed, outside of "
        f"{slope.left:.3g} before and {slope.right:.3g} after it",
        numbers=(("claimed", slope.claimed), ("left", slope.left), ("right", slope.right)),
    )
    judged = replace(judged, findings=(finding, *judged.findings))
    if not slope.by_hand:
        return judged
    return replace(
        judged,
        verdict="fail",
        headline=short(f"wrong gradient of {judged.label} at a kink: right beside it only"),
        advice=(
            "share the gradient among tied elements or give it to one of them; at_kink='nudge' "
            "leaves the point itself out",
        ),
    )
