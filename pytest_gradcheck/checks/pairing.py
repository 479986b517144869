"""The two sides of ``<w, J v> = <J' w, v>``: forward mode and reverse mode along one direction.

For complex arrays too: the backend's inner product is the pairing under which its vjp is the
transpose of its jvp.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from pytest_gradcheck.backends import Array
from pytest_gradcheck.checks.compare import TOLERANCE_FACTOR, Comparison, cancellation
from pytest_gradcheck.checks.plan import Claim, Plan
from pytest_gradcheck.checks.probe import Probe, Shares
from pytest_gradcheck.checks.projection import Cotangents
from pytest_gradcheck.numerics import precision
from pytest_gradcheck.numerics.ladder import Floats

Direction = Sequence[Array | None]


@dataclass(frozen=True, eq=False)
class Pairing:
    """A function, cotangents and its gradients, all in one precision.

    Args:
        plan: Where they come from.
        probe: The function at its point.
        cotangents: Sets of cotangents.
        claim: The gradient by reverse mode, for each set.
        tolerance: Relative difference that is accepted, of an input's gradient.
    """

    plan: Plan
    probe: Probe
    cotangents: Sequence[Cotangents]
    claim: Claim
    tolerance: float

    @functools.cached_property
    def floor(self) -> Floats:
        """(sets,) least rounding of the value itself, where all of a derivative cancels."""
        return self.probe.floor(self.cotangents)

    def compared(self, direction: Direction, shares: Shares) -> tuple[Comparison, ...]:
        """Forward mode (claimed) beside reverse mode (reference), for each set of cotangents."""
        moved = self._moved(self._own(direction))
        return tuple(
            Comparison(
                claimed=self._projected(weights, moved),
                reference=self.probe.pairing(gradient, self._own(direction)),
                bound=0.0,
                slack=self._room(j, shares),
                kink=0.0,
            )
            for j, (weights, gradient) in enumerate(
                zip(self.cotangents, self.claim.gradients, strict=True)
            )
        )

    def _own(self, direction: Direction) -> Direction:
        """A direction in the precision of the point."""
        convert = self.probe.problem.backend.convert
        return [
            None if v is None else convert(v, leaf.dtype)
            for v, leaf in zip(direction, self.probe.problem.inputs, strict=True)
        ]

    def _moved(self, direction: Direction) -> Sequence[Array | None]:
        problem = self.probe.problem
        tangents = [
            problem.backend.convert(x) * 0 if v is None else v
            for x, v in zip(problem.point, direction, strict=True)
        ]
        self.probe.guard.rewind()
        self.probe.cost.derivatives += 1
        return problem.backend.jvp(problem.run, problem.point, tangents)

    def _projected(self, weights: Cotangents, moved: Sequence[Array | None]) -> float:
        inner = self.probe.problem.backend.inner
        pairs = zip(weights, moved, strict=True)
        parts = [inner(w, t) for w, t in pairs if w is not None and t is not None]
        # NaN is as far from everything as infinity is, and differs from everything.
        return math.fsum(parts) if all(map(math.isfinite, parts)) else math.inf

    def _room(self, j: int, shares: Shares) -> float:
        """What rounding may do to either side, as in ``compare``."""
        sizes = (self.claim.norms[j][i] * self.plan.probe.scales[i] * s for i, s in shares.items())
        unit = precision.epsilon(self.claim.dtype)
        cancelled = cancellation(self.plan, j, unit) + float(self.floor[j])
        return TOLERANCE_FACTOR * (self.tolerance * math.hypot(*sizes) + cancelled)
