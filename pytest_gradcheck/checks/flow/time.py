"""Recurrences: how the gradient changes from the last time step to the first.

The states of a recurrence are of one kind, so that their gradients can be compared as they are.
That it fades is the rule for recurrent networks as they are initialised (Pascanu, Mikolov and
Bengio 2013), and no fault of a model that is to remember a few steps only; that it grows is one. A
loss that counts the first steps for more places more gradient there itself: by how much, a pass
shows in which no state is carried on.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from pytest_gradcheck.backends.layers import Layer, Pass
from pytest_gradcheck.checks.flow.branches import base
from pytest_gradcheck.checks.flow.passes import Passes
from pytest_gradcheck.checks.flow.symptom import Numbers, Symptom
from pytest_gradcheck.numerics import depth
from pytest_gradcheck.numerics.intervals import of_mean
from pytest_gradcheck.results import Severity

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

CALLS = 4  # of one layer that make it a recurrence
FADED, GROWN = -4.0, 2.0  # decades over the time steps


def symptoms(passes: Passes) -> list[Symptom]:
    """What the time steps of recurrent layers show."""
    found: dict[str, Symptom] = {}
    rows = [_changes(one) for one in passes.finite]
    for name in rows[0] if rows else ():
        values = [row[name] for row in rows if math.isfinite(row.get(name, math.nan))]
        if not values:
            continue
        change = of_mean(values, 0.5)
        placed = _placed(passes, name) if change.low > GROWN else 0.0
        if placed > 0:
            change = of_mean([value - placed for value in values], 0.5)
        numbers: Numbers = (("attenuation", 10.0 ** max(-300.0, min(300.0, change.mean))),)
        factor = f"{10**change.mean:.1e}"
        told = f"from the last time step to the first, the gradient changes by {factor}"
        if change.low > GROWN:
            if math.isnan(placed):
                told += ", unless the loss itself counts the first ones for more"
            severity: Severity = "warn" if math.isnan(placed) else "fail"
            found.setdefault("growing", Symptom("growing", name, told, numbers, severity))
        elif change.high < FADED:
            found.setdefault("fading", Symptom("fading", name, told, numbers, "note"))
    return list(found.values())


def _changes(one: Pass) -> dict[str, float]:
    """Log10 of the gradient of the first call over that of the last, by layer."""
    calls: dict[str, list[int]] = {}
    for number, layer in enumerate(one.layers):
        calls.setdefault(base(layer.name), []).append(number)
    named = _weighted(one)
    found = dict(one.fades)
    for name, numbers in calls.items():
        chain = _chain(one.layers, numbers) if name in named else []
        if len(chain) >= CALLS:
            first, last = (one.layers[chain[k]].gradient for k in (0, -1))
            found[name] = depth.log_ratio(first, last)
    return found


def _placed(passes: Passes, name: str) -> float:
    """Decades by which the loss itself puts more on some time step than on the last; at least 0.

    NaN where that cannot be asked.
    """
    found = []
    pairs = zip(passes.states, passes.seen, strict=False)
    for state, one in ((state, one) for state, one in pairs if one.is_finite):
        made = passes.probe.forgetful(state, name)
        if made is None or len(made.layers) != len(one.layers):
            return 0.0 if name in dict(one.fades) else math.nan
        if name in dict(made.fades):
            found.append(dict(made.fades)[name])
            continue
        calls = [n for n, y in enumerate(one.layers) if base(y.name) == name]
        sizes = [made.layers[n].gradient for n in _chain(one.layers, calls)]
        if sizes and sizes[-1] > 0:
            found.append(depth.log_ratio(max(sizes), sizes[-1]))
    return max(0.0, statistics.median(found)) if found else 0.0


def _weighted(one: Pass) -> set[str]:
    """Layers with a weight to be used again: a dropout or a norm that is shared recurs nowhere."""
    names = {base(y.name) for y in one.layers}
    found = {base(y.name) for y in one.layers if y.kind == "linear"}
    for p in one.parameters:
        owner = p.name if len(p.shape) > 1 else ""
        while owner:
            found |= {owner} & names
            owner = owner.rpartition(".")[0]
    return found or names  # a record tells neither kinds nor parameters


def _chain(layers: Sequence[Layer], calls: Sequence[int]) -> list[int]:
    """The longest sequence of calls of one size that are each fed by the one before."""
    if any(y.parents is None for y in layers):
        return list(calls)
    size = statistics.mode(layers[n].size for n in calls)
    states = {n for n in calls if layers[n].size == size}
    behind: list[list[int]] = []  # the longest sequence that ends at or before each layer
    for n, layer in enumerate(layers):
        fed = [behind[p] for p in layer.parents or () if p < n]
        longest: list[int] = max(fed, key=len, default=[])
        behind.append([*longest, n] if n in states else longest)
    return max(behind, key=len, default=[])
