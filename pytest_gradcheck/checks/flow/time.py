"""Recurrences: how the gradient changes from the last time step to the first.

The states of a recurrence are of one kind, so that their gradients can be compared as they are.
That it fades is the rule for recurrent networks as they are initialised (Pascanu, Mikolov and
Bengio 2013), and no fault of a model that is to remember a few steps only; that it grows is one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from pytest_gradcheck.backends.layers import Pass
from pytest_gradcheck.checks.flow.branches import base
from pytest_gradcheck.checks.flow.symptom import Numbers, Symptom
from pytest_gradcheck.numerics import depth
from pytest_gradcheck.numerics.intervals import of_mean

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

CALLS = 4  # of one layer that make it a recurrence
FADED, GROWN = -4.0, 2.0  # decades over the time steps


def symptoms(passes: Sequence[Pass]) -> list[Symptom]:
    """What the time steps of recurrent layers show."""
    found: dict[str, Symptom] = {}
    rows = [_changes(one) for one in passes]
    for name in rows[0] if rows else ():
        values = [row[name] for row in rows if math.isfinite(row.get(name, math.nan))]
        if not values:
            continue
        change = of_mean(values, 0.5)
        numbers: Numbers = (("attenuation", 10.0 ** max(-300.0, min(300.0, change.mean))),)
        factor = f"{10**change.mean:.1e}"
        told = f"from the last time step to the first, the gradient changes by {factor}"
        if change.low > GROWN:
            found.setdefault("growing", Symptom("growing", name, told, numbers))
        elif change.high < FADED:
            found.setdefault("fading", Symptom("fading", name, told, numbers, "note"))
    return list(found.values())


def _changes(one: Pass) -> dict[str, float]:
    """Log10 of the gradient of the first call over that of the last, by layer."""
    calls: dict[str, list[float]] = {}
    for layer in one.layers:
        calls.setdefault(base(layer.name), []).append(layer.gradient)
    often = {name: sizes for name, sizes in calls.items() if len(sizes) >= CALLS}
    return dict(one.fades) | {n: depth.log_ratio(g[0], g[-1]) for n, g in often.items()}
