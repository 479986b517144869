"""Is this derivative right? Reverse mode, first order."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import replace

from pytest_gradcheck.checks import amended, contracts, derivative, modes, verdict
from pytest_gradcheck.checks.bind import bind
from pytest_gradcheck.checks.cost import Cost
from pytest_gradcheck.checks.derivative import Automatic, Derivative
from pytest_gradcheck.checks.form import WrongDerivative
from pytest_gradcheck.checks.measure import measure
from pytest_gradcheck.checks.measured import Measured
from pytest_gradcheck.checks.question import Question
from pytest_gradcheck.checks.swapped import TOLD, is_swapped, reordered
from pytest_gradcheck.checks.tangents import ByTangents, restricted
from pytest_gradcheck.errors import UsageError
from pytest_gradcheck.limits import Limits
from pytest_gradcheck.results import Context, Finding, Result

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these


def check(
    question: Question,
    limits: Limits,
    context: Context,
    progress: Callable[[str, int], None] | None = None,
) -> Result:
    """Measure and judge; the caller has resolved limits, seed and place.

    Raises:
        UsageError: The question cannot be asked as it is.
    """
    began = time.perf_counter()
    asked: Derivative = derivative.choose(
        question.grad, question.vjp, question.jac, question.value_and_grad
    )
    wanted = modes.require(question, not isinstance(asked, Automatic))
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
    if wanted == ("forward",):
        asked, problem = ByTangents(), restricted(problem, context.seed)
    cost = _cost(limits, problem.label, progress)
    functions = (question.fn, question.grad, question.vjp, question.jac, *question.args)
    with problem.backend.guard(*functions) as guard:
        try:
            seen = measure(problem, asked, guard, cost, limits, context.seed)
            judged = verdict.of(seen, limits)
            if question.intended is not None:
                judged = amended.intended(judged, question.intended)
            more = _more(seen, question, judged, limits, context.seed, wanted)
            judged = amended.joined(judged, more, problem.backend.name)
        except WrongDerivative as error:
            judged = verdict.of_form(problem, error, limits)
        except UsageError as error:
            if is_swapped(problem, asked, guard, cost, limits, context.seed):
                raise UsageError(TOLD) from error.__cause__
            raise
        if judged.verdict == "fail":
            if is_swapped(problem, asked, guard, cost, limits, context.seed):
                what, _, todo = TOLD.partition("; ")
                headline = amended.short(f"wrong gradient of {problem.label}: {what}")
                judged = replace(judged, headline=headline, advice=(todo,))
            judged = replace(judged, advice=(*reordered(question), *judged.advice))
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


def _more(
    seen: Measured,
    question: Question,
    judged: Result,
    limits: Limits,
    seed: int,
    asked: tuple[str, ...],
) -> tuple[Finding, ...]:
    """What other questions about the same derivative found."""
    found = contracts.findings(seen.plan, seen.survey.demand.tolerance)
    if judged.verdict == "fail":
        return found
    if not seen.plan.probe.cost.is_spent:
        return found + modes.findings(seen, question, limits, seed, asked)
    left = [mode for mode in asked if mode != "reverse"]
    left += ["order 2"] if question.order == 2 else []
    if not left:
        return found
    told = f"the budget was spent; left unchecked: {', '.join(left)}"
    return (*found, Finding(code="budget", severity="warn", message=told))


def _cost(limits: Limits, label: str, progress: Callable[[str, int], None] | None) -> Cost:
    cost, budget = Cost(), limits.use("budget").value
    if isinstance(budget, float):
        cost.most = budget
    elif budget != "unlimited":
        cost.deadline = time.monotonic() + float(str(budget).removesuffix("s"))
    if progress is not None:
        cost.tell = functools.partial(progress, label)
    return cost
