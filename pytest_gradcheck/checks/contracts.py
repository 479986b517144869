"""What a backward must keep whatever its numbers are: layouts, repeated calls, its arguments.

Asked only of derivatives that somebody wrote. Gradients are compared by norm, with room for
another order of summation: a backward breaks a contract by much or not at all.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from pytest_gradcheck.backends import Array, Variant
from pytest_gradcheck.checks import handwritten
from pytest_gradcheck.checks.compare import CANCELLATION_UNITS
from pytest_gradcheck.checks.derivative import Automatic
from pytest_gradcheck.checks.form import WrongDerivative
from pytest_gradcheck.checks.plan import Plan
from pytest_gradcheck.checks.power import percent
from pytest_gradcheck.checks.probe import Probe
from pytest_gradcheck.checks.projection import Cotangents, norm
from pytest_gradcheck.errors import UsageError, brief
from pytest_gradcheck.numerics import precision
from pytest_gradcheck.results import Finding, Severity

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

UNITS = 1e4  # units in the last place of a gradient's norm: another kernel, another order
MOST_SHARE = 0.25  # of it, in precisions in which that would be more
# What atomics on a GPU do to a gradient, and more: named, and no failure.
NONDETERMINISTIC = 1e-3
WOBBLE_FACTOR = 10.0  # of the difference between two equal calls, excused in all the others
SCALE = -2.0  # a power of two, so that a linear backward scales exactly; negative, for abs


def findings(plan: Plan, tolerance: float) -> tuple[Finding, ...]:
    """Contracts that the derivative under test breaks, each told once.

    Args:
        plan: The derivative.
        tolerance: Relative error of a gradient that is accepted as right, here too: a solver in the
            backward takes other steps for another cotangent.
    """
    found: dict[str, Finding] = {}
    wobble: dict[int, float] = {}  # differences between equal calls, which excuse others
    for variant in _variants(plan):
        if variant.code == "backward-zero" and "gradient-cotangent" in found:
            continue  # what does not follow the cotangent does not vanish with it
        gaps = list(_gaps(plan.native, variant))
        if variant.code == "backward-nondeterministic":
            wobble = {index: gap for index, gap, _ in gaps}
            own = gaps
        else:
            accepted = [2 * tolerance * _size(plan.native, g) for g in variant.expected]
            own = [
                (i, gap, room + accepted[i] + WOBBLE_FACTOR * wobble.get(i, 0.0))
                for i, gap, room in gaps
            ]
        finding = _judged(plan.native, variant, own)
        if finding is not None:
            found.setdefault(finding.code, finding)
    return tuple(found.values())


def _variants(plan: Plan) -> Iterator[Variant]:
    probe, weights = plan.native, plan.native_cotangents[0]
    if not isinstance(probe.derivative, Automatic):
        yield _again(plan, weights)
        yield from handwritten.breaches(probe, weights)
        yield from _generic(plan, weights)
        return

    if probe.outputs.has_rules is False:
        return

    def rewound(point: Sequence[Array]) -> Any:
        probe.guard.rewind()
        return probe.problem.run(point)

    own = list(probe.problem.backend.variants(rewound, probe.problem.point, weights))
    if own:
        yield _again(plan, weights)
        yield from own
        yield from _generic(plan, weights)


def _again(plan: Plan, weights: Cotangents) -> Variant:
    what, base = "from a second, equal call", plan.asis.gradients[0]
    return _asked(plan.native, "backward-nondeterministic", what, base, weights)


def _generic(plan: Plan, weights: Cotangents) -> Iterator[Variant]:
    """Ways that every backend has."""
    probe, base = plan.native, list(plan.asis.gradients[0])
    if not probe.derivative.takes_cotangent:
        return
    scaled = [None if g is None else g * SCALE for g in base]
    doubled = [None if w is None else w * SCALE for w in weights]
    yield _asked(probe, "gradient-cotangent", "for -2 times the cotangent", scaled, doubled)
    nothing = [None if g is None else g * 0 for g in base]
    zeros = [None if w is None else w * 0 for w in weights]
    yield _asked(probe, "backward-zero", "for a cotangent of zeros", nothing, zeros)
    yield from _outputs_alone(probe, base, weights)


def _outputs_alone(
    probe: Probe, base: Sequence[Array | None], weights: Cotangents
) -> Iterator[Variant]:
    spots = [m for m, w in enumerate(weights) if w is not None]
    if len(spots) < 2:
        return
    total: list[Array | None] = [None] * len(base)
    for m in spots:
        alone = [w if k == m else _left_out(probe, w) for k, w in enumerate(weights)]
        what = "summed over the outputs, each with a cotangent alone,"
        variant = _asked(probe, "backward-output-alone", what, base, alone)
        if variant.breach:
            yield variant
            return
        total = [_plus(a, b) for a, b in zip(total, variant.got, strict=True)]
    yield Variant("backward-output-alone", what, base, total)


def _left_out(probe: Probe, weight: Array | None) -> Array | None:
    """A cotangent that does not come: only a framework's engine leaves one out altogether."""
    is_by_hand = not isinstance(probe.derivative, Automatic)
    return weight * 0 if is_by_hand and weight is not None else None


def _plus(a: Array | None, b: Array | None) -> Array | None:
    return b if a is None else a if b is None else a + b


def _asked(
    probe: Probe, code: str, what: str, expected: Sequence[Array | None], weights: Cotangents
) -> Variant:
    convert = probe.problem.backend.convert
    try:
        got = [None if g is None else convert(g) for g in probe.gradient(weights)]
    except (UsageError, WrongDerivative) as error:
        return Variant(code, what, breach=f"the derivative {what} fails: {_brief(error)}")
    return Variant(code, what, expected, got)


def _brief(error: BaseException) -> str:
    return brief(str(error.__cause__ or error), 90)


def _judged(
    probe: Probe, variant: Variant, gaps: Sequence[tuple[int, float, float]]
) -> Finding | None:
    if variant.breach:
        severity: Severity = "warn" if variant.code in _MILD_BREACHES else "fail"
        return Finding(code=variant.code, severity=severity, message=variant.breach)
    worst = max(gaps, default=None, key=lambda gap: gap[1] / (gap[2] or 5e-324))
    if worst is None or not worst[1] > worst[2]:
        return None
    index, gap, _ = worst
    name, size = probe.problem.names[index], _size(probe, variant.expected[index])
    share = gap / size if size else math.inf
    mild = variant.code == "backward-nondeterministic" and share <= NONDETERMINISTIC
    return Finding(
        code=variant.code,
        severity="warn" if mild else "fail",
        where=name,
        message=f"the gradient of {name} {_difference(variant, gap, share)}",
        numbers=(("difference", share),),
    )


# Ways of programming that are a matter of taste, or that their user will notice at once.
_MILD_BREACHES = {
    "backward-shared-buffer",
    "backward-jit",
    "backward-vmap",
    "forward-mutates-input",
}


def _difference(variant: Variant, gap: float, share: float) -> str:
    if not math.isfinite(gap):
        return f"{variant.what} holds NaN or infinite numbers"
    if not math.isfinite(share):
        return f"{variant.what} is not zero"
    if variant.code == "gradient-cotangent" and abs(share - 1.5) < 1e-3:
        return "ignores the cotangent: it stays the same for -2 times it"
    return f"{variant.what} is off by {percent(share)}"


def _gaps(probe: Probe, variant: Variant) -> Iterator[tuple[int, float, float]]:
    """Index, difference and allowed difference of each input's gradient."""
    if variant.breach:
        return
    unit = precision.epsilon(probe.problem.dtype)
    sizes = [_size(probe, g) for g in variant.expected]
    for index, (a, b) in enumerate(zip(variant.expected, variant.got, strict=True)):
        if a is None and b is None:
            continue
        gap = _size(probe, b if a is None else a if b is None else b - a)
        yield index, math.inf if math.isnan(gap) else gap, room(probe, sizes, index, unit)


def room(probe: Probe, sizes: Sequence[float], index: int, unit: float) -> float:
    """What another order of the same operations may change in the gradient of an input.

    One that cancels, as that of a bias before a normalisation, is rounded like the whole.

    Args:
        probe: Gives the sizes of the inputs.
        sizes: Norms of the gradients of all inputs.
        index: The input.
        unit: Unit in the last place.
    """
    whole = math.hypot(*(s * scale for s, scale in zip(sizes, probe.scales, strict=True)))
    cancelled = min(CANCELLATION_UNITS * unit, MOST_SHARE) * whole / probe.scales[index]
    return min(UNITS * unit, MOST_SHARE) * sizes[index] + cancelled


def _size(probe: Probe, g: Array | None) -> float:
    return 0.0 if g is None else norm(probe.problem.backend, g)
