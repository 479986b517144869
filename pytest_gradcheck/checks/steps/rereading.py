"""Functional steps whose very first batches may be left out: their windows read the other way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pytest_gradcheck.backends.steps import Loop
from pytest_gradcheck.checks.steps.contract import Contract
from pytest_gradcheck.checks.steps.judged import judged
from pytest_gradcheck.checks.steps.measure import run
from pytest_gradcheck.checks.steps.verdict import ordered
from pytest_gradcheck.limits import Limits
from pytest_gradcheck.results import Finding

# What is said of a window that is none, or of a gradient that nothing explains.
UNNAMED = ("step-missing-gradient", "step-wrong-gradient", "step-not-compared")

if TYPE_CHECKING:
    from pytest_gradcheck.checks.steps.check import Told


def reread(
    loop: Loop,
    batches: Sequence[Any],
    contract: Contract,
    limits: Limits,
    told: Told,
) -> Told:
    """Nobody is accused by one reading of the calls, where there is another by which all is right.

    A call that changes the state and no parameter may end a window (at a rate of 0), or be the
    first that gathers, after others that left their batches out.
    """
    codes = _failing(told[1][0])
    if not codes or not hasattr(loop, "reread") or not loop.reread(True):
        return told
    with loop.held():
        seen = run(loop, batches, contract, int(limits.number("step_calls")))
        found = judged(seen, contract, limits)
    again = _failing(found[0])
    if not again or (codes[0] in UNNAMED and again[0] not in UNNAMED):
        return seen, found
    loop.reread(False)
    return told


def _failing(findings: Sequence[Finding]) -> list[str]:
    return [f.code for f in ordered(findings) if f.severity == "fail"]
