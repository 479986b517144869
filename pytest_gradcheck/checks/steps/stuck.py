"""Parameters that are zero and factors of one another, so that none of them gets a gradient."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from pytest_gradcheck.checks.steps.measure import Run
from pytest_gradcheck.checks.steps.received import Pair
from pytest_gradcheck.numerics import precision
from pytest_gradcheck.results import Finding

NOISE = 100.0  # roundings by which a loss may change with what it does not depend on


def findings(run: Run, pairs: Sequence[Pair], unused: Sequence[int]) -> list[Finding]:
    """What is told of those among the parameters that no single one of which moves the loss.

    Args:
        run: What was seen.
        pairs: Its windows.
        unused: Numbers of the parameters that have no gradient, and of which alone none counts.
    """
    zeros = [i for i in unused if _is_stuck(pairs, i)]
    if len(zeros) < 2:
        return []
    here, there = _loss(run, pairs, ()), _loss(run, pairs, zeros)
    if not _is_another(run, here, there):
        return []
    kept = [i for i in zeros if _is_another(run, there, _loss(run, pairs, {*zeros} - {i}))]
    if len(kept) < 2:
        return []
    names = [run.names[i] for i in kept]
    more = f" (and {len(names) - 2} more)" if len(names) > 2 else ""
    return [
        Finding(
            code="step-unused",
            severity="fail",
            where=names[0],
            message=f"{names[0]} and {names[1]}{more} are zero, and the loss changes only with "
            f"several of them at once: none of them will ever get a gradient; begin with numbers "
            f"other than zero in one factor of each product",
        )
    ]


def _is_stuck(pairs: Sequence[Pair], i: int) -> bool:
    """Whether a parameter is all zeros, and its gradient as well, each time."""
    grads = [g for p in pairs for g in [p.expected.raw[i], *(m[i] for m in p.window.micro)]]
    return all(not np.any(p.window.at[i]) for p in pairs) and all(
        g is not None and not np.any(g) for g in grads
    )


def _loss(run: Run, pairs: Sequence[Pair], which: Iterable[int]) -> float:
    """The loss with some parameters at other numbers than zero."""
    window = pairs[0].window
    at = list(window.at)
    for i in which:
        at[i] = np.cos(np.arange(at[i].size) + i).reshape(at[i].shape)
    return run.loop.value(window.batches[0], at, window.marks[0])


def _is_another(run: Run, one: float, other: float) -> bool:
    rounding = NOISE * precision.epsilon(run.coarsest) * max(abs(one), abs(other))
    return bool(np.isfinite(other) and abs(one - other) > rounding)
