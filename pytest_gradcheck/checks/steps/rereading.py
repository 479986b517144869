"""Windows that may be read in two ways: whose first batches, or most of them, are left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
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

# What is said of windows that lose some of their calls, or are not as long as others.
COUNTED = ("step-gradient-dropped", "step-window", *UNNAMED)

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
    found = once_more(loop, batches, contract, limits)
    again = _failing(found[1][0])
    if not again or (codes[0] in UNNAMED and again[0] not in UNNAMED):
        return found
    loop.reread(False)
    return told


def by_batch(
    loop: Loop,
    batches: Sequence[Any],
    contract: Contract,
    limits: Limits,
    told: Told,
) -> Told:
    """Nobody is accused of losing micro-batches whose updates come with batches, not with calls.

    A step that leaves out the same batches in every epoch looks like one that counts calls. So the
    epoch begins with another batch: one that counts still updates at the same calls, and one that
    chooses at the same batches.
    """
    codes = _failing(told[1][0])
    if not codes or codes[0] not in COUNTED or contract.accumulate is not None or len(batches) < 2:
        return told
    with loop.held():
        later = run(loop, [*batches[1:], *batches[:1]], contract, int(limits.number("step_calls")))
    first, second = ([w.last for w in seen.windows] for seen in (told[0], later))
    count = len(batches)
    chosen = {(n - 1) % count for n in first}, {n % count for n in second}
    if first == second or chosen[0] != chosen[1] or len(chosen[0]) == count:
        return told
    return once_more(loop, batches, replace(contract, accumulate=1), limits)


def once_more(loop: Loop, batches: Sequence[Any], contract: Contract, limits: Limits) -> Told:
    """The training run from its start again with all gradients, and what is said of it."""
    with loop.held():
        seen = run(loop, batches, contract, int(limits.number("step_calls")))
        return seen, judged(seen, contract, limits)


def _failing(findings: Sequence[Finding]) -> list[str]:
    return [f.code for f in ordered(findings) if f.severity == "fail"]
