"""Claims that nothing uses: refused where that is known before, else told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from pytest_gradcheck.backends.steps import Loop
from pytest_gradcheck.checks.steps.contract import Contract, matches
from pytest_gradcheck.checks.steps.measure import Run
from pytest_gradcheck.checks.steps.received import Pair
from pytest_gradcheck.errors import UsageError
from pytest_gradcheck.numerics.hyperparameters import TAKES
from pytest_gradcheck.results import Finding

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these


def require_used(contract: Contract, loops: Sequence[Loop]) -> None:
    """Refuse a hyperparameter that no claimed or inferred rule has: nothing would check it.

    Raises:
        UsageError: No rule has it, and every rule is known.
    """
    rules = [contract.optimizer or rule for loop in loops for rule in loop.rules]
    if not all(rules):
        return
    taken = {name for rule in rules for name in TAKES[rule]}
    for name, value in contract.hyper.items():
        if value and name not in taken:
            told = " and ".join(dict.fromkeys(rules))
            raise UsageError(
                f"{name}={value!r} is not used by {told}, which takes {', '.join(sorted(taken))}"
            )


def freeze(contract: Contract, loops: Sequence[Loop]) -> None:
    """Take what is claimed to be frozen for that where nothing else says so (JAX, NumPy)."""
    for loop in loops:
        loop.parameters = [
            replace(p, trainable=False)
            if p.owners is None and matches(p.name, contract.frozen)
            else p
            for p in loop.parameters
        ]


def _contradicted(run: Run, pairs: Sequence[Pair], contract: Contract) -> list[str]:
    """What is claimed and is otherwise in the optimizer itself, where updates fit both."""
    keys = {*contract.hyper, *(["lr"] if contract.schedule is not None else [])}
    keys |= {"weight_decay"} if contract.no_decay else set()
    for number, pair in enumerate(pairs if keys else ()):
        for update in pair.window.updates:
            for tracked, group in zip(run.loop.parameters, update.hyper, strict=True):
                claimed = contract.at(tracked.name, group, number) if group else {}
                for key in sorted(keys & {*group}):
                    if not _is_near(claimed[key], group[key]):
                        return [
                            f"{key}={claimed[key]} is claimed, and {run.loop.shown} has "
                            f"{group[key]} for {tracked.name} at update {number + 1}: the updates "
                            f"fit both"
                        ]
    return []


def _is_near(claimed: Any, used: Any) -> bool:
    """Whether two hyperparameters are the same, but for rounding."""
    try:
        return bool(np.allclose(claimed, used, rtol=1e-6, atol=0.0))
    except (TypeError, ValueError):  # they are no numbers
        return bool(claimed == used)


def findings(run: Run, pairs: Sequence[Pair], contract: Contract) -> list[Finding]:
    """Claims that nothing in this run could contradict."""
    told = []
    count = len(run.windows)
    if isinstance(contract.schedule, Sequence) and len(contract.schedule) < count:
        told.append(
            f"schedule= has {len(contract.schedule)} rates for {count} updates, and the last one "
            f"counted for the rest; claim a rate for each, or a function"
        )
    if contract.weights != "samples" and all(len(p.window.batches) == 1 for p in pairs):
        told.append("weights= is claimed, and no update has several calls; leave the claim out")
    unread = [*contract.hyper, *(["schedule"] if contract.schedule is not None else [])]
    if unread and not contract.optimizer and not any(run.loop.rules):
        told.append(
            f"{', '.join(f'{name}=' for name in unread)} is claimed of {run.loop.shown}, which is "
            f"not replayed; claim optimizer= too"
        )
    told += _contradicted(run, pairs, contract)
    named = "max_norm=" if contract.max_norm is not None else "max_value="
    is_clipped = contract.max_norm is not None or contract.max_value is not None
    is_heard = run.loop.name != "torch" or any(w.clips for w in run.windows)
    if is_clipped and not is_heard and not any(p.expected.bites for p in pairs):
        told.append(
            f"{named} is claimed, no clip of torch was called, and no gradient was above it; see "
            f"that the step clips"
        )
    return [Finding(code="weak-claim", severity="warn", message=text) for text in told]
