"""Attempts to refute a contradiction, before anything is accused.

Large steps can agree on a slope that is not the one at the point (across a pole, over a whole
wave), small ones can drown in rounding. What refutes must see well enough to have shown what the
suspect shows: a measurement that is too coarse says nothing.
"""

from __future__ import annotations

import itertools
import math

from pytest_gradcheck.checks.look import Look
from pytest_gradcheck.checks.survey import Survey
from pytest_gradcheck.numerics import growth, precision
from pytest_gradcheck.numerics.column import NOISE_FACTOR, ROUNDING_UNITS
from pytest_gradcheck.numerics.differences import around
from pytest_gradcheck.numerics.growth import Served
from pytest_gradcheck.numerics.ladder import RATIO_EXPONENT
from pytest_gradcheck.numerics.seeds import derive

RUNGS = 8
DIRECTIONS = 3
NEAR = 4.0  # a share of the difference that casts may account for
PART = 0.5  # of an element, which keeps its sign
ROOM = 8.0  # of a difference, over the rounding at the smallest steps that still show it
# For a function that stands still: far enough to see in what units it moves at all.
LARGE = Served(tuple(range(growth.HIGHEST, -18, -2)))
FINE_SHARE = 0.42  # of the exponent of the unit: steps of 2**-22 in float64, 2**-10 in float32


def holds(survey: Survey, suspect: Look) -> bool:
    """Whether a contradiction holds against every attempt to refute it.

    The direction is measured again with larger steps, on longer ladders and with smaller steps,
    and others with steps in proportion to each element; at last a fresh one must show it too, or
    each of some where the contradiction is not far beyond what was allowed.
    """
    own = survey.steps or survey.plan.probe.precision
    if _is_right_carefully(survey, suspect, own):
        return False
    if survey.again(suspect, rungs=RUNGS, steps=own).off is None:
        return False
    if suspect.line.ladder.stands and survey.again(suspect, first=LARGE).off is None:
        return False
    if suspect.claims and _is_right_elsewhere(survey, suspect):
        return False
    tries = max(DIRECTIONS, survey.demand.attempts)
    fresh = (survey.look(suspect.inputs, f"confirm {k}").off is not None for k in range(tries))
    return any(fresh) if suspect.is_plain else all(itertools.islice(fresh, DIRECTIONS))


def _is_right_elsewhere(survey: Survey, suspect: Look) -> bool:
    """Whether smaller steps or other directions side with the claim."""
    unit = precision.epsilon(survey.plan.probe.precision)
    finer = survey.again(suspect, first=Served(around(round(math.log2(unit) * FINE_SHARE))))
    if finer.refutes(suspect) or _is_right_close_by(survey, suspect):
        return True
    is_near = finer.off is not None and _keeps_sizes(survey, finer)
    return not is_near and _is_right_relatively(survey, suspect)


def _keeps_sizes(survey: Survey, look: Look) -> bool:
    """Whether its steps move each element by a part of its own size, zeros apart.

    Then no pole or edge that only small elements are near lies between, and directions in which
    those hardly move know less of them.
    """
    if look.line.estimate.exponent is None:
        return False
    probe, step = survey.plan.probe, 2.0**look.line.estimate.exponent
    plain = probe.problem.backend.to_numpy
    pairs = ((plain(probe.problem.point[i]), plain(look.line.direction[i])) for i in look.inputs)
    return all(bool((abs(v) * step <= PART * abs(x))[x != 0].all()) for x, v in pairs)


def _is_right_carefully(survey: Survey, suspect: Look, own: str) -> bool:
    """Whether larger steps side with the claim; then they are taken from now on.

    Where a function computes in a lower precision inside, what is rounded stands still at small
    steps while the rest moves: smoothly, and wrongly.
    """
    seen, lower = survey.plan.probe.lower_inside()
    if seen and lower and _matters(survey, suspect, own):
        survey.restart(lower[-1])
        return True
    # Where casts are not seen, 16 bits are not thought of: their steps are too large to judge.
    for steps in (own, *(lower if seen else lower[:1])):
        look = survey.again(suspect, steps=steps)
        if look.refutes(suspect):
            survey.restart(steps)
            return True
    return False


def _matters(survey: Survey, suspect: Look, own: str) -> bool:
    """Whether the function without its casts has another derivative than the suspect's reference.

    Then that reference is one of what was left standing, and accuses of nothing.
    """
    plan, probe = survey.plan, survey.plan.probe.uncast()
    if probe is None:
        return False
    clean = probe.along(suspect.line.direction, plan.cotangents, plan.floor, steps=own).estimate
    columns = zip(suspect.comparisons, clean.value, clean.bound, strict=True)
    return any(
        NEAR * max(abs(c.reference - value) - bound, 0.0) > abs(c.difference)
        for c, value, bound in columns
        if c.is_off
    )


def _is_right_close_by(survey: Survey, suspect: Look) -> bool:
    """Whether the smallest steps that could still show the difference side with the claim.

    A table of many short segments has a slope on each, and another one over several.
    """
    floor = survey.plan.floor
    rooms = [abs(c.difference) / f for c, f in zip(suspect.comparisons, floor, strict=True) if f]
    if not rooms or not max(rooms):
        return False
    exponent = math.ceil(math.log2(ROOM * NOISE_FACTOR * ROUNDING_UNITS / max(rooms)))
    exponent += exponent % RATIO_EXPONENT
    lowest = round(math.log2(precision.epsilon(survey.plan.probe.precision)))
    if not lowest < exponent - RATIO_EXPONENT or exponent >= min(suspect.line.ladder.exponents):
        return False
    look = survey.again(suspect, first=Served(around(exponent)), enough=suspect.decisive)
    return look.refutes(suspect)


def _is_right_relatively(survey: Survey, suspect: Look) -> bool:
    """Whether directions in which each element moves in proportion to its size side with it."""
    relative = survey.plan.probe.relative_direction
    return all(
        survey.measured(suspect.shares, direction).refutes(suspect)
        for direction in (
            relative(derive(survey.seed, "relative", k), suspect.shares) for k in range(DIRECTIONS)
        )
    )
