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
from pytest_gradcheck.results import Severity

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

FEEBLE = 1e-7  # relative updates below this are lost in the rounding of float32


OUTLIER = 100.0  # times the median relative update
SHY = 0.1  # of its usual size, below which a weight starts near zero on purpose
MODEST = 0.5  # of the usual size, up to which a step is in proportion for it


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


def _is_moved(p: Parameter, peers: Sequence[Parameter]) -> bool:
    """Whether a weight has a gradient, and the step that an optimizer makes of it is known.

    A scale for each channel is a vector, also where it has the shape (channels, 1, 1), and where
    those of several layers are stacked beside the layers' matrices.
    """
    if _is_stacked(p.shape, [q.shape for q in peers]):
        return False
    is_weight = len(p.shape) == 2 or sum(extent > 1 for extent in p.shape) > 1
    return len(p.shape) > 1 and is_weight and p.gradient > 0 and p.update >= 0


def _is_stacked(shape: tuple[int, ...], peers: Sequence[tuple[int, ...]]) -> bool:
    """Whether it is a vector for each of the matrices that are stacked in another one."""
    stacks = [s for s in peers if len(s) == 3]
    return len(shape) == 2 and any(shape[0] == s[0] and shape[1] in s[1:] for s in stacks)


def _starts_near_zero(p: Parameter) -> bool:
    """Whether a weight is small on purpose, and a step as it is for one of the usual size.

    The usual size is one over the root of the fan (Glorot and Bengio 2010, equation 12), here the
    geometric mean of both fans, which for a table of embeddings is far from the number of words;
    the largest extents are those of channels. Last layers, embeddings and added matrices of low
    rank are started far below it.
    """
    channels = math.prod(sorted(p.shape)[-2:])
    usual = math.sqrt(math.sqrt(channels) / math.prod(p.shape))
    return p.value < SHY * usual and p.update * p.value < MODEST * usual


def updates(passes: Passes, limits: Limits, frozen: Sequence[str]) -> list[Symptom]:
    """Steps of an optimizer that are out of proportion."""
    moved = [
        {p.name: p for p in one.parameters if _is_moved(p, one.parameters)} for one in passes.finite
    ]
    rows = [{name: p.update for name, p in one.items()} for one in moved]
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
    large = [n for n in names if sizes[n] > limits.number("update_ratio")]
    shy = [n for n in large if all(_starts_near_zero(one[n]) for one in moved)]
    found: list[Symptom] = []
    groups: tuple[tuple[str, Severity, list[str]], ...] = (
        ("too large", "fail", [n for n in large if n not in shy]),
        ("too small", "fail", [n for n in names if sizes[n] < FEEBLE]),
        ("large because it starts near zero", "warn", shy),
        (
            "unlike that of its peers",
            "warn",
            [n for n in names if not 1 / OUTLIER < sizes[n] / middle < OUTLIER],
        ),
    )
    for word, severity, bad in groups:
        if bad:
            told = f"one step moves {bad[0]} by {sizes[bad[0]]:.2g} of its size, which is {word}"
            numbers: Numbers = (("ratio", sizes[bad[0]]), ("median", middle))
            found.append(Symptom("update", bad[0], told, numbers, severity))
    return found[:1]


def is_feeble(symptom: Symptom) -> bool:
    """Whether it is that of an update which is too small."""
    return symptom.kind == "update" and 0 < dict(symptom.numbers)["ratio"] < FEEBLE


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
