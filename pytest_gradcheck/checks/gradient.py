"""Is this derivative right? Reverse mode, first order."""

from __future__ import annotations

import time
from dataclasses import replace

from pytest_gradcheck.backends import Guard
from pytest_gradcheck.checks import contracts, derivative, modes, plan, rounding, verdict
from pytest_gradcheck.checks.bind import bind
from pytest_gradcheck.checks.derivative import Derivative, WrongDerivative
from pytest_gradcheck.checks.locate import culprits
from pytest_gradcheck.checks.measured import Measured
from pytest_gradcheck.checks.plan import Plan
from pytest_gradcheck.checks.point import start
from pytest_gradcheck.checks.probe import Cost
from pytest_gradcheck.checks.problem import Problem
from pytest_gradcheck.checks.question import Question
from pytest_gradcheck.checks.survey import Demand, Survey
from pytest_gradcheck.errors import UsageError
from pytest_gradcheck.limits import Limits
from pytest_gradcheck.numerics import precision
from pytest_gradcheck.numerics.seeds import derive
from pytest_gradcheck.results import Context, Result

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

# Far beyond the largest step at which a kink could still be felt, near enough to x; in 16 bits at
# least some units in the last place, so that the point moves at all.
NUDGE = 2.0**-9
NUDGE_UNITS = 8.0
# An error that is accepted cannot be asked to show: six directions see 32 times the tolerance.
RESOLVED_PER_TOLERANCE = 32.0
NUDGES = 3  # coarse numbers may stay tied after one, and each goes further


def check(question: Question, limits: Limits, context: Context) -> Result:
    """Measure and judge; the caller has resolved limits, seed and place.

    Raises:
        UsageError: The question cannot be asked as it is.
    """
    began = time.perf_counter()
    asked = derivative.choose(question.grad, question.vjp, question.jac, question.value_and_grad)
    problem = bind(
        question.fn,
        question.args,
        question.kwargs,
        wrt=question.wrt,
        backend=question.backend,
        device=question.device,
    )
    if question.label:
        problem = replace(problem, label=question.label)
    cost = Cost()
    functions = (question.fn, question.grad, question.vjp, question.jac, *question.args)
    with problem.backend.guard(*functions) as guard:
        try:
            seen = measure(problem, asked, guard, cost, limits, context.seed)
            judged = verdict.of(seen, limits)
            found = contracts.findings(seen.plan, context.seed)
            if judged.verdict != "fail":
                found += modes.findings(seen, question, limits, context.seed)
            judged = verdict.joined(judged, found)
        except WrongDerivative as error:
            judged = verdict.of_form(problem, error, limits)
    return replace(
        judged,
        context=replace(
            context,
            backend=problem.backend.name,
            device=problem.inputs[0].device,
            dtype=problem.dtype,
            precision=judged.context.precision,
            evaluations=cost.evaluations,
            derivatives=cost.derivatives,
            seconds=time.perf_counter() - began,
        ),
    )


def measure(
    problem: Problem,
    asked: Derivative,
    guard: Guard,
    cost: Cost,
    limits: Limits,
    seed: int,
    *,
    nudges: int = NUDGES,
) -> Measured:
    """Take the numbers at a point; beside it where the function has a kink or a jump there.

    Raises:
        UsageError: The function cannot be differentiated there.
        WrongDerivative: The derivative is wrong by its form.
    """
    planned = plan.make(start(problem, asked, guard, cost), seed)
    survey = Survey(planned, demand(limits, planned), seed)
    suspect = survey.run() or survey.spoilt_by_jump()
    if suspect is None:
        lossy = rounding.lossy(planned, limits.number("rounding", planned.asis.dtype), seed)
        return Measured(planned, survey, lossy=lossy)
    if not planned.native.is_repeatable:
        return Measured(planned, survey, suspect)
    if suspect.jumps or any(c.kink for c in suspect.comparisons):
        moved = _nudged(survey, nudges)
        if moved is None:
            return Measured(planned, survey, suspect)
        beside = _measured_beside(moved, asked, guard, cost, limits, seed, nudges - 1)
        return Measured(planned, survey, suspect, beside=beside)
    if not survey.confirmed(suspect):
        return Measured(planned, survey, suspect)
    found = tuple(culprits(survey, suspect.inputs))
    return Measured(planned, survey, suspect, culprits=found)


def demand(limits: Limits, planned: Plan) -> Demand:
    """What the limits ask for in the precisions of a plan."""
    tolerance = limits.number("tolerance", planned.claim.dtype)
    resolution = limits.number("resolution", planned.probe.precision)
    if limits.use("resolution").source == "default":
        resolution = min(1.0, max(resolution, RESOLVED_PER_TOLERANCE * tolerance))
    return Demand(
        resolution=resolution,
        miss_probability=limits.number("miss_probability"),
        tolerance=tolerance,
    )


def _nudged(survey: Survey, left: int) -> Problem | None:
    """The function a little beside its point; None when no nudge is left."""
    if not left:
        return None
    probe = survey.plan.native
    problem = probe.problem
    size = max(NUDGE, NUDGE_UNITS * precision.epsilon(problem.dtype))
    step = probe.direction(derive(survey.seed, "nudge", left), range(len(problem.selected)))
    return problem.moved([x + v * size for x, v in zip(problem.point, step, strict=True)])  # type: ignore[operator]  # every input moves


def _measured_beside(
    moved: Problem,
    asked: Derivative,
    guard: Guard,
    cost: Cost,
    limits: Limits,
    seed: int,
    nudges: int,
) -> Measured | None:
    try:
        return measure(moved, asked, guard, cost, limits, seed, nudges=nudges)
    except UsageError:  # outside the domain
        return None
