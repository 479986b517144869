"""From findings on a clip to a verdict, in the words of its user."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pytest_gradcheck.backends.clips import Clipper
from pytest_gradcheck.checks.clipping.claim import Claim
from pytest_gradcheck.checks.clipping.judge import Judged
from pytest_gradcheck.errors import brief
from pytest_gradcheck.limits import LimitUse
from pytest_gradcheck.results import Context, Evidence, Finding, Result, Verdict


def label_of(clip: Any) -> str:
    """How a clip is called in messages."""
    inner = getattr(clip, "func", clip)
    if hasattr(clip, "update") and hasattr(clip, "init"):  # a transformation: who made it
        inner = clip.update
    name = str(getattr(inner, "__qualname__", type(inner).__name__))
    return name.partition(".<locals>")[0] or name


def weak(clipper: Clipper, claim: Claim, rows: Sequence[Judged]) -> list[Finding]:
    """What makes a pass mean little."""
    if not any(item.bites for item in rows):
        return [
            Finding(
                code="clip-never",
                severity="fail",
                message="no gradient was above the threshold, so nothing was clipped",
            )
        ]
    if len(clipper.shapes) < 2 and claim.max_norm is not None and claim.per == "all":
        return [
            Finding(
                code="clip-one-tensor",
                severity="fail",
                message="with one tensor, clipping all together and each by itself is the same",
            )
        ]
    return []


def table(rows: Sequence[Judged]) -> Evidence:
    """One row for each case, the wrong ones first."""
    shown = sorted(rows, key=lambda item: not item.wrong)
    return Evidence(
        name="clipping",
        title="norm before and after, the factor between, and the cosine",
        columns=("gradients", "before", "threshold", "after", "factor", "cosine"),
        rows=tuple(
            (j.case.name, j.before, j.threshold, j.after, j.factor, j.cosine) for j in shown
        ),
    )


def only_once(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """The findings without repetition, the worst first."""
    order = {"fail": 0, "warn": 1, "note": 2}
    kept = {(f.code, f.where, f.message): f for f in findings}
    return tuple(sorted(kept.values(), key=lambda f: order[f.severity]))


_VACUOUS = ("clip-never", "clip-one-tensor")


def result(
    label: str,
    findings: tuple[Finding, ...],
    evidence: Evidence,
    used: tuple[LimitUse, ...],
    context: Context,
) -> Result:
    """The result of a check."""
    failed = [f for f in findings if f.severity == "fail"]
    weak = [f for f in failed if f.code in _VACUOUS]
    verdict: Verdict = "pass" if not failed else "vacuous" if len(weak) == len(failed) else "fail"
    findings = tuple(sorted(findings, key=lambda f: (f.severity != "fail", f.code in _VACUOUS)))
    first = next((f for f in findings if f.severity == "fail"), None)
    what, _, advice = first.message.partition("; ") if first else ("", "", "")
    more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
    headline = {
        "pass": f"{label} clips as claimed",
        "fail": f"{'' if first and first.code == 'clip-raised' else 'wrong clipping: '}{label} "
        f"{what}{more}",
        "vacuous": f"vacuous check of {label}: {what}",
    }[verdict]
    tried = {
        "clip-never": "choose a threshold that float32 gradients can be above",
        "clip-one-tensor": "give at least two tensors of different size as params=",
    }
    if verdict == "vacuous" and first:
        advice = tried[first.code]
    kept = tuple(replace(f, message=f.message.partition("; ")[0]) for f in findings)
    return Result(
        check="clipping",
        label=label,
        verdict=verdict,
        headline=brief(headline, 160),
        findings=kept,
        evidence=(evidence,) if evidence.rows else (),
        limits=used,
        advice=(advice,) if advice else (),
        context=context,
    )
