"""Parameters that are written outside of the optimizer's updates: beside them, or over them."""

from __future__ import annotations

import numpy as np

from pytest_gradcheck.backends.steps import Call
from pytest_gradcheck.checks.steps.measure import Run
from pytest_gradcheck.numerics import clipping
from pytest_gradcheck.results import Finding

KEPT = 0.5  # least share of the updates that must be left
BOUNDS = 2  # values at which a clip of weights leaves what it changes


def findings(run: Run) -> list[Finding]:
    """The first parameter that is written, and whether its updates are undone by that."""
    if any(t.shadow >= 0 for t in run.loop.parameters):
        return []  # the copies of master weights
    stray = [i for i, t in enumerate(run.loop.parameters) if t.trainable and t.owners != 0]
    written = [i for i in stray if any(_is_written(call, i) for call in run.calls)]
    if not written:
        return []
    name = run.names[written[0]]
    kept = _kept(run, written)
    if kept < KEPT and not all(_is_clipped(run, i) for i in written):
        return [
            Finding(
                code="step-written",
                severity="fail",
                where=name,
                message=f"{name} is written over outside of the optimizer's update, of which at "
                f"most {max(kept, 0.0):.0%} is left in most calls; keep an average of weights "
                f"beside the model, and look at what is copied which way",
                numbers=(("kept", kept),),
            )
        ]
    return [
        Finding(
            code="step-written",
            severity="warn",
            where=name,
            message=f"{name} changes outside of the optimizer's update; this is right for weights "
            f"that are clipped or averaged only",
        )
    ]


def _is_written(call: Call, i: int) -> bool:
    ends = [call.before, *(x for u in call.updates for x in (u.before, u.after)), call.after]
    return any(
        a[i] is not b[i] and not np.array_equal(a[i], b[i], equal_nan=True)
        for a, b in zip(ends[::2], ends[1::2], strict=True)
    )


def _kept(run: Run, written: list[int]) -> float:
    """The share of its updates that is left after a call: no more than that in most of them."""
    shares = []
    for call in run.calls:
        moves = [[u.after[i] - u.before[i] for i in written] for u in call.updates]
        if moves:
            update = clipping.flat([np.sum(column, axis=0) for column in zip(*moves, strict=True)])
            whole = clipping.flat([call.after[i] - call.before[i] for i in written])
            size = float(np.vdot(update, update))
            shares.append(float(np.vdot(whole, update)) / size if size else 1.0)
    return sorted(shares)[len(shares) // 2] if shares else 1.0


def _is_clipped(run: Run, i: int) -> bool:
    """Whether what is written stands at one of two bounds afterwards, and was beyond it."""
    ends = [(c.after[i], c.updates[-1].after[i]) for c in run.calls if c.updates]
    values = np.concatenate([after[after != updated] for after, updated in ends])
    beyond = np.concatenate([(updated - after)[after != updated] for after, updated in ends])
    bounds = np.unique(values)
    sides = [np.unique(np.sign(beyond[values == bound])).size for bound in bounds[:BOUNDS]]
    return len(bounds) <= BOUNDS and all(count == 1 for count in sides)
