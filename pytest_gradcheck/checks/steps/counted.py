"""Windows of another number of micro-batches than claimed, and a short last one that is left."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_gradcheck.checks.steps import weighing
from pytest_gradcheck.checks.steps.contract import Contract
from pytest_gradcheck.checks.steps.measure import Run
from pytest_gradcheck.checks.steps.received import Pair
from pytest_gradcheck.checks.steps.windows import Window
from pytest_gradcheck.results import Finding


def findings(run: Run, pairs: Sequence[Pair], contract: Contract) -> list[Finding]:
    """Another number of micro-batches than claimed; a short last window that is left."""
    windows = [p.window for p in pairs]
    counts = [w.count for w in windows]
    full = weighing.full(run, contract)
    if contract.weights == "window" and min(counts) < full:
        return [_short(min(windows, key=lambda w: w.count), full)]
    odd = [w for w in windows if w.count > full]
    if not odd and contract.accumulate and max(counts) < full:
        odd = windows[:1]
    if odd:
        return [_other(odd[0], full, contract)]
    # At the end of an epoch a window may be short; the first one begins with the run.
    if counts[0] < full and counts[1:2] == [full]:
        return [_from_zero(pairs[0], full, contract)]
    return []


def _from_zero(pair: Pair, full: int, contract: Contract) -> Finding:
    count = pair.window.count
    is_fault = contract.accumulate is not None or bool(pair.wrong)
    return Finding(
        code="step-window",
        severity="fail" if is_fault else "warn",
        message=f"the first update comes after {count} call{'s' if count > 1 else ''} of the step, "
        f"and those after it after {full}; count calls from 1: where k % {full} == 0 is asked "
        f"before k is increased, the first window is short",
    )


def _other(window: Window, full: int, contract: Contract) -> Finding:
    return Finding(
        code="step-window",
        severity="fail" if contract.accumulate else "warn",
        message=f"update {window.number} comes after {window.count} calls of the step, "
        f"where {full} {'are' if contract.accumulate else 'were'} "
        f"{'claimed' if contract.accumulate else 'usual'}; count calls, and step when the "
        f"window is full",
    )


def _short(window: Window, full: int) -> Finding:
    count = window.count
    return Finding(
        code="step-window",
        severity="note",
        message=f"update {window.number} comes after {count} of {full} calls, and its gradient is "
        f"divided by {full} all the same, as weights='window' says",
    )
