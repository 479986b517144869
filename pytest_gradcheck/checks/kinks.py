"""At a kink: does the derivative under test lie between the slopes on both sides?

Asked of single outputs, since a weighted sum of kinks may bend either way, and only where an
output is convex or concave along every direction looked at: there each derivative that belongs to
a kink (a subgradient, Clarke 1975) lies between the one-sided slopes along every direction,
jointly in all inputs. At a tie of ``max`` the whole gradient given to each tied element does not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pytest_gradcheck.backends import Array
from pytest_gradcheck.checks.confirm import FINE_SHARE
from pytest_gradcheck.checks.derivative import Automatic
from pytest_gradcheck.checks.outputs import leaf_name, sides, unit_cotangents, values
from pytest_gradcheck.checks.probe import Probe
from pytest_gradcheck.checks.survey import Survey
from pytest_gradcheck.numerics import precision
from pytest_gradcheck.numerics.ladder import Floats
from pytest_gradcheck.numerics.seeds import derive

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

DIRECTIONS = 12  # each shows a whole gradient given twice with probability 1/2
OUTPUTS = 3  # those that bend most
CONVERGED = 0.1  # error of the one-sided slopes, as a share of them
VISIBLE = 1e-6  # share of the slopes below which nothing is said


@dataclass(frozen=True, slots=True)
class Slope:
    """A claimed slope outside the slopes on both sides.

    Args:
        output: Name of the output, empty where there is only one number.
        claimed: The claimed slope along a direction.
        left: Slope of the function before the point, along the same direction.
        right: Slope after it.
        error: Bound of the error of both.
        by_hand: Whether somebody wrote this derivative, so that the value at the kink was chosen.
    """

    output: str
    claimed: float
    left: float
    right: float
    error: float
    by_hand: bool

    @property
    def outside(self) -> float:
        """How far the claimed slope is from lying between the two."""
        low, high = min(self.left, self.right), max(self.left, self.right)
        return max(low - self.claimed, self.claimed - high) - self.error


def outside_slope(survey: Survey) -> Slope | None:
    """The claimed slope that is furthest outside, if any is."""
    plan, probe = survey.plan, survey.plan.probe
    if plan.claim.dtype != probe.precision or _is_complex(probe):
        return None
    shares = dict.fromkeys(range(len(probe.scales)), 1.0)
    directions = [
        probe.direction(derive(survey.seed, "kink", k), shares) for k in range(DIRECTIONS)
    ]
    slopes = [_sides(probe, direction) for direction in directions]
    if not all(np.isfinite(side).all() for side in slopes):
        return None
    bends = np.abs(sum(right - left for left, right, _ in slopes))
    spots = [int(m) for m in np.argsort(bends)[::-1][:OUTPUTS] if bends[m] > 0]
    found = [slope for m in spots for slope in _outside(survey, m, directions, slopes)]
    return max(found, key=lambda slope: slope.outside, default=None)


def _is_complex(probe: Probe) -> bool:
    leaves = (*probe.problem.inputs, *probe.outputs.leaves)
    return any(leaf.dtype.startswith("complex") for leaf in leaves)


def _sides(probe: Probe, direction: Sequence[Array | None]) -> Floats:
    """(3, outputs) slopes before and after the point, and the error of both."""
    exponent = round(math.log2(precision.epsilon(probe.precision)) * FINE_SHARE)
    wide, fine = (sides(probe, direction, 2.0 ** (exponent + 2 * k)) for k in (1, 0))
    rounding = 4 * precision.epsilon(probe.precision) * np.abs(values(probe)) / 2.0**exponent
    error = 2 * np.abs(wide - fine).max(axis=0) + rounding
    return np.stack([fine[0], fine[1], error])


def _outside(
    survey: Survey, m: int, directions: Sequence[Sequence[Array | None]], slopes: Sequence[Floats]
) -> list[Slope]:
    left, right, error = np.stack([side[:, m] for side in slopes], axis=1)
    gap = right - left
    if (error > CONVERGED * np.maximum(np.abs(left), np.abs(right))).any():
        return []  # the slopes still change with the step: a pole or an edge, and no kink
    if not ((gap >= -error).all() or (gap <= error).all()):
        return []  # neither convex nor concave: kinks of both kinds add up
    probe = survey.plan.probe
    gradient = probe.gradient(unit_cotangents(probe, m))
    claimed = [probe.pairing(gradient, direction) for direction in directions]
    error = error + (VISIBLE + 4 * survey.demand.tolerance) * np.abs(left).max(initial=0)
    name, by_hand = _name(probe, m), _is_by_hand(probe)
    found = [
        Slope(name, float(c), float(a), float(b), float(e), by_hand)
        for c, a, b, e in zip(claimed, left, right, error, strict=True)
    ]
    return [slope for slope in found if slope.outside > 0]


def _name(probe: Probe, m: int) -> str:
    for leaf in (leaf for leaf in probe.outputs.leaves if leaf.dtype):
        if m < leaf.size:
            return leaf_name(leaf, m)
        m -= leaf.size
    return ""


def _is_by_hand(probe: Probe) -> bool:
    """Whether the whole derivative is somebody's own: given beside, or a custom function's."""
    if not isinstance(probe.derivative, Automatic):
        return True
    fn = probe.problem.call(probe.problem.point).fn
    owner = getattr(fn, "__self__", None)
    return hasattr(fn, "defvjp") or hasattr(fn, "defjvp") or isinstance(owner, type)
