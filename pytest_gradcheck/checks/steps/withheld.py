"""Parameters in whose place a transformation is given None, as by a partition of a module (JAX)."""

from __future__ import annotations

from dataclasses import replace

from pytest_gradcheck.checks.steps import still
from pytest_gradcheck.checks.steps.contract import Contract, matches
from pytest_gradcheck.checks.steps.measure import Run, some_of
from pytest_gradcheck.results import Finding


def freeze(run: Run) -> None:
    """Take what is held back in every update, and never moves, for frozen.

    Nothing else of such a step says what it means to train; a gradient that is lost on its way
    arrives as zeros, or its place is missing.
    """
    held = _held_back(run)
    run.loop.parameters = [
        replace(p, trainable=False) if i in held else p for i, p in enumerate(run.loop.parameters)
    ]


def findings(run: Run, contract: Contract) -> list[Finding]:
    """What is told of them, where no claim says so."""
    names = [run.names[i] for i in sorted(_held_back(run))]
    names = [name for name in names if not matches(name, contract.frozen)]
    if not names:
        return []
    return [
        Finding(
            code="step-not-registered",
            severity="warn",
            where=names[0],
            message=f"{some_of(names)} never reached the optimizer, which is given None in "
            f"{'its' if len(names) == 1 else 'their'} place, as where a part of a module is "
            f"frozen; claim that with frozen=",
        )
    ]


def _held_back(run: Run) -> set[int]:
    given = [u.received for w in run.windows for u in w.updates]
    if not given or any(received is None for received in given):
        return set()
    return {
        i
        for i, p in enumerate(run.loop.parameters)
        if p.owners is None
        and all(received[i] is None for received in given if received is not None)
        and not still.moved(run, i)
    }
