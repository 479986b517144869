"""From findings on a training to a verdict, in the words of its user."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pytest_gradcheck.errors import brief
from pytest_gradcheck.limits import LimitUse
from pytest_gradcheck.results import Context, Evidence, Finding, Result, Verdict

# The first that is there stands in the first line: causes before what follows from them.
ORDER = (
    "step-raised",
    "step-no-update",
    "step-no-gradient",
    "step-not-registered",
    "step-registered-twice",
    "step-replaced",
    "step-repeated",
    "step-clip-late",
    "step-batch-changed",
    "step-detached",
    "step-stopped-gradient",
    "step-slope",
    "step-gradient-sign",
    "step-missing-gradient",
    "step-window",
)
_VACUOUS = ("step-no-gradient", "step-rate-zero")
UNDECIDED = (
    *("step-random", "step-not-seen", "step-not-compared", "step-rates-differ"),
    "step-clip-varied",
)
UNNAMED = ("step-wrong-gradient", "step-random", "step-not-compared")
WIDTH = 200


def result(
    label: str,
    findings: Sequence[Finding],
    evidence: tuple[Evidence, ...],
    used: tuple[LimitUse, ...],
    context: Context,
) -> Result:
    """The result of a check."""
    listed = ordered(_beside(findings))
    failed = [f for f in listed if f.severity == "fail"]
    verdict = _verdict(failed)
    parts = [f.message.partition("; ") for f in listed]
    kept = tuple(replace(f, message=head) for f, (head, _, _) in zip(listed, parts, strict=True))
    what = parts[0][0] if failed else ""
    more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
    headline = {
        "pass": f"{label}: {_compared(kept)}",
        "fail": f"{_accused(label, listed)}: {what}{more}",
        "undecided": f"undecided on {label}: {what}",
        "vacuous": f"vacuous check of {label}: {what}",
    }[verdict]
    advice = [a for f, (_, _, a) in zip(listed, parts, strict=True) if a and f in failed]
    if not failed:  # a warning says itself what to try: nothing else is told there
        pairs = zip(listed, kept, strict=True)
        kept = tuple(whole if whole.severity == "warn" else head for whole, head in pairs)
    return Result(
        check="step",
        label=label,
        verdict=verdict,
        headline=brief(headline, WIDTH),
        findings=kept,
        evidence=evidence,
        limits=used,
        advice=tuple(dict.fromkeys(advice)),
        context=context,
    )


def ordered(findings: Sequence[Finding]) -> list[Finding]:
    """The worst first, and causes before what follows from them."""
    severities = {"fail": 0, "warn": 1, "note": 2}
    return sorted(
        findings,
        key=lambda f: (
            severities[f.severity],
            ORDER.index(f.code) if f.code in ORDER else len(ORDER) + (f.code in UNDECIDED),
        ),
    )


def _accused(label: str, listed: Sequence[Finding]) -> str:
    if listed and listed[0].code == "step-raised":
        return label
    return f"wrong step{'' if label == 'step' else f' {label}'}"


def _beside(findings: Sequence[Finding]) -> list[Finding]:
    """What could not be compared is a note beside what is wrong."""
    is_wrong = any(f.severity == "fail" and f.code not in UNDECIDED for f in findings)
    return [
        replace(f, severity="note") if is_wrong and f.code in UNDECIDED else f for f in findings
    ]


def _compared(findings: Sequence[Finding]) -> str:
    """What was held against what, of a step with which nothing is wrong."""
    for f in findings:
        if f.code == "step-rate-unclaimed":
            return f.message
        if f.code == "step-not-replayed":
            return f"gradients are right, {f.message}"
    for f in findings:
        if f.code == "step-spared":
            held, calls = (number for _, number in f.numbers)
            return f"gradients (at {held} of {calls} calls) and updates are right"
    return "gradients and updates are right"


def _verdict(failed: Sequence[Finding]) -> Verdict:
    if not failed:
        return "pass"
    if all(f.code in _VACUOUS for f in failed):
        return "vacuous"
    return "undecided" if all(f.code in UNDECIDED for f in failed) else "fail"
