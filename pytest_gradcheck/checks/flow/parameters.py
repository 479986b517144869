"""Symptoms of parameters: missing, zero and equal gradients, updates out of proportion."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pytest_gradcheck.backends.layers import Parameter
from pytest_gradcheck.checks.flow.frozen import is_declared
from pytest_gradcheck.checks.flow.passes import Passes, constant
from pytest_gradcheck.checks.flow.symptom import Numbers, Symptom
from pytest_gradcheck.limits import Limits
from pytest_gradcheck.numerics.intervals import of_mean

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

FEEBLE = 1e-7  # relative updates below this are lost in the rounding of float32


OUTLIER = 100.0  # times the median relative update


def held(passes: Passes, frozen: Sequence[str]) -> list[Symptom]:
    """Parameters that are frozen without a word."""
    parameters = [one.parameters for one in passes.seen]
    still = constant(parameters, lambda p: not p.trainable)
    found = []
    undeclared = [n for n in still if not is_declared(n, frozen)]
    if undeclared:
        found.append(
            Symptom(
                "frozen",
                undeclared[0],
                f"{several(undeclared)} frozen, and nobody said that this is meant",
                (("parameters", len(undeclared)),),
            )
        )
    return found


def symmetric(passes: Passes) -> list[Symptom]:
    """Weights whose rows are copies and get the same gradient."""
    names = constant([one.parameters for one in passes.finite], lambda p: p.symmetric)
    if not names:
        return []
    told = f"the units of {several(list(names), verb='')} are copies of one another, and stay so"
    return [Symptom("symmetric", names[0], told, (("parameters", len(names)),))]


def blank(passes: Passes, frozen: Sequence[str]) -> list[str]:
    """Weights that are zero in every initialisation, and may move."""
    parameters = [one.parameters for one in passes.finite]
    names = constant(parameters, lambda p: p.value == 0 and len(p.shape) > 1 and p.trainable)
    return [n for n in names if not is_declared(n, frozen)]


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
        told = f"the first step of the optimizer does not move {several(still, verb='')}"
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


def several(names: list[str], verb: str = "is") -> str:
    """The first of some names and how many more there are, with a verb that fits."""
    more = len(names) - 1
    if not more:
        return f"{names[0]} {verb}".strip()
    plural = {"is": "are"}.get(verb, verb)
    noun = "other" if more == 1 else "others"
    return f"{names[0]} and {more} {noun} {plural}".strip()


def trainable(parameters: Sequence[Parameter]) -> list[str]:
    """Names of parameters that may move."""
    return [p.name for p in parameters if p.trainable]
