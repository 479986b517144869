"""Symptoms of parameters: missing, zero and equal gradients, updates out of proportion."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from pytest_gradcheck.backends.layers import Parameter
from pytest_gradcheck.checks.flow.frozen import is_declared
from pytest_gradcheck.checks.flow.passes import Passes, constant
from pytest_gradcheck.checks.flow.symptom import Numbers, Symptom
from pytest_gradcheck.limits import Limits
from pytest_gradcheck.numerics.intervals import of_mean

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

FEEBLE = 1e-7  # relative updates below this are lost in the rounding of float32


DRAWS = 12  # of random numbers in which a layer must be without a gradient each time

OUTLIER = 100.0  # times the median relative update


def without(passes: Passes, frozen: Sequence[str]) -> list[Symptom]:
    """Parameters that are frozen without a word, and those that no gradient reaches."""
    parameters = [one.parameters for one in passes.seen]
    held = constant(parameters, lambda p: not p.trainable)
    missing = constant(parameters, lambda p: p.trainable and math.isnan(p.gradient))
    found = []
    undeclared = [n for n in held if not is_declared(n, frozen)]
    if undeclared:
        found.append(
            Symptom(
                "frozen",
                undeclared[0],
                f"{_several(undeclared)} frozen, and nobody said that this is meant",
                (("parameters", len(undeclared)),),
            )
        )
    lost = [n for n in missing if not is_declared(n, frozen)]
    lost = _always(passes, lost, lambda p: math.isnan(p.gradient))
    if lost:
        found.append(
            Symptom(
                "missing",
                lost[0],
                f"no gradient reaches {_several(lost, verb='')}",
                (("parameters", len(lost)),),
            )
        )
    return found


def _always(passes: Passes, names: list[str], holds: Callable[[Parameter], bool]) -> list[str]:
    """The names for which something holds whatever the random numbers of a pass are.

    A layer may be left out by chance (stochastic depth: Huang et al. 2016, arXiv 1603.09382).
    """
    for number in range(1, DRAWS + 1 if passes.states else 0):
        one = passes.probe.again(passes.states[0], number) if names else None
        if one is None:
            break
        table = {p.name: p for p in one.parameters}
        names = [n for n in names if holds(table[n])]
    return names


def zero(passes: Passes, frozen: Sequence[str]) -> list[Symptom]:
    """Gradients that are exactly zero in every initialisation."""
    parameters = [one.parameters for one in passes.finite]
    zero = [
        n for n in constant(parameters, lambda p: p.gradient == 0) if not is_declared(n, frozen)
    ]
    shapes = {p.name: p.shape for p in parameters[0]} if parameters else {}
    zero = _always(passes, zero, lambda p: not p.gradient > 0)
    weights = [n for n in zero if len(shapes[n]) > 1]
    named = weights or zero
    if not named:
        return _silent(passes)
    return [
        Symptom(
            "zero",
            named[0],
            f"the gradient of {_several(named, verb='')} is exactly zero in every initialisation",
            (("parameters", len(named)),),
            "fail" if weights else "warn",
        )
    ]


def _silent(passes: Passes) -> list[Symptom]:
    """Recorded layers without parameters whose gradient is exactly zero every time."""
    if not passes.finite or any(one.parameters for one in passes.finite):
        return []
    rows = [{y.name: y.gradient for y in one.layers} for one in passes.finite]
    names = [n for n in rows[0] if all(row.get(n) == 0 for row in rows)]
    lost = [n for n in rows[0] if all(math.isnan(row.get(n, 0.0)) for row in rows)]
    found = []
    if lost:
        told = f"no gradient is given for {_several(lost, verb='')}"
        found.append(Symptom("missing", lost[0], told, (("layers", len(lost)),)))
    if names:
        told = f"the gradient of {_several(names, verb='')} is exactly zero every time"
        found.append(Symptom("zero", names[0], told, (("layers", len(names)),)))
    return found


def symmetric(passes: Passes) -> list[Symptom]:
    """Weights whose rows are copies and get the same gradient."""
    names = constant([one.parameters for one in passes.finite], lambda p: p.symmetric)
    if not names:
        return []
    told = f"the units of {_several(list(names), verb='')} are copies of one another, and stay so"
    return [Symptom("symmetric", names[0], told, (("parameters", len(names)),))]


def _is_moved(p: Parameter) -> bool:
    """Whether a weight has a gradient, and the step that an optimizer makes of it is known.

    A scale for each channel is a vector, also where it has the shape (channels, 1, 1).
    """
    is_weight = len(p.shape) == 2 or sum(extent > 1 for extent in p.shape) > 1
    return len(p.shape) > 1 and is_weight and p.gradient > 0 and p.update >= 0


def updates(passes: Passes, limits: Limits, frozen: Sequence[str]) -> list[Symptom]:
    """Steps of an optimizer that are out of proportion."""
    rows = [{p.name: p.update for p in one.parameters if _is_moved(p)} for one in passes.finite]
    names = [n for n in rows[0] if all(n in row for row in rows)] if rows else []
    still = [n for n in names if all(row[n] == 0 for row in rows)]
    if names and still == names:
        told = "the first step of the optimizer moves nothing, as a learning rate of zero does"
        return [Symptom("update", "", told, (("ratio", 0.0),), "warn")]
    still = [n for n in still if not is_declared(n, frozen)]
    if still:
        told = f"the first step of the optimizer does not move {_several(still, verb='')}"
        return [Symptom("update", still[0], told, (("ratio", 0.0),))]
    names = [n for n in names if any(row[n] > 0 for row in rows)]
    if not names:
        return []
    sizes = {
        n: 10 ** of_mean([math.log10(max(row[n], 1e-300)) for row in rows], 0.0).mean for n in names
    }
    middle = sorted(sizes.values())[len(sizes) // 2]
    found = []
    for verb, bad in (
        ("large", [n for n in names if sizes[n] > limits.number("update_ratio")]),
        ("small", [n for n in names if sizes[n] < FEEBLE]),
        ("uneven", [n for n in names if not 1 / OUTLIER < sizes[n] / middle < OUTLIER]),
    ):
        if bad:
            word = "unlike that of its peers" if verb == "uneven" else f"too {verb}"
            told = f"one step moves {bad[0]} by {sizes[bad[0]]:.2g} of its size, which is {word}"
            numbers: Numbers = (("ratio", sizes[bad[0]]), ("median", middle))
            found.append(
                Symptom("update", bad[0], told, numbers, "fail" if verb != "uneven" else "warn")
            )
    return found[:1]


def _several(names: list[str], verb: str = "is") -> str:
    more = len(names) - 1
    if not more:
        return f"{names[0]} {verb}".strip()
    plural = {"is": "are"}.get(verb, verb)
    noun = "other" if more == 1 else "others"
    return f"{names[0]} and {more} {noun} {plural}".strip()


def trainable(parameters: Sequence[Parameter]) -> list[str]:
    """Names of parameters that may move."""
    return [p.name for p in parameters if p.trainable]
