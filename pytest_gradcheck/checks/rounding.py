"""What a gradient loses in the function's own precision, beside the same gradient in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pytest_gradcheck.backends import Array
from pytest_gradcheck.checks.compare import cancellation
from pytest_gradcheck.checks.plan import Gradient, Plan
from pytest_gradcheck.checks.projection import norm
from pytest_gradcheck.numerics import precision
from pytest_gradcheck.numerics.seeds import derive

# Inputs are only known to half a unit; a gradient may differ by what that does to it.
CONDITION_FACTOR = 16.0


@dataclass(frozen=True, slots=True)
class Lossy:
    """An input whose gradient is further from its float64 value than accepted.

    Args:
        index: Which input.
        loss: Norm of the difference over the norm of the float64 gradient.
        allowed: The accepted loss.
        arithmetic: A lower precision that the function computes in inside, which explains it;
            empty where nothing does.
    """

    index: int
    loss: float
    allowed: float
    arithmetic: str = ""

    @property
    def is_beyond(self) -> bool:
        """Whether more is lost than accepted."""
        return self.loss > self.allowed


def lossy(plan: Plan, tolerance: float, seed: int) -> tuple[Lossy, ...]:
    """Inputs whose gradient loses more than the tolerance and more than rounding explains.

    What the function's own precision does not explain, a lower one may in which its forward
    computes: products in TF32, or autocast.
    """
    if not plan.is_in_two_precisions:
        return ()
    lost = []
    for index in range(len(plan.probe.problem.selected)):
        loss, size = _loss(plan, plan.asis.gradients, index)
        if size and loss > tolerance * size:
            lost.append((index, loss, size))
    judged = _judged(plan, lost, plan.asis.dtype, tolerance, seed) if lost else ()
    found = tuple(item for item in judged if item.is_beyond)
    inside = plan.native.lowest_inside() if found else plan.asis.dtype
    if inside == plan.asis.dtype:
        return found
    beyond = [item.index for item in found]
    again = _judged(plan, [row for row in lost if row[0] in beyond], inside, tolerance, seed)
    return tuple(
        item if other.is_beyond else replace(other, arithmetic=inside)
        for item, other in zip(found, again, strict=True)
    )


def _judged(
    plan: Plan, lost: Sequence[tuple[int, float, float]], dtype: str, tolerance: float, seed: int
) -> tuple[Lossy, ...]:
    """What the inputs lose beside what arithmetic of a precision explains."""
    unit = precision.epsilon(dtype)
    rounded = _at_rounded_inputs(plan, unit, seed)
    judged = []
    least = precision.smallest(plan.asis.dtype)  # below it, a number underflows
    cancelled = max(cancellation(plan, j, unit) for j in range(len(plan.cotangents)))
    for index, loss, size in lost:
        moved, _ = _loss(plan, rounded, index)
        explained = CONDITION_FACTOR * moved + cancelled / plan.probe.scales[index]
        explained += least * math.sqrt(plan.probe.problem.inputs[index].size)
        judged.append(Lossy(index, loss / size, tolerance + explained / size))
    return tuple(judged)


def _loss(plan: Plan, others: tuple[Gradient, ...], index: int) -> tuple[float, float]:
    """Largest distance over the sets of cotangents, and the gradient's norm there."""
    backend, losses = plan.probe.problem.backend, []
    for j, exact in enumerate(plan.claim.gradients):
        right, size = exact[index], plan.claim.norms[j][index]
        other = others[j][index]
        if right is None:
            continue
        if other is None:
            losses.append((size, size))
            continue
        wide = backend.convert(other, str(plan.probe.problem.inputs[index].dtype))
        losses.append((norm(backend, wide - right), size))
    return max(losses, default=(0.0, 0.0), key=lambda pair: pair[0] / (pair[1] or 1.0))


def _at_rounded_inputs(plan: Plan, unit: float, seed: int) -> tuple[Gradient, ...]:
    problem, backend = plan.probe.problem, plan.probe.problem.backend
    half = unit / 2
    point: list[Array] = [
        x + x * (backend.normal(x, derive(seed, "rounding", name)) * half)
        for x, name in zip(problem.point, problem.names, strict=True)
    ]
    probe = replace(plan.probe, problem=problem.moved(point))
    return tuple(tuple(probe.gradient(weights)) for weights in plan.cotangents)
