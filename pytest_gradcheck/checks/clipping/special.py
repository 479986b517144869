"""What a clip must do beside clipping: None, other orders and thresholds, zero, half precision."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from pytest_gradcheck.checks.clipping import cases as making
from pytest_gradcheck.checks.clipping import policy
from pytest_gradcheck.checks.clipping.cases import Case
from pytest_gradcheck.checks.clipping.claim import Claim
from pytest_gradcheck.checks.clipping.run import Run
from pytest_gradcheck.results import Finding, Severity


def special(run: Run, claim: Claim, plain: Sequence[Case]) -> Iterator[Finding]:
    """None gradients, other orders of the norm, other thresholds, a threshold of zero."""
    biting = next(c for c in plain if c.name.startswith("4 times"))
    clipper = run.clipper
    if clipper.has_gaps and len(clipper.shapes) > 1:
        yield from _retold(
            run,
            making.none(claim, biting),
            Finding(code="clip-none", severity="fail", message=""),
            "a gradient that is None",
            "skip parameters whose grad is None",
        )
    # A norm of units is of the same order for their parameters, or not: it is the author's choice.
    if "kind" in clipper.settings and claim.max_norm is not None and claim.per != "unit":
        for order in (1.0, 2.0, np.inf):
            if order != claim.norm_type:
                other = replace(claim, norm_type=order)
                yield from _retold(
                    run,
                    replace(biting, claim=other),
                    Finding(code="clip-wrong-norm", severity="fail", message=""),
                    f"the norm of order {order:g}",
                )
    if "value" in clipper.settings and claim.max_value is not None:
        wider = replace(claim, max_value=2 * claim.threshold)
        yield from _retold(
            run,
            replace(biting, claim=wider),
            Finding(code="clip-threshold", severity="fail", message=""),
            "twice max_value",
        )
    if "norm" in clipper.settings and claim.max_norm is not None:
        wider = replace(claim, max_norm=2 * claim.threshold)
        yield from _retold(
            run,
            replace(biting, claim=wider),
            Finding(code="clip-threshold", severity="fail", message=""),
            "twice max_norm",
        )
        yield from _at_zero(run, claim, biting)


def _retold(
    run: Run, case: Case, found: Finding, what: str, advice: str = "use what the call is given"
) -> Iterator[Finding]:
    answer = run.judged(case)
    told = ""
    if isinstance(answer, Finding):
        told = answer.message
    elif answer is not None and answer.wrong:
        told = f"leaves a norm of {answer.after:.4g} where {answer.threshold:.4g} is claimed"
    if told:
        yield replace(found, message=f"goes wrong with {what}: {told}; {advice}")


def _at_zero(run: Run, claim: Claim, biting: Case) -> Iterator[Finding]:
    """A threshold of zero gives zeros; what optax makes of 0/0 is a trait that is known.

    What it may mean beside that, or gives by 0/0, is told: nobody trains with it.
    """
    nothing = replace(claim, max_norm=0.0)
    # In half precision the small number that torch adds to a norm of zero is lost.
    is_known = run.clipper.is_quirky or biting.dtype in making.HALVES
    zeros = tuple(None if g is None else np.zeros_like(g) for g in biting.gradients)
    for what, values in (("gradients", biting.gradients), ("zero gradients", zeros)):
        got = run.call(replace(biting, gradients=values, claim=nothing))
        out = [g for g in got.after if g is not None]
        if not got.error and all(np.all(g == 0) for g in out):
            continue
        given = [v for v in values if v is not None]
        is_off = not got.error and all(map(np.array_equal, out, given))
        is_lost = not got.error and what == "zero gradients" and any(map(_is_nan, out))
        told = "does not give zeros"
        told = f"fails ({got.error})" if got.error else "leaves all as it is" if is_off else told
        severity: Severity = "warn" if is_off or is_lost else "fail"
        yield Finding(
            code="clip-zero-threshold",
            severity="note" if is_known else severity,
            message=f"{told} with a threshold of zero and {what}",
        )
        return


def _is_nan(g: np.ndarray) -> bool:
    return bool(np.any(np.isnan(g)))


def nonfinite(run: Run, claim: Claim, plain: Sequence[Case]) -> list[Finding]:
    """What happens to inf and nan."""
    biting = next(c for c in plain if c.name.startswith("4 times"))
    pairs = [(case, run.call(case)) for case in making.bad(biting)]
    return policy.findings(pairs, claim)


def half(run: Run, claim: Claim, dtype: str, is_asked: bool) -> list[Finding]:
    """What goes wrong in half precision: a failure where that was asked for."""
    shapes = run.clipper.shapes
    wrong = []
    for case in making.halves(claim, shapes, dtype):
        answer = run.judged(case)
        if isinstance(answer, Finding):
            return [replace(answer, severity="fail" if is_asked else "warn")]
        if answer is not None and answer.wrong:
            wrong.append(answer)
    if not wrong:
        return []
    item = wrong[0]
    return [
        Finding(
            code="clip-overflow",
            severity="fail" if is_asked else "warn",
            message=f"in {dtype}, {item.case.name}: a norm of {item.before:.4g} becomes "
            f"{item.after:.4g} with a threshold of {item.threshold:.4g}; take the norm in float32",
            numbers=(("before", item.before), ("after", item.after)),
        )
    ]
