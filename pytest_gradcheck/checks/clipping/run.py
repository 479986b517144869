"""A clip being called, case by case."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np

from pytest_gradcheck.backends.clips import Clipped, Clipper
from pytest_gradcheck.checks.clipping.cases import Case
from pytest_gradcheck.checks.clipping.judge import Judged, judged, present
from pytest_gradcheck.limits import Limits
from pytest_gradcheck.results import Finding


@dataclass(slots=True, eq=False)
class Run:
    """A clip, the limits it is judged by, and how often it was called."""

    clipper: Clipper
    limits: Limits
    count: int = 0

    def judged(self, case: Case) -> Judged | Finding | None:
        """One case, or the finding that the clip raised; None if the precision cannot hold it."""
        got = self.call(case)
        if not np.all(np.isfinite(present(got.before))):
            return None
        if got.error:
            return Finding(
                code="clip-zero-gradient" if case.kind == "zero" else "clip-raised",
                severity="fail",
                message=f"raised for {case.name} in {case.dtype}: {got.error}{self._guessed(case)}",
            )
        if got.lost:
            return Finding(
                code="clip-lost",
                severity="fail",
                message=f"{got.lost}; return every one, in the structure in which they come",
            )
        if [g is None for g in got.before] != [g is None for g in got.after]:
            return Finding(
                code="clip-none",
                severity="fail",
                message="makes a gradient of None, or the reverse",
            )
        rounding = self.limits.number("clip_rounding", case.dtype)
        return judged(case, got, self.clipper.parameters(), rounding)

    def _guessed(self, case: Case) -> str:
        """Advice where nobody said what the clip takes, and ordinary gradients are not it."""
        if self.clipper.dtype or case.kind != "plain":
            return ""
        return "; give params= if it takes something else than a list of arrays of several shapes"

    def call(self, case: Case) -> Clipped:
        """What the clip makes of a case."""
        self.count += 1
        roles = {k: v for k, v in case.claim.settings().items() if k in self.clipper.settings}
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            return self.clipper.clip(case.gradients, case.dtype, roles)
