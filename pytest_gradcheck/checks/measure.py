"""The numbers of a point, or of one beside it where the function has a kink or a jump there."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from pytest_gradcheck.backends import Guard
from pytest_gradcheck.checks import confirm, kinks, plan, rounding
from pytest_gradcheck.checks.compare import EXCESS
from pytest_gradcheck.checks.cost import Cost
from pytest_gradcheck.checks.demand import demand
from pytest_gradcheck.checks.derivative import Derivative
from pytest_gradcheck.checks.form import WrongDerivative
from pytest_gradcheck.checks.locate import Culprit, culprits
from pytest_gradcheck.checks.look import Look
from pytest_gradcheck.checks.measured import Measured
from pytest_gradcheck.checks.point import start
from pytest_gradcheck.checks.problem import Problem
from pytest_gradcheck.checks.survey import Survey
from pytest_gradcheck.errors import UsageError
from pytest_gradcheck.limits import Limits
from pytest_gradcheck.numerics import precision
from pytest_gradcheck.numerics.seeds import derive

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

# Far beyond the largest step at which a kink could still be felt, near enough to x; in 16 bits at
# least some units in the last place, so that the point moves at all.
NUDGE = 2.0**-9
NUDGE_UNITS = 8.0
NUDGES = 4  # coarse numbers may stay tied after one; a relu may be dead on one side
SHOWS = 16.0  # some of what is rounded may cancel, or count for little in the output
ATTEMPTS = 3  # contradictions that were refuted are forgotten twice

Find = Callable[[Survey, Sequence[int]], list[Culprit]]


def measure(
    problem: Problem, asked: Derivative, guard: Guard, cost: Cost, limits: Limits, seed: int
) -> Measured:
    """Take the numbers at a point; beside it where the function has a kink or a jump there.

    Raises:
        UsageError: The function cannot be differentiated there.
        WrongDerivative: The derivative is wrong by its form.
    """
    seen = _at(problem, asked, guard, cost, limits, seed)
    if seen.culprits:
        moved = next(_nudged(seen.survey))
        beside = _beside(moved, asked, guard, cost, limits, seed, None)
        if beside is None or not beside.is_clear:
            return seen
        outside = kinks.outside_slope(seen.survey)
        if outside is not None and limits.use("at_kink").value == "accept":
            return replace(seen, culprits=(), beside=beside, outside=outside)
        return replace(seen, is_right_beside=True)
    if not seen.is_rough or limits.use("at_kink").value == "fail":
        return seen
    besides = (_beside(moved, asked, guard, cost, limits, seed) for moved in _nudged(seen.survey))
    told = [beside for beside in _until_smooth(besides) if beside is not None]
    beside = told[-1] if told else None
    may_pass = beside is not None and beside.suspect is None and bool(beside.survey.live)
    if may_pass and limits.use("at_kink").value == "accept":
        seen = replace(seen, outside=kinks.outside_slope(seen.survey))
    return replace(seen, beside=beside)


def _at(
    problem: Problem,
    asked: Derivative,
    guard: Guard,
    cost: Cost,
    limits: Limits,
    seed: int,
    find: Find | None = culprits,
) -> Measured:
    """The numbers of one point; ``find`` is None where it is only asked whether it is clear."""
    planned = plan.make(start(problem, asked, guard, cost), seed)
    survey = Survey(planned, demand(limits, planned), seed=seed)
    suspect, holds = _contradiction(survey, find)
    is_open = suspect is not None or bool(survey.unresolved(survey.live))
    inside = _inside(survey, suspect) if is_open else ""
    # Differences of 16 bits see little: taken only where those of more seem to contradict.
    if inside and (suspect is not None or inside == "float32"):
        planned = planned.rounding_as(inside)
        survey = Survey(planned, demand(limits, planned), seed=seed, inside=inside)
        suspect, holds = _contradiction(survey, find)
    if suspect is None and survey.dull and not cost.is_spent:
        suspect, holds = _coarser(survey, limits, find)
    if suspect is None:
        lossy = rounding.lossy(planned, limits.number("rounding", planned.asis.dtype), seed)
        return Measured(planned, survey, lossy=lossy)
    found = tuple(find(survey, suspect.inputs)) if holds and find is not None else ()
    return Measured(planned, survey, suspect, culprits=found)


def _inside(survey: Survey, suspect: Look | None) -> str:
    """The coarsest precision that the function casts down to, where its values show that.

    What is cast for the backward alone rounds no value. Where something seems wrong, any rounding
    beyond the function's own will do: beside a value it may be small (a saturated softmax).
    """
    probe, unrest = survey.plan.probe, survey.unrest
    most = EXCESS * precision.epsilon(probe.precision) if suspect is not None else math.inf
    lower = precision.coarser(probe.precision)
    if not lower or unrest < min(most, precision.epsilon(lower[0]) / SHOWS):
        return ""
    coarsest = probe.lowest_inside()
    shows = unrest >= min(most, precision.epsilon(coarsest) / SHOWS)
    return coarsest if coarsest != probe.precision and shows else ""


def _coarser(survey: Survey, limits: Limits, find: Find | None) -> tuple[Look | None, bool]:
    """The same with the demand of the precision in which the function turned out to compute."""
    inside = survey.steps or survey.arithmetic
    coarser = limits.number("resolution", inside)
    if limits.use("resolution").source != "default" or coarser <= survey.demand.resolution:
        return None, False
    survey.relax(coarser, inside)
    return _contradiction(survey, find)


def _contradiction(survey: Survey, find: Find | None) -> tuple[Look | None, bool]:
    """A look that contradicts, if any is left, and whether it holds on a smooth function."""
    for _ in range(ATTEMPTS):
        suspect = survey.run() or survey.spoilt()
        if suspect is None or not survey.plan.native.is_repeatable:
            return suspect, False
        if suspect.jumps or suspect.has_kink or (find is None and suspect.is_plain):
            return suspect, False
        if confirm.holds(survey, suspect):
            return suspect, True
        survey.dismiss(suspect)
    return suspect, False


def _until_smooth(besides: Iterator[Measured | None]) -> Iterator[Measured | None]:
    for beside in besides:
        yield beside
        if beside is not None and (beside.is_clear or beside.culprits):
            return


def _beside(
    moved: Problem,
    asked: Derivative,
    guard: Guard,
    cost: Cost,
    limits: Limits,
    seed: int,
    find: Find | None = culprits,
) -> Measured | None:
    try:
        return _at(moved, asked, guard, cost, limits, seed, find)
    except (UsageError, WrongDerivative):  # outside the domain of one of both
        return None


def _nudged(survey: Survey) -> Iterator[Problem]:
    """The function at points a little beside its own."""
    probe = survey.plan.native
    problem = probe.problem
    size = max(NUDGE, NUDGE_UNITS * precision.epsilon(problem.dtype))
    everything = dict.fromkeys(range(len(problem.selected)), 1.0)
    for k in range(NUDGES):
        step = probe.direction(derive(survey.seed, "nudge", k), everything)
        yield problem.moved([x + v * size for x, v in zip(problem.point, step, strict=True)])  # type: ignore[operator]  # every input moves
