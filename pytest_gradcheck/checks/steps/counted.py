"""Windows of another number of micro-batches than claimed, and a short last one that is left."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_gradcheck.checks.steps.contract import Contract
from pytest_gradcheck.checks.steps.received import Pair
from pytest_gradcheck.checks.steps.windows import Window
from pytest_gradcheck.results import Finding


def findings(pairs: Sequence[Pair], contract: Contract) -> list[Finding]:
    """Another number of micro-batches than claimed; a short last window that is left."""
    windows = [p.window for p in pairs]
    counts = [len(w.batches) for w in windows]
    claimed = contract.accumulate
    if claimed is None:
        claimed = max(set(counts), key=counts.count)
    if contract.weights == "window" and min(counts) < claimed:
        return [_short(min(windows, key=lambda w: len(w.batches)), claimed)]
    odd = [w for w in windows if len(w.batches) > claimed]
    if not odd and contract.accumulate and max(counts) < claimed:
        odd = windows[:1]
    if not odd:
        return []
    return [
        Finding(
            code="step-window",
            severity="fail" if contract.accumulate else "warn",
            message=f"update {odd[0].number} comes after {len(odd[0].batches)} calls of the step, "
            f"where {claimed} {'are' if contract.accumulate else 'were'} "
            f"{'claimed' if contract.accumulate else 'usual'}; count calls, and step when the "
            f"window is full",
        )
    ]


def _short(window: Window, full: int) -> Finding:
    count = len(window.batches)
    return Finding(
        code="step-window",
        severity="note",
        message=f"update {window.number} comes after {count} of {full} calls, and its gradient is "
        f"divided by {full} all the same, as weights='window' says",
    )
