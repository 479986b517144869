"""Windows of another number of micro-batches than claimed, and a short last one that is left."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_gradcheck.checks.steps import weighing
from pytest_gradcheck.checks.steps.contract import Contract
from pytest_gradcheck.checks.steps.measure import Run
from pytest_gradcheck.checks.steps.received import Pair
from pytest_gradcheck.results import Finding


def findings(run: Run, pairs: Sequence[Pair], contract: Contract) -> list[Finding]:
    """Another number of micro-batches than claimed; a short last window that is left."""
    counts, full = weighing.calls(run, pairs, contract)
    if contract.weights == "window" and min(counts) < full:
        return [_short(counts.index(min(counts)) + 1, min(counts), full)]
    odd = [k for k, count in enumerate(counts) if count > full]
    if not odd and contract.accumulate and max(counts) < full:
        odd = [0]
    if odd:
        return [_other(odd[0] + 1, counts[odd[0]], full, contract)]
    # At the end of an epoch a window may be short; the first one begins with the run.
    if counts[0] < full and counts[1:2] == [full]:
        is_fault = contract.accumulate is not None or bool(pairs[0].wrong)
        return [_from_zero(counts[0], full, is_fault)]
    return []


def _from_zero(count: int, full: int, is_fault: bool) -> Finding:
    return Finding(
        code="step-window",
        severity="fail" if is_fault else "warn",
        message=f"the first update comes after {count} call{'s' if count > 1 else ''} of the step, "
        f"and those after it after {full}; count calls from 1: where k % {full} == 0 is asked "
        f"before k is increased, the first window is short",
    )


def _other(number: int, count: int, full: int, contract: Contract) -> Finding:
    return Finding(
        code="step-window",
        severity="fail" if contract.accumulate else "warn",
        message=f"update {number} comes after {count} call{'s' if count > 1 else ''} of the step, "
        f"where {full} {'are' if contract.accumulate else 'were'} "
        f"{'claimed' if contract.accumulate else 'usual'}; count calls, and step when the "
        f"window is full",
    )


def _short(number: int, count: int, full: int) -> Finding:
    return Finding(
        code="step-window",
        severity="note",
        message=f"update {number} comes after {count} of {full} calls, and its gradient is "
        f"divided by {full} all the same, as weights='window' says",
    )
