"""Beside the flow from layer to layer: samples of a batch, scale of the loss, few seeds."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from pytest_gradcheck.backends.layers import RECTIFIERS, Pass
from pytest_gradcheck.checks.flow.passes import Passes, Statistics
from pytest_gradcheck.checks.flow.symptom import Symptom
from pytest_gradcheck.checks.flow.symptoms import SAMPLES

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

STRANGE = 1e-3  # relative change of an answer by another sample that is no rounding
FACTOR = {"float16": 4.0, "bfloat16": 4.0}  # of the loss; a power of two changes no digit
_NORMS = re.compile(r"batch|(^|[._])bn")  # of layers that put the samples of a batch together
TINY = {"float16": 1e-4, "bfloat16": 1e-30, "float32": 1e-30}  # gradients that may underflow
EXACT = {"float16": 1e-2, "bfloat16": 1e-2, "float32": 1e-4}


def more(passes: Passes, seen: Statistics | None, found: Sequence[Symptom]) -> tuple[Symptom, ...]:
    """What else was seen."""
    told = [*_circumstances(passes)]
    if seen is None or any(s.severity == "fail" for s in found):
        return tuple(told)
    nonlinear = [] if any(s.kind == "underflow" for s in found) else _nonlinear(passes)
    return (*nonlinear, *_strangers(passes), *told)


def _circumstances(passes: Passes) -> list[Symptom]:
    told = []
    if passes.is_constant:
        message = (
            f"a single realisation: {passes.probe.replicates} gives the same parameters every "
            f"time, so the spread is that predicted from depth and widths; if that is not meant, "
            f"draw from the seed that make is given, or from the framework's global generator"
        )
        told.append(Symptom("single", "", message, (), "warn"))
    elif passes.is_single:
        message = (
            "a single realisation: fresh initialisations were not to be had, so the spread is that "
            "predicted from depth and widths; give make="
        )
        told.append(Symptom("single", "", message, (), "note"))
    rows = passes.seen[0].rows if passes.seen else 0
    layers = [y for one in passes.seen for y in one.layers]
    rectified = any(y.op.lower() in RECTIFIERS and not math.isnan(y.dead) for y in layers)
    if rows and rows < SAMPLES and rectified:
        noun = "sample" if rows == 1 else "samples"
        message = f"{rows} {noun} cannot tell dead units from unlucky ones; {SAMPLES} can"
        told.append(Symptom("small", "", message, (("samples", rows),), "warn"))
    return told


def _strangers(passes: Passes) -> list[Symptom]:
    moved = passes.probe.strangers(passes.states[0])
    if math.isnan(moved) or moved < STRANGE:
        return []
    told = f"the answer for a sample moves by {moved:.1%} of its size with another sample"
    names = [name for y in passes.seen[0].layers for name in (y.op, y.name)]
    names += [p.name for p in passes.seen[0].parameters]
    is_meant = any(_NORMS.search(name.lower()) for name in names)
    return [Symptom("strangers", "", told, (("moved", moved),), "note" if is_meant else "warn")]


def _nonlinear(passes: Passes) -> list[Symptom]:
    probe = passes.probe
    dtype = "float16" if passes.seen[0].is_half else probe.dtype  # as autocast has it inside
    factor = FACTOR.get(dtype, 1024.0)
    if not probe.can_scale:
        return []
    tiny, exact = TINY.get(dtype, 1e-290), EXACT.get(dtype, 1e-9)
    scaled = probe.bare(passes.states[0], factor)
    if not _off(passes.seen[0], scaled, factor, tiny, exact):
        return []
    again = probe.bare(passes.states[0])
    off = _off(again, scaled, factor, tiny, exact)
    if not off or _off(passes.seen[0], again, 1.0, tiny, exact):
        return []  # it changes from run to run by itself, as spectral normalisation does
    name, ratio = off[0]
    told = f"the loss times {factor:g} gives {ratio:.6g} times {factor:g} the gradient of {name}"
    return [Symptom("nonlinear", name, told, (("ratio", ratio),))]


def _off(
    one: Pass, other: Pass, factor: float, tiny: float, exact: float
) -> list[tuple[str, float]]:
    """Parameters whose gradient is not the factor times that of another pass, and by how much."""
    pairs = zip(one.parameters, other.parameters, strict=True)
    known = [
        (p.name, q.gradient / (factor * p.gradient), p.gradient)
        for p, q in pairs
        if p.gradient > tiny and math.isfinite(q.gradient)
    ]
    # A gradient that is nothing but what the others are rounded by (of a bias that shifts all
    # answers, where the loss is that of their differences) has no digit that is exact.
    rounding = exact * max((size for _, _, size in known), default=0.0)
    return [(name, ratio) for name, ratio, size in known if abs(ratio - 1) * size > rounding]
