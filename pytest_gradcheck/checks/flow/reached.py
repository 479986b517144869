"""Parameters that no gradient reaches, or one that is exactly zero.

A layer may be left out by chance (stochastic depth: Huang et al. 2016, arXiv 1603.09382), or for
all samples of a batch (experts: Shazeer et al. 2017, arXiv 1701.06538); neither is a fault.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from pytest_gradcheck.backends.layers import Parameter, Pass
from pytest_gradcheck.checks.flow.frozen import is_declared
from pytest_gradcheck.checks.flow.parameters import several
from pytest_gradcheck.checks.flow.passes import MOST, Passes, constant
from pytest_gradcheck.checks.flow.symptom import Symptom
from pytest_gradcheck.numerics import depth
from pytest_gradcheck.results import Severity

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

DRAWS = 12  # of random numbers in which a layer must be without a gradient each time
IDLE = 6  # of other samples, or seeds, in a row that show nothing new

Holds = Callable[[Parameter], bool]
HOLDS: dict[str, Holds] = {
    "missing": lambda p: math.isnan(p.gradient),
    "zero": lambda p: not p.gradient > 0,
}


def missing(passes: Passes, frozen: Sequence[str]) -> list[Symptom]:
    """Parameters that may move and get no gradient."""
    return _missing(_names("missing", passes, frozen), passes)


def zero(passes: Passes, frozen: Sequence[str]) -> list[Symptom]:
    """Gradients that are exactly zero in every initialisation."""
    return _zero(_names("zero", passes, frozen), passes) or _silent(passes)


def is_rounding(passes: Passes, state: Any, frozen: Sequence[str]) -> bool:
    """Whether gradients that were zero are what rounding makes of zero in a later state.

    In another precision they are of another size then.
    """
    later = {p.name: p.gradient for p in passes.probe.measure(state).parameters}
    other = passes.probe.repeated(state)[1]
    names = [n for n in _names("zero", passes, frozen) if later.get(n, 0) > 0 and n in other]
    gaps = [abs(depth.log_ratio(later[n], other[n])) if other[n] > 0 else math.inf for n in names]
    return bool(gaps) and min(gaps) > 1.0


def settled(passes: Passes, found: Sequence[Symptom], frozen: Sequence[str]) -> tuple[Symptom, ...]:
    """The symptoms, those of parameters that other samples or seeds reach as notes."""
    told: list[Symptom] = []
    for symptom in found:
        if symptom.severity != "fail" or symptom.kind not in HOLDS:
            told.append(symptom)
            continue
        names = _names(symptom.kind, passes, frozen)
        always = _by_samples(symptom.kind, passes, names)
        if len(always) == len(names):
            told.append(symptom)
            continue
        made = (_missing if symptom.kind == "missing" else _zero)(always, passes)
        told += [*made, _idle([n for n in names if n not in always], symptom.kind)]
    return tuple(sorted(told, key=lambda s: s.severity != "fail"))


def _names(kind: str, passes: Passes, frozen: Sequence[str]) -> list[str]:
    """Names for which it holds in every initialisation, whatever the random numbers are."""
    if kind == "missing":
        parameters = [one.parameters for one in passes.seen]
        found = constant(parameters, lambda p: p.trainable and math.isnan(p.gradient))
    else:
        found = constant([one.parameters for one in passes.finite], lambda p: p.gradient == 0)
    names = [n for n in found if not is_declared(n, frozen)]
    return _still(passes, names, HOLDS[kind], passes.probe.again, DRAWS)


def _by_samples(kind: str, passes: Passes, names: list[str]) -> list[str]:
    """Those for which it holds with other samples, and other seeds, too."""
    names = _still(passes, names, HOLDS[kind], passes.probe.shuffled, IDLE)
    if not passes.is_single and not passes.probe.most:
        names = _still(passes, names, HOLDS[kind], lambda _, n: _redrawn(passes, n), IDLE)
    return names


def _redrawn(passes: Passes, number: int) -> Pass | None:
    return passes.probe.measure(passes.probe.draw(passes.seed + MOST + number))


def _still(
    passes: Passes,
    names: list[str],
    holds: Holds,
    draw: Callable[[Any, int], Pass | None],
    patience: int,
) -> list[str]:
    """The names that are left after some draws; after ``patience`` of them that change nothing."""
    last = 0
    for number in range(1, DRAWS + 1 if passes.states else 0):
        one = draw(passes.states[0], number) if names and number - last <= patience else None
        if one is None:
            break
        table = {p.name: p for p in one.parameters}
        left = [n for n in names if holds(table[n])]
        names, last = left, number if len(left) < len(names) else last
    return names


def _missing(names: list[str], passes: Passes) -> list[Symptom]:
    if not names:
        return []
    told = f"no gradient reaches {several(names, verb='')}"
    severity: Severity = "warn" if _are_constants(names, passes) else "fail"
    if severity == "warn":
        told += ", beside a weight that gets one: does the loss take derivatives of the answers?"
    return [Symptom("missing", names[0], told, (("parameters", len(names)),), severity)]


def _are_constants(names: list[str], passes: Passes) -> bool:
    """Whether these are biases whose own weights get a gradient.

    A loss of derivatives with respect to the inputs does not feel a constant in the answers.
    """
    table = {p.name: p for p in passes.seen[0].parameters}
    weights = [table.get(f"{n.removesuffix('bias')}weight") for n in names if n.endswith("bias")]
    return len(weights) == len(names) and all(w is not None and w.gradient > 0 for w in weights)


def _zero(names: list[str], passes: Passes) -> list[Symptom]:
    parameters = passes.finite[0].parameters if passes.finite else ()
    shapes = {p.name: p.shape for p in parameters}
    weights = [n for n in names if len(shapes[n]) > 1]
    named = weights or names
    if not named:
        return []
    told = f"the gradient of {several(named, verb='')} is exactly zero in every initialisation"
    severity: Severity = "fail" if weights else "warn"
    return [Symptom("zero", named[0], told, (("parameters", len(named)),), severity)]


def _idle(names: list[str], kind: str) -> Symptom:
    what = {"missing": "no gradient", "zero": "a gradient of zero"}[kind]
    told = f"{what} reaches {several(names, verb='')} here, and other samples or seeds do reach it"
    return Symptom("idle", names[0], told, (("parameters", len(names)),), "note")


def _silent(passes: Passes) -> list[Symptom]:
    """Recorded layers without parameters whose gradient is exactly zero every time."""
    if not passes.finite or any(one.parameters for one in passes.finite):
        return []
    rows = [{y.name: y.gradient for y in one.layers} for one in passes.finite]
    names = [n for n in rows[0] if all(row.get(n) == 0 for row in rows)]
    lost = [n for n in rows[0] if all(math.isnan(row.get(n, 0.0)) for row in rows)]
    found = []
    if lost:
        told = f"no gradient is given for {several(lost, verb='')}"
        found.append(Symptom("missing", lost[0], told, (("layers", len(lost)),)))
    if names:
        told = f"the gradient of {several(names, verb='')} is exactly zero every time"
        found.append(Symptom("zero", names[0], told, (("layers", len(names)),)))
    return found
