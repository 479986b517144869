"""Many gradients at once (``vmap``), held against the same ones one at a time.

First a stack of cotangents at the point, as for a Jacobian; then a stack of points, as for the
gradients of single samples. A function may be unable to take the second for good reasons (a branch
on its values), which is told as a note.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from pytest_gradcheck.backends import Array, Leaf
from pytest_gradcheck.checks.contracts import room
from pytest_gradcheck.checks.forward import exact, raised
from pytest_gradcheck.checks.measured import Measured
from pytest_gradcheck.checks.pairing import Pairing
from pytest_gradcheck.checks.power import percent
from pytest_gradcheck.checks.probe import Probe
from pytest_gradcheck.checks.projection import Cotangents, norm
from pytest_gradcheck.errors import UsageError
from pytest_gradcheck.limits import Limits
from pytest_gradcheck.numerics import precision
from pytest_gradcheck.results import Finding

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

Gradient = Sequence[Array | None]

SCALES = (-2.0, 0.5)  # powers of two, so that nothing is rounded
BESIDE = 2.0**-7  # where the other points of a stack lie, beside the given one


def findings(seen: Measured, limits: Limits) -> Iterator[Finding]:
    """What batched gradients have wrong."""
    pairing = exact(seen, limits)
    told = list(_of_cotangents(pairing))
    yield from told or ([] if pairing.probe.guard.is_random else _of_points(pairing))


def _of_cotangents(pairing: Pairing) -> Iterator[Finding]:
    """A stack of cotangents at the point."""
    probe, first = pairing.probe, pairing.cotangents[0]
    # One more than there are, each another one: a rule may mix them up.
    scaled = [[None if w is None else w * s for w in first] for s in SCALES]
    rows = [*pairing.cotangents, *scaled]
    right = [*pairing.claim.gradients, *(probe.gradient(row) for row in scaled)]
    problem = probe.problem
    probe.guard.rewind()
    probe.cost.derivatives += 1
    try:
        got = problem.backend.vjps(problem.run, problem.point, _stacked_cotangents(probe, rows))
    except Exception as error:  # the user's own rule; told, not hidden
        told = raised("the batched gradient (vmap over cotangents)", error)
        yield Finding(code="batched-missing", severity="fail", message=told)
        return
    yield from _differing(pairing, "cotangents", got, right)


def _of_points(pairing: Pairing) -> Iterator[Finding]:
    """A stack of points, each with a cotangent of its own."""
    probe, problem = pairing.probe, pairing.probe.problem
    probes = _beside(probe)
    rows = [pairing.cotangents[k % len(pairing.cotangents)] for k in range(len(probes))]
    try:
        right = [at.gradient(row) for at, row in zip(probes, rows, strict=True)]
    except UsageError:  # outside the domain
        return
    probe.guard.rewind()
    probe.cost.derivatives += 1
    try:
        points = [
            _stacked(probe, leaf, [at.problem.point[i] for at in probes])
            for i, leaf in enumerate(problem.inputs)
        ]
        got = problem.backend.vjps_each(problem.run, points, _stacked_cotangents(probe, rows))
    except Exception as error:  # the user's own function; told, not hidden
        told = raised("the gradient for many points at once (vmap over inputs)", error)
        yield Finding(code="batched-missing", severity="note", message=told)
        return
    yield from _differing(pairing, "inputs", got, right)


def _beside(probe: Probe) -> list[Probe]:
    """The function at its point and at two others."""
    everything = dict.fromkeys(range(len(probe.problem.selected)), 1.0)
    step = probe.relative_direction(0, everything)
    moved = (probe.shifted(step, size) for size in (0.0, BESIDE, -BESIDE))
    return [replace(probe, problem=probe.problem.moved(point)) for point in moved]


def _stacked_cotangents(probe: Probe, rows: Sequence[Cotangents]) -> list[Array | None]:
    return [
        None if rows[0][m] is None else _stacked(probe, leaf, [row[m] for row in rows])
        for m, leaf in enumerate(probe.outputs.leaves)
    ]


def _stacked(probe: Probe, leaf: Leaf, rows: Sequence[Array | None]) -> Array:
    backend = probe.problem.backend
    whole = np.stack([backend.to_numpy(row) for row in rows])
    return backend.convert(whole, leaf.dtype, leaf.device)


def _differing(
    pairing: Pairing, over: str, got: Sequence[Array | None], right: Sequence[Gradient]
) -> Iterator[Finding]:
    """One finding for each input whose gradient is another one in the stack."""
    for index, name in enumerate(pairing.probe.problem.names):
        shares = [_share(pairing, index, got[index], k, one) for k, one in enumerate(right)]
        if max(shares) > 0:
            yield Finding(
                code="batched-mode",
                severity="fail",
                where=name,
                message=f"the batched gradient (vmap over {over}) for {name} "
                f"{_difference(max(shares))}; one at a time it is right",
                numbers=(("difference", max(shares)),),
            )


def _difference(share: float) -> str:
    if math.isinf(share):
        return "is not zero or not finite"
    return f"is off by {percent(share)}"


def _share(pairing: Pairing, index: int, stack: Array | None, k: int, gradient: Gradient) -> float:
    """Difference over size of one gradient of a stack; 0 where rounding explains it."""
    probe, backend = pairing.probe, pairing.probe.problem.backend
    sizes = [0.0 if g is None else norm(backend, g) for g in gradient]
    allowed = room(probe, sizes, index, precision.epsilon(pairing.claim.dtype))
    right = gradient[index]
    if stack is None:
        gap = sizes[index]
    else:
        gap = norm(backend, stack[k] if right is None else stack[k] - right)
    if gap <= allowed or not all(
        map(math.isfinite, sizes)
    ):  # no point of the stack has to lie in the domain
        return 0.0
    return gap / sizes[index] if sizes[index] and math.isfinite(gap) else math.inf
