"""What a clip does with inf and nan, held against the policy that is claimed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pytest_gradcheck.backends.clips import Clipped
from pytest_gradcheck.checks.clipping.cases import Case
from pytest_gradcheck.checks.clipping.claim import Claim
from pytest_gradcheck.checks.clipping.judge import present
from pytest_gradcheck.results import Finding

# "inf" among gradients that are clipped by their values is no accident: it becomes the threshold.
WORDS = {
    "propagate": "lets it be seen in the gradients or the returned norm",
    "raise": "raises",
    "zero": "makes zeros of it in silence",
    "skip": "leaves every gradient as it is",
    "hide": "hides it: what comes out is finite and looks like a gradient",
}


def findings(pairs: Sequence[tuple[Case, Clipped]], claim: Claim) -> list[Finding]:
    """What was seen to happen to inf and nan, and whether that was claimed."""
    found = []
    for case, got in pairs:
        seen = _seen(got, claim)
        if claim.nonfinite is not None:
            if claim.nonfinite not in seen:
                found.append(_accused(case, seen[0], claim.nonfinite))
        elif seen[0] == "hide":
            found.append(_accused(case, "hide", "propagate"))
        elif seen[0] == "zero":
            found.append(_silent(case))
    return found


def _seen(got: Clipped, claim: Claim) -> tuple[str, ...]:
    """The policies that an outcome is in line with, the plainest first."""
    if got.error:
        return ("raise",)
    before, after = present(got.before), present(got.after)
    if before.shape != after.shape:  # gradients are taken away, which an optimizer passes over
        return ("skip",)
    if np.array_equal(before, after, equal_nan=True):
        return ("skip", "propagate")
    bad = ~np.isfinite(before)
    if np.any(~np.isfinite(after)):
        return ("propagate",)
    is_told = got.returned is not None and not np.isfinite(got.returned)
    turned = np.any(after[~bad] * before[~bad] < 0)
    if not turned and (np.all(after == 0) or np.all(after[bad] == 0)):
        return ("propagate", "zero") if is_told else ("zero",)
    if claim.max_value is not None and not np.any(np.isnan(before)):
        limit = claim.threshold
        if np.allclose(after[bad], np.clip(before[bad], -limit, limit)):
            return ("propagate", "zero", "skip")  # a threshold is what is claimed for it
    return ("propagate",) if is_told else ("hide",)


def _accused(case: Case, seen: str, claimed: str) -> Finding:
    return Finding(
        code="clip-nonfinite",
        severity="fail",
        message=f"{WORDS[seen]} ({case.name}), where nonfinite={claimed!r} is expected; "
        f"test the norm for inf and nan before it is used",
    )


def _silent(case: Case) -> Finding:
    return Finding(
        code="clip-nonfinite",
        severity="warn",
        message=f"{WORDS['zero']} ({case.name}); claim nonfinite='zero' if that is meant",
    )
