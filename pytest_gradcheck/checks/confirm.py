"""Attempts to refute a contradiction, before anything is accused.

Large steps can agree on a slope that is not the one at the point (across a pole, over a whole
wave), small ones can drown in rounding. What refutes must see well enough to have shown what the
suspect shows: a measurement that is too coarse says nothing.
"""

from __future__ import annotations

import math

from pytest_gradcheck.checks.look import Look
from pytest_gradcheck.checks.probe import Shares
from pytest_gradcheck.checks.survey import Survey
from pytest_gradcheck.numerics import growth, precision
from pytest_gradcheck.numerics.differences import around
from pytest_gradcheck.numerics.seeds import derive

RUNGS = 8
DIRECTIONS = 3
FEW = 2.0**-6  # of its own size: what moves by less stands still where 16 bits are rounded to
# For a function that stands still: far enough to see in what units it moves at all.
LARGE = tuple(range(growth.HIGHEST, -18, -2))
FINE_SHARE = 0.42  # of the exponent of the unit: steps of 2**-22 in float64, 2**-10 in float32


def holds(survey: Survey, suspect: Look) -> bool:
    """Whether a contradiction holds against every attempt to refute it.

    The direction is measured again with larger steps, on longer ladders and with smaller steps,
    and others with steps in proportion to each element; at last a fresh one must show it too, or
    each of some where the contradiction is not far beyond what was allowed.
    """
    direction, shares = suspect.line.direction, suspect.shares
    own = survey.steps or survey.plan.probe.precision
    if _is_right_carefully(survey, suspect, own):
        return False
    if survey.measured(shares, direction, rungs=RUNGS, steps=own).off is None:
        return False
    if suspect.line.ladder.stands and survey.measured(shares, direction, first=LARGE).off is None:
        return False
    unit = precision.epsilon(survey.plan.probe.precision)
    finer = survey.measured(shares, direction, first=around(round(math.log2(unit) * FINE_SHARE)))
    if finer.refutes(suspect) or _is_right_relatively(survey, suspect):
        return False
    fresh = (survey.look(suspect.inputs, f"confirm {k}").off is not None for k in range(DIRECTIONS))
    return any(fresh) if suspect.is_plain else all(fresh)


def _is_right_carefully(survey: Survey, suspect: Look, own: str) -> bool:
    """Whether larger steps side with the claim; then they are taken from now on.

    Where a function computes in a lower precision inside, what is rounded stands still at small
    steps while the rest moves: smoothly, and wrongly.
    """
    direction, shares = suspect.line.direction, suspect.shares
    look = survey.measured(shares, direction, steps=own)
    if look.off is None or look.refutes(suspect):
        survey.restart(own)
        return True
    seen, coarser = survey.plan.probe.lower_inside()
    for steps in coarser:
        look = survey.measured(shares, direction, steps=steps, rungs=RUNGS)
        # What is known to round so is accused of nothing that its own steps do not show.
        if look.refutes(suspect) or (seen and (look.off is None or _stays(survey, shares, steps))):
            survey.restart(steps)
            return True
    return False


def _stays(survey: Survey, shares: Shares, steps: str) -> bool:
    """Whether the claim holds where every input moves by the whole of its size, if some did not."""
    if min(shares.values()) > FEW:
        return False
    whole = dict.fromkeys(shares, 1.0)
    direction = survey.plan.probe.direction(derive(survey.seed, "whole", steps), whole)
    return survey.measured(whole, direction, steps=steps, rungs=RUNGS).off is None


def _is_right_relatively(survey: Survey, suspect: Look) -> bool:
    """Whether directions in which each element moves in proportion to its size side with it."""
    relative = survey.plan.probe.relative_direction
    return all(
        survey.measured(suspect.shares, direction).refutes(suspect)
        for direction in (
            relative(derive(survey.seed, "relative", k), suspect.shares) for k in range(DIRECTIONS)
        )
    )
