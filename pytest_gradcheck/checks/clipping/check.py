"""The verb: run a clip over the cases, judge each, and put the worst first."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pytest_gradcheck.backends.clips import find, load
from pytest_gradcheck.checks.clipping import cases as making
from pytest_gradcheck.checks.clipping import causes, examples, real
from pytest_gradcheck.checks.clipping.cases import Case
from pytest_gradcheck.checks.clipping.claim import Claim, dtypes_of
from pytest_gradcheck.checks.clipping.judge import Judged, is_factor, returned
from pytest_gradcheck.checks.clipping.run import Run
from pytest_gradcheck.checks.clipping.special import half, nonfinite, special
from pytest_gradcheck.checks.clipping.verdict import label_of, only_once, result, table, weak
from pytest_gradcheck.errors import UsageError
from pytest_gradcheck.limits import Limits
from pytest_gradcheck.numerics import clipping
from pytest_gradcheck.results import Context, Evidence, Finding, Result

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

BATCH = 5  # examples in a gradient per example
WIDE = ((64, 64), (8,))  # a sum of so many ones stalls in bfloat16


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A call of the verb: the clip, what it claims, and over what."""

    clip: Any
    claim: Claim
    params: Any = None
    norms: Sequence[Any] | None = None
    dtypes: Sequence[str] | None = None
    backend: str | None = None
    label: str | None = None


def check(question: Question, limits: Limits, context: Context) -> Result:
    """Measure and judge; the caller has resolved limits, seed and place.

    Raises:
        UsageError: The clip cannot be called, or is not of a framework that is known.
    """
    began = time.perf_counter()
    if isinstance(question.clip, type):
        kind = question.clip.__name__
        raise UsageError(f"clip is the class {kind}: hand over what it makes, as in {kind}(...)")
    if not callable(question.clip) and not hasattr(question.clip, "update"):
        kind = type(question.clip).__name__
        raise UsageError(
            f"clip must be a function or a gradient transformation, such as clip_grad_norm_ or "
            f"optax.clip_by_global_norm(1.0), got {kind}"
        )
    name = find(question.clip, question.params, question.backend)
    # torch's weights have their outputs first, those of JAX last.
    claim = replace(question.claim, outputs="first" if name == "torch" else "last")
    question = replace(question, claim=claim)
    shapes = making.SHAPES
    if claim.per == "example":
        shapes = tuple((BATCH, *shape) for shape in shapes)
    clipper = load(name, question.clip, question.params, shapes)
    run = Run(clipper, limits)
    dtype = clipper.dtype or ("float64" if name == "numpy" else "float32")
    asked = dtypes_of(question.dtypes) if question.dtypes is not None else (dtype,)
    label = question.label or label_of(question.clip)
    findings, evidence = _measured(run, question, asked, context.seed)
    raised = _raised(findings)
    if raised is not None and question.params is None:
        # Few have a parameter without axes: who cannot clip one is told, and not accused.
        other = Run(load(name, question.clip, None, shapes[:-1]), limits, run.count)
        again = _measured(other, question, asked, context.seed)
        if _raised(again[0]) is None:
            run, (findings, evidence) = other, again
            findings.append(_without_axes(raised))
    findings += real.findings(question.norms, claim)
    return result(
        label,
        only_once(findings),
        evidence,
        limits.used(asked[0]),
        replace(
            context,
            backend=name,
            device="cpu",
            dtype=", ".join(asked),
            precision="float64",
            evaluations=run.count,
            seconds=time.perf_counter() - began,
        ),
    )


def _measured(
    run: Run, question: Question, asked: Sequence[str], seed: int
) -> tuple[list[Finding], Evidence]:
    clipper, claim, is_open = run.clipper, question.claim, question.dtypes is None
    if claim.per == "example":
        return examples.findings(run.call, clipper, claim, asked, seed, run.limits)
    findings: list[Finding] = []
    rows: list[Judged] = []
    for dtype in asked:
        plain = list(making.cases(claim, clipper.shapes, clipper.parameters(), dtype, seed))
        found, seen = _plain(run, claim, plain, dtype)
        findings += found
        rows += seen
        if plain and not any(f.severity == "fail" for f in found):
            findings += special(run, claim, plain)
            findings += nonfinite(run, claim, plain)
    is_finite = bool(np.isfinite(claim.threshold))
    halves = [d for d in making.HALVES if is_finite and _has(run, d) and (d in asked or is_open)]
    for dtype in halves if not clipper.dtype or clipper.dtype in halves else ():
        if not any(f.severity == "fail" for f in findings):
            findings += half(run, claim, dtype, dtype in asked)
            if dtype == "bfloat16" and not clipper.dtype and claim.per == "all":
                wide = replace(run, clipper=load(clipper.name, question.clip, None, WIDE))
                findings += half(wide, claim, dtype, dtype in asked)
    if not any(f.severity == "fail" for f in findings):
        findings += weak(clipper, claim, rows)
    return findings, table(rows)


def _raised(findings: Sequence[Finding]) -> Finding | None:
    found = (f for f in findings if f.severity == "fail" and f.message.startswith("raised for"))
    return next(found, None)


def _without_axes(raised: Finding) -> Finding:
    told = raised.message.partition("; ")[0]
    message = f"{told}, if one of them has no axes, as the gradient of a single number"
    return replace(raised, code="clip-raised", severity="warn", message=message)


def _has(run: Run, dtype: str) -> bool:
    if run.clipper.dtype:
        return run.clipper.dtype == dtype
    return not (run.clipper.name == "numpy" and dtype == "bfloat16")


def _plain(
    run: Run, claim: Claim, plain: Sequence[Case], dtype: str
) -> tuple[list[Finding], list[Judged]]:
    answers = []
    for case in plain:
        answers.append(run.judged(case))
        if isinstance(answers[-1], Finding) and answers[-1].code == "clip-raised":
            break  # and in the same way for all that is left
    findings = [a for a in answers if isinstance(a, Finding)]
    seen = [a for a in answers if isinstance(a, Judged)]
    wrong = [a for a in seen if a.wrong and a.wrong != "zero-gradient"]
    tolerance = run.limits.number("clip_rounding", dtype)
    if wrong:
        accused = _accused(wrong, claim, run.clipper.names, tolerance)
        has_raised = any(f.code == "clip-raised" for f in findings)
        findings.insert(len(findings) if has_raised else 0, accused)  # before a word on zeros
    zero = next((a for a in seen if a.wrong == "zero-gradient"), None)
    if zero is not None:
        findings.append(
            Finding(
                code="clip-zero-gradient",
                severity="fail",
                message="makes something else of gradients that are zero, such as nan from 0/0",
            )
        )
    if not wrong:
        findings += _norm_returned(seen, claim, tolerance)
    return findings, seen


def _accused(
    wrong: Sequence[Judged], claim: Claim, names: Sequence[str], tolerance: float
) -> Finding:
    cause = causes.recognised(wrong, claim, names, tolerance)
    item = wrong[0]
    return Finding(
        code=cause.code,
        severity="fail",
        where=cause.where,
        message=f"{cause.message}; {cause.advice}",
        numbers=(
            ("before", item.before),
            ("after", item.after),
            ("threshold", item.threshold),
            ("factor", item.factor),
            ("cosine", item.cosine),
        ),
    )


def _norm_returned(seen: Sequence[Judged], claim: Claim, tolerance: float) -> list[Finding]:
    off = [item for item in seen if not returned(item, claim, tolerance)]
    if not off or all(is_factor(item, tolerance) for item in seen):
        return []
    item = max(off, key=lambda j: j.before)
    size = clipping.norm([item.rows[0]], claim.norm_type)
    got = float(item.clipped.returned or 0.0)
    after = clipping.norm([item.rows[1]], claim.norm_type)
    told = (
        "returns the norm after clipping"
        if abs(got - after) <= tolerance * after
        else (f"returns {got:.4g} where the norm is {size:.4g}")
    )
    return [
        Finding(
            code="clip-returned-norm",
            severity="fail",
            message=f"{told}; return the norm before clipping, over all gradients",
            numbers=(("returned", got), ("norm", size)),
        )
    ]
