"""Through which output the gradient of an input is wrong: a row of its Jacobian.

Differences of the whole output along one direction are projected on many cotangents at once, so
that only the derivative runs again. Which half of the outputs holds the error is asked for each
binary digit of the index, and the answers are the digits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from pytest_gradcheck.backends import Array
from pytest_gradcheck.checks.compare import Comparison
from pytest_gradcheck.checks.form import WrongDerivative
from pytest_gradcheck.checks.outputs import leaf_name
from pytest_gradcheck.checks.parts import Parts
from pytest_gradcheck.checks.patterns import Diagnosis
from pytest_gradcheck.checks.projection import Cotangents
from pytest_gradcheck.errors import UsageError
from pytest_gradcheck.numerics.growth import Served

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

MOST_OUTPUTS = 2**20


@dataclass(frozen=True, eq=False)
class Rows:
    """The outputs seen from one input.

    Args:
        parts: The input and the direction in which its error shows best.
    """

    parts: Parts

    @property
    def cotangents(self) -> Cotangents:
        """The set of cotangents in which the error shows best."""
        return self.parts.survey.plan.cotangents[self.parts.column]

    def errors(self, masks: Sequence[dict[int, np.ndarray]]) -> list[Comparison]:
        """Claimed and measured for the cotangents under each of the masks, by output leaf."""
        plan, anchor = self.parts.survey.plan, self.parts.anchor
        sets = [self._under(mask) for mask in masks]
        claims = [self.parts.case.rerun(weights) for weights in sets]
        direction = anchor.line.direction
        line = plan.probe.along(
            direction,
            sets,
            plan.probe.floor(sets),
            first=Served(self.parts.steps.exponents),
            enough=abs(self.parts.whole.difference) / 16,
        )
        found = line.estimate
        return [
            Comparison(
                claimed=plan.probe.pairing(gradient, direction),
                reference=float(found.value[j]),
                bound=float(found.bound[j]),
                slack=self.parts.whole.slack,
                kink=0.0,
            )
            for j, gradient in enumerate(claims)
        ]

    def _under(self, mask: dict[int, np.ndarray]) -> Cotangents:
        backend = self.parts.survey.plan.probe.problem.backend
        leaves = self.parts.survey.plan.probe.outputs.leaves
        masked: list[Array | None] = []
        for m, (weight, leaf) in enumerate(zip(self.cotangents, leaves, strict=True)):
            if weight is None:
                masked.append(None)
                continue
            kept = mask.get(m, np.zeros(leaf.size)).reshape(leaf.shape)
            masked.append(weight * backend.convert(kept, leaf.dtype, leaf.device))
        return masked


def wrong(parts: Parts) -> Diagnosis | None:
    """The one output leaf or element through which the gradient is wrong."""
    plan = parts.survey.plan
    weights = plan.cotangents[parts.column]
    spots = [m for m, weight in enumerate(weights) if weight is not None]
    leaves = plan.probe.outputs.leaves
    if sum(leaves[m].size for m in spots) < 2:
        return None
    rows = Rows(parts)
    try:
        off = spots if len(spots) == 1 else _wrong_leaves(rows, spots)
        m = off[0] if len(off) == 1 else None
        element = None if m is None else _only_element(rows, m)
    except (UsageError, WrongDerivative):  # a derivative that takes no cotangents with zeros
        return None
    if m is None and 1 < len(off) < len(spots):
        names = [leaves[k].path for k in off]
        return Diagnosis("output", f"outputs {', '.join(names[:-1])} and {names[-1]}")
    if m is None or (element is None and len(spots) == 1):
        return None
    leaf = leaves[m]
    name = f" {leaf.path}" if leaf.path else ""
    if element is not None:
        name += leaf_name(replace(leaf, path=""), element)
    return Diagnosis("output", f"output{name}")


def _wrong_leaves(rows: Rows, spots: Sequence[int]) -> list[int]:
    """Those of the outputs whose own derivative is wrong."""
    leaves = rows.parts.survey.plan.probe.outputs.leaves
    seen = rows.errors([{m: np.ones(leaves[m].size)} for m in spots])
    return [m for m, c in zip(spots, seen, strict=True) if c.is_off]


def _only_element(rows: Rows, m: int) -> int | None:
    """The element whose binary digits the halves with the error spell, if it alone shows it."""
    size = rows.parts.survey.plan.probe.outputs.leaves[m].size
    if not 2 <= size <= MOST_OUTPUTS:
        return None
    places = np.arange(size)
    digits = range(int(size - 1).bit_length())
    everything, *halves = rows.errors(
        [{m: np.ones(size)}, *({m: ((places >> b) & 1).astype(float)} for b in digits)]
    )
    error = everything.difference
    element = sum(1 << b for b in digits if abs(halves[b].difference) > abs(error) / 2)
    if element >= size:
        return None
    (alone,) = rows.errors([{m: (places == element).astype(float)}])
    unsure = everything.bound + everything.slack + alone.bound
    is_all = abs(error - alone.difference) <= unsure
    return int(element) if alone.is_off and is_all else None
