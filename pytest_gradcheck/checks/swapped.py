"""A hand-written vjp that takes its arguments in another order than it is called with."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from pytest_gradcheck.backends import Guard
from pytest_gradcheck.checks import verdict
from pytest_gradcheck.checks.cost import Cost
from pytest_gradcheck.checks.derivative import Derivative, HandVjp
from pytest_gradcheck.checks.form import WrongDerivative
from pytest_gradcheck.checks.measure import measure
from pytest_gradcheck.checks.point import start
from pytest_gradcheck.checks.probe import Probe
from pytest_gradcheck.checks.problem import Problem
from pytest_gradcheck.checks.projection import norm
from pytest_gradcheck.checks.question import Question
from pytest_gradcheck.errors import UsageError
from pytest_gradcheck.limits import Limits

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

TOLD = (
    "vjp takes its cotangent last, and is right with it there; take it first, as "
    "vjp(cotangent, *inputs) is called"
)


def reordered(question: Question) -> tuple[str, ...]:
    """Advice where the names of the inputs stand in another order in a derivative by hand."""
    names = _names(question.fn)
    for form in ("grad", "vjp", "jac"):
        given = getattr(question, form)
        own = _names(given)[form == "vjp" :] if given is not None else []
        if own != names and sorted(own) == sorted(names):
            return (
                f"{form} takes ({', '.join(own)}), the function ({', '.join(names)}): both are "
                f"called in the order of the function",
            )
    return ()


def _names(function: Any) -> list[str]:
    """Names of what a function takes by position; none where that cannot be seen."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return []
    return [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]


def is_swapped(
    problem: Problem, asked: Derivative, guard: Guard, cost: Cost, limits: Limits, seed: int
) -> bool:
    """Whether a vjp that is wrong, or raises, is right with the cotangent as its last argument."""
    if not isinstance(asked, HandVjp):
        return False
    other = HandVjp(_last(asked.vjp))
    try:
        if not _is_zero_for_zero(start(problem, other, guard, cost)):
            return False
        seen = measure(problem, other, guard, cost, limits, seed)
    except (UsageError, WrongDerivative):
        return False
    return verdict.of(seen, limits).verdict == "pass"


def _is_zero_for_zero(probe: Probe) -> bool:
    """Whether a cotangent of zeros gives zeros: two evaluations that spare most of the others."""
    zeros = [leaf.value * 0 if leaf.dtype else None for leaf in probe.outputs.leaves]
    backend = probe.problem.backend
    return all(g is None or norm(backend, g) == 0 for g in probe.gradient(zeros))


def _last(vjp: Callable[..., Any]) -> Callable[..., Any]:
    return lambda cotangent, *args, **kwargs: vjp(*args, cotangent, **kwargs)
