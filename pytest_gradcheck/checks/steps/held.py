"""The state of an optimizer, where the gradient itself cannot be seen.

Adam and its kin move the same for every scale of the gradient, so no check of parameters sees a
loss scale that was not removed or a clip that does not clip. Their first moment shows it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pytest_gradcheck.checks.steps.measure import Run
from pytest_gradcheck.numerics import clipping
from pytest_gradcheck.numerics.replay import Move, states
from pytest_gradcheck.numerics.variants import Change
from pytest_gradcheck.results import Finding

ALIKE = 1e-4  # of a cosine from 1
EXACT = 1e-3  # of a factor


def findings(run: Run, moves: dict[int, list[Move]], name: str, change: Change) -> list[Finding]:
    """A first moment that is another multiple of the right one than a convention makes it."""
    if len(moves) < len(run.loop.parameters) or not any(m.slack for m in moves[0]):
        return []
    wanted = [states(name, moves[i], change).get("m") for i in range(len(moves))]
    if any(w is None for w in wanted):
        return []
    right = clipping.flat([w for w in wanted if w is not None])
    beta = moves[0][-1].hyper["betas"][0]
    ratios = list(_alike(run.loop.slots(), right))
    if not ratios or any(abs(r / c - 1) < EXACT for r in ratios for c in (1.0, 1 / (1 - beta))):
        return []
    ratio = ratios[0]
    return [
        Finding(
            code="step-gradient-scale",
            severity="fail",
            message=f"the optimizer received {ratio:.4g} times the right gradient, as its first "
            f"moment shows; look for a loss scale, a sum for a mean, or a clip that is left out",
            numbers=(("ratio", ratio),),
        )
    ]


def _alike(slots: Sequence[Sequence[np.ndarray]], right: np.ndarray) -> list[float]:
    """Ratios of the groups of the state that point where the right moment points."""
    found = []
    for group in slots:
        ratio, cosine = clipping.ratio(clipping.flat(group), right)
        if cosine > 1 - ALIKE:
            found.append(ratio)
    return found
