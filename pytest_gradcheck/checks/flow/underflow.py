"""Gradients that float16 cannot hold: the loss times a power of two brings them back.

The smallest number of float16 is 6e-8, and gradients of a mean are often smaller (Micikevicius et
al. 2018, arXiv 1710.03740, section 3.2, who scale the loss for that reason).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from pytest_gradcheck.backends.layers import Parameter, Pass
from pytest_gradcheck.checks.flow.cause import Trial
from pytest_gradcheck.checks.flow.frozen import is_declared
from pytest_gradcheck.checks.flow.passes import Passes, statistics
from pytest_gradcheck.checks.flow.symptom import Symptom
from pytest_gradcheck.checks.flow.symptoms import symptoms
from pytest_gradcheck.limits import Limits
from pytest_gradcheck.results import Severity

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

FACTORS = (2.0**16, 2.0**12, 2.0**8, 2.0**4)  # of the loss, up to the first that overflows nothing
ROUNDED, LOST = 0.1, 1 / 3  # relative error of a gradient that is told, and that is a failure
KINDS = ("zero", "vanishing")  # what a gradient that is lost looks like


def underflow(
    passes: Passes, found: Sequence[Symptom], limits: Limits, frozen: Sequence[str]
) -> tuple[tuple[Symptom, ...], tuple[Trial, ...]]:
    """The symptoms, those that are an underflow named so; and the change that cures them."""
    if not passes.finite or not passes.probe.can_scale or not passes.finite[0].is_half:
        return tuple(found), ()
    factor, scaled = _scaled(passes)
    if not scaled:
        return tuple(found), ()
    lost = _lost(passes.finite, scaled, factor, frozen)
    if not lost:
        return tuple(found), ()
    stepped = Passes(passes.probe, seen=scaled, is_single=passes.is_single)
    seen = statistics(scaled)
    left = [s for s in symptoms(stepped, seen, limits, frozen) if s.kind in KINDS]
    others = [s for s in found if s.kind not in KINDS]
    told = _symptom(lost, factor)
    if any(s.severity == "fail" for s in left):  # for another reason too, which comes first
        return (*left, *others, replace(told, severity="warn")), ()
    return (told, *others), (Trial("loss scale", seen.mean, seen.growth, math.nan, True),)


def _scaled(passes: Passes) -> tuple[float, list[Pass]]:
    """Passes with the loss times a factor, the largest that leaves all finite."""
    for factor in FACTORS:
        made = [passes.probe.measure(state, None, factor) for state in passes.states]
        if all(one.is_finite for one in made):
            return factor, made
    return 1.0, []


def _lost(
    plain: Sequence[Pass], scaled: Sequence[Pass], factor: float, frozen: Sequence[str]
) -> list[tuple[Parameter, float]]:
    """Weights of which less is left than there should be, and their due gradient, worst first."""
    found: dict[str, list[tuple[Parameter, float]]] = {}
    for one, other in zip(plain, scaled, strict=False):
        for p, q in zip(one.parameters, other.parameters, strict=True):
            due = q.gradient / factor
            is_asked = p.trainable and len(p.shape) > 1 and not is_declared(p.name, frozen)
            if is_asked and due > 0 and not math.isnan(p.gradient):
                found.setdefault(p.name, []).append((p, due))
    count = min(len(plain), len(scaled))
    bad = [
        min(pairs, key=_error)
        for pairs in found.values()
        if len(pairs) == count and all(_error(pair) > ROUNDED for pair in pairs)
    ]
    return sorted(bad, key=_error, reverse=True)


def _error(pair: tuple[Parameter, float]) -> float:
    p, due = pair
    return abs(p.gradient / due - 1)


def _symptom(lost: Sequence[tuple[Parameter, float]], factor: float) -> Symptom:
    p, due = lost[0]
    more = f" (and of {len(lost) - 1} more)" if lost[1:] else ""
    told = (
        f"the gradient of {p.name}{more} underflows in float16: its size is {p.gradient:.1e}, and "
        f"{due:.1e} by the loss times {factor:g}"
    )
    numbers = (("factor", factor), ("gradient", p.gradient), ("due", due))
    severity: Severity = "fail" if _error(lost[0]) > LOST else "warn"
    return Symptom("underflow", p.name, told, numbers, severity)
