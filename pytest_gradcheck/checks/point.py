"""The first runs at the point: what must hold before any difference is worth taking."""

from __future__ import annotations

import math

from pytest_gradcheck import backends
from pytest_gradcheck.backends import Array, Flat, Guard
from pytest_gradcheck.checks.cost import Cost
from pytest_gradcheck.checks.derivative import Derivative
from pytest_gradcheck.checks.probe import Probe
from pytest_gradcheck.checks.problem import Problem, kind_of, of_user
from pytest_gradcheck.checks.projection import norm
from pytest_gradcheck.errors import UsageError
from pytest_gradcheck.numerics import precision

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

WHOLES = ("int", "bool")  # in the names of dtypes


def start(
    problem: Problem,
    derivative: Derivative,
    guard: Guard,
    cost: Cost,
    *,
    is_exact: bool = False,
) -> Probe:
    """Evaluate at the point, twice, and check that the output can be differentiated at all.

    Args:
        problem: Function and point.
        derivative: How the function gives its value.
        guard: The state to set back before every run.
        cost: Counter.
        is_exact: Whether equal calls are known to give equal values; one will do then.

    Raises:
        UsageError: The function raises, returns nothing differentiable or non-finite numbers, or
            the inputs hold non-finite numbers.
    """
    scales = _scales(problem)
    blank = Probe(problem, derivative, guard, cost, Flat((), list), (), scales)
    first = _first_run(blank)
    _require_differentiable(problem, first)
    if is_exact:
        rounding = (0.0,) * len(first.leaves)
    else:
        second = blank.rerun(problem.fresh())
        Probe(problem, derivative, guard, cost, first, (), scales).require_same_shapes(second)
        rounding = _differences(problem, first, second)
    return Probe(problem, derivative, guard, cost, first, rounding, scales)


def _first_run(blank: Probe) -> Flat:
    problem = blank.problem
    if blank.cost.evaluations:  # the guard learns from the first run of all
        blank.guard.rewind()
    try:
        blank.cost.evaluated()
        return problem.backend.forward(blank.derivative.function(problem), problem.fresh())
    except UsageError:
        raise
    except Exception as error:  # the user's own code; chained, so that its traceback is shown
        told = f"{problem.label} raised {type(error).__name__} at the given inputs: {error}"
        hint = _misread(problem, error) if isinstance(error, (TypeError, AttributeError)) else ""
        raise UsageError(told + hint) from of_user(error)


def _misread(problem: Problem, error: Exception) -> str:
    """How a call was meant that other checkers take."""
    call = problem.call(problem.point)
    name = next(
        (name for name in call.kwargs if f"unexpected keyword argument '{name}'" in str(error)), ""
    )
    if name:
        return (
            f"; {name}= is no argument of the check, which hands it on (its limits: tolerance= and "
            f"resolution=)"
        )
    if len(call.args) == 1 and isinstance(call.args[0], (tuple, list)):
        kind = type(call.args[0]).__name__
        return f"; it was given one {kind}: give the inputs one by one, as in gradcheck(f, x, y)"
    if getattr(call.fn, "__qualname__", "").endswith(".forward") and not hasattr(
        call.fn, "__self__"
    ):
        return "; give the apply of a custom function, not its forward"
    return ""


def _scales(problem: Problem) -> tuple[float, ...]:
    """Of each input, the power of two near its root mean square.

    Raises:
        UsageError: An input holds numbers that are not finite.
    """
    scales = []
    for name, leaf in zip(problem.names, problem.inputs, strict=True):
        size = norm(problem.backend, leaf.value)
        if not math.isfinite(size) and not _is_finite(problem, leaf.value):
            raise UsageError(
                f"input {name} holds NaN or infinite numbers; a derivative needs a finite point "
                f"(leave a mask or a constant out with wrt=)"
            )
        scales.append(precision.power_of_two(size / math.sqrt(leaf.size)))
    return tuple(scales)


def _differences(problem: Problem, first: Flat, second: Flat) -> tuple[float, ...]:
    return tuple(
        norm(problem.backend, a.value - b.value) / math.sqrt(a.size) if a.dtype and a.size else 0.0
        for a, b in zip(first.leaves, second.leaves, strict=True)
    )


def _is_finite(problem: Problem, x: Array) -> bool:
    # A norm may overflow; the second one, which takes a copy, is rarely asked for.
    return math.isfinite(norm(problem.backend, x)) or math.isfinite(norm(problem.backend, x * 0.0))


def _instead(outputs: Flat) -> str:
    """What to do about outputs of which none can be differentiated."""
    values = [leaf.value for leaf in outputs.leaves]
    kinds = [str(getattr(value, "dtype", "")) for value in values]
    is_whole = any(whole in kind for kind in kinds for whole in WHOLES)
    if is_whole or any(isinstance(value, int) for value in values):
        return "argmax, comparisons and whole numbers have no derivative"
    is_lazy = any(hasattr(value, "to_dense") for value in values)
    return "call .to_dense() on it" if is_lazy else "forgot a return?"


def _is_cut(outputs: Flat) -> bool:
    return any(type(leaf.value) in (float, complex) for leaf in outputs.leaves)


def _require_differentiable(problem: Problem, outputs: Flat) -> None:
    real = [leaf for leaf in outputs.leaves if leaf.dtype and leaf.size]
    if not real:
        got = ", ".join(kind_of(leaf.value) for leaf in outputs.leaves) or "nothing"
        owners = {backends.owner(leaf.value) for leaf in outputs.leaves} - {None}
        if owners - {problem.backend.name}:
            other = sorted(str(owner) for owner in owners)[0]
            raise UsageError(
                f"{problem.label} returned {got} for inputs of {problem.backend.name}; "
                f"name backend={other!r}, or give inputs of {other}"
            )
        if any(leaf.dtype for leaf in outputs.leaves):
            raise UsageError(f"{problem.label} returned arrays without elements: {got}")
        if problem.backend.name == "torch" and _is_cut(outputs):
            raise UsageError(
                f"{problem.label} returned {got}; return the tensor itself: .item(), float() and "
                f".numpy() cut it off from its derivative"
            )
        raise UsageError(
            f"{problem.label} returned {got}; it must return floating-point arrays or numbers "
            f"({_instead(outputs)})"
        )
    for leaf in real:
        if not _is_finite(problem, leaf.value):
            raise UsageError(
                f"{problem.label} returned NaN or infinite numbers at the given inputs"
                f"{f' (output {leaf.path})' if leaf.path else ''}; give a point inside its domain"
            )
