"""A batch whose gradient is not finite, held against what is claimed of it."""

from __future__ import annotations

from pytest_gradcheck.checks.steps.contract import Contract
from pytest_gradcheck.checks.steps.measure import Run, some_of
from pytest_gradcheck.checks.steps.order import timeline
from pytest_gradcheck.checks.steps.spoiling import Spoilt
from pytest_gradcheck.results import Finding

LEAST = 3  # further calls without an update, by which a training has stopped


def findings(run: Run, contract: Contract) -> list[Finding]:
    """What is not as claimed; where no such batch could be made, that nothing was seen."""
    policy = contract.nonfinite
    if policy is None:
        return []
    if run.bad is None:
        return [_untried(policy)]
    told = _told(run.bad, policy) or _stuck(run, run.bad)
    if told:
        where = run.bad.moved[0] if run.bad.moved else ""
        return [Finding(code="step-nonfinite", severity="fail", where=where, message=told)]
    return _held(run.bad) if policy == "skip" else []


def _untried(policy: str) -> Finding:
    return Finding(
        code="weak-claim",
        severity="warn",
        message=f"nonfinite={policy!r} is claimed, and was not tried: no number that is put into "
        f"the batch or the parameters makes a gradient that is not finite, or there were fewer "
        f"than three calls; test the policy by itself",
    )


def _told(bad: Spoilt, policy: str) -> str:
    """What is not as claimed; empty where all is."""
    if bad.keeps(policy):
        return ""
    what = "a batch that is not finite" if bad.by == "a batch" else f"{bad.by} not finite"
    done = f" ({timeline(bad.call.events)})" if bad.call.events else ""
    if policy == "raise":
        did = f"does not raise for {what}"
    elif bad.call.error:
        did = f"raises for {what} ({bad.call.error})"
    elif policy == "skip":
        did = f"moves {some_of(bad.moved)} with {what}{done}"
    else:
        did = f"leaves all parameters finite after {what}{done}"
    advice = {
        "raise": "test loss or gradient before the update, and raise",
        "skip": "test the gradient before the update, and leave parameters and state as they are",
        "propagate": "claim what it does instead: nonfinite='skip'",
    }
    return f"the step {did}, where nonfinite={policy!r} is claimed; {advice[policy]}"


def _stuck(run: Run, bad: Spoilt) -> str:
    """A training that never goes on after a batch that it left out."""
    later = [w for w in run.windows if w.first > bad.after and w.updates]
    if not bad.after or later or len(run.calls) <= bad.after:
        return ""
    count = len(run.calls) - bad.after
    if count < LEAST:
        return ""
    return (
        f"the step makes no update any more after a batch that is not finite: none in {count} "
        f"further calls; what is not finite stays somewhere, in gradients that are zeroed only "
        f"after an update, or in the model: zero them where a batch is skipped, too"
    )


def _held(bad: Spoilt) -> list[Finding]:
    if not bad.buffers:
        return []
    return [
        Finding(
            code="step-nonfinite",
            severity="warn",
            where=bad.buffers[0],
            message=f"a batch that is not finite is skipped, but leaves {some_of(bad.buffers)} not "
            f"finite, with which the model is evaluated later; test the batch before the model "
            f"is called",
        )
    ]
