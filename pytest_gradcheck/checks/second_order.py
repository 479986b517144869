"""Second order: the gradient as a function of the inputs and of the cotangent, checked likewise.

A custom backward can be wrong in its derivative with respect to either, so that cotangents are
inputs like the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pytest_gradcheck.backends import Array, Leaf
from pytest_gradcheck.checks import verdict
from pytest_gradcheck.checks.compare import cancellation
from pytest_gradcheck.checks.derivative import Automatic
from pytest_gradcheck.checks.form import WrongDerivative
from pytest_gradcheck.checks.measure import measure
from pytest_gradcheck.checks.measured import Measured
from pytest_gradcheck.checks.plan import Plan
from pytest_gradcheck.checks.probe import Probe
from pytest_gradcheck.checks.problem import Call, Problem
from pytest_gradcheck.errors import UsageError, brief
from pytest_gradcheck.limits import Limits
from pytest_gradcheck.numerics.seeds import derive
from pytest_gradcheck.results import Finding, Severity

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

MOST_NAMED = 5  # inputs in a note


def measured(
    seen: Measured, limits: Limits, seed: int
) -> tuple[Measured | None, tuple[Finding, ...]]:
    """The numbers of second order, and what they say; no numbers where there is no derivative."""
    calm = seen if seen.beside is None else seen.beside
    probe = calm.plan.probe
    problem, own = _problem(calm.plan), derive(seed, "second order")
    try:
        again = measure(problem, Automatic(), probe.guard, probe.cost, limits, own)
    except WrongDerivative as error:
        return None, (_of_form(error),)
    except UsageError as error:
        cause = error.__cause__ or error
        told = f"{type(cause).__name__}: {brief(str(cause), 100)}"
        message = f"differentiating the gradient again raises {told}"
        return None, (Finding(code="second-order-missing", severity="fail", message=message),)
    return again, _told(again, limits)


def named(finding: Finding) -> Finding:
    """A finding on another mode of the gradient, as one of second order.

    A framework may lack a mode of second order for its own operations; that is no failure.
    """
    is_missing = finding.code in ("forward-missing", "batched-missing")
    severity: Severity = "warn" if is_missing and finding.severity == "fail" else finding.severity
    return replace(finding, severity=severity, message=f"second order: {finding.message}")


def _of_form(error: WrongDerivative) -> Finding:
    if error.code == "domain-edge":
        return _undecided(error.message)
    return _wrong(error.where, error.message)


def _wrong(where: str, told: str, numbers: tuple[tuple[str, float], ...] = ()) -> Finding:
    return Finding(
        code="wrong-second-order",
        severity="fail",
        where=where,
        message=f"second order: {told}",
        numbers=numbers,
    )


def _undecided(told: str) -> Finding:
    message = f"second order is undecided: {told}"
    return Finding(code="second-order-undecided", severity="fail", message=message)


def _told(again: Measured, limits: Limits) -> tuple[Finding, ...]:
    judged = verdict.of(again, limits)
    reason = next((f for f in judged.findings if f.severity == "fail"), None)
    if judged.verdict == "fail" and reason is not None:
        return (_wrong(reason.where, reason.message, reason.numbers),)
    if judged.verdict == "undecided":
        return (_undecided(judged.headline.removeprefix(f"undecided on {judged.label}: ")),)
    return _linear(again)


def _linear(again: Measured) -> tuple[Finding, ...]:
    """A note on inputs with which the gradient does not change, so that nothing was to be seen."""
    calm = again if again.beside is None else again.beside
    still = [i for i in range(calm.survey.count) if i not in calm.survey.live]
    names = [calm.name(i) for i in still]
    if not names:
        return ()
    listed = ", ".join(names[:MOST_NAMED]) + (", …" if len(names) > MOST_NAMED else "")
    message = (
        f"second order: the gradient does not change with {listed}, and its derivative is zero"
    )
    return (Finding(code="second-order-zero", severity="note", where=names[0], message=message),)


def _problem(plan: Plan) -> Problem:
    """The gradient as a problem: inputs as before, then the cotangents."""
    probe = plan.probe
    inputs = probe.problem.inputs
    leaves = (*inputs, *_cotangents(probe, plan.cotangents[0]))
    derived = probe.problem.backend.gradient(probe.problem.run, len(inputs))
    names, shown = probe.problem.names, _shown(plan)

    def run(values: Sequence[Any]) -> dict[str, Any]:
        gradient = dict(zip(names, derived(list(values)), strict=True))
        return {names[i]: gradient[names[i]] for i in shown}

    return Problem(
        backend=probe.problem.backend,
        label=probe.problem.label,
        leaves=leaves,
        selected=tuple(i for i, leaf in enumerate(leaves) if leaf.size),
        rebuild=lambda values: Call(run, (values,), {}),
        groups=tuple(leaf.path for leaf in leaves),
    )


def _shown(plan: Plan) -> list[int]:
    """The inputs whose gradient is more than rounding, where there are any.

    What cancels to nothing, such as the gradient of a bias before a normalisation, would drown
    the others, since outputs are weighed by their sizes.
    """
    rounding = cancellation(plan, 0)
    scaled = [n * s for n, s in zip(plan.claim.norms[0], plan.probe.scales, strict=True)]
    return [i for i, size in enumerate(scaled) if not 0 < size <= rounding] or [*range(len(scaled))]


def _cotangents(probe: Probe, weights: Sequence[Array | None]) -> list[Leaf]:
    extra = []
    for leaf, w in zip(probe.outputs.leaves, weights, strict=True):
        if not leaf.dtype:
            continue
        value = w if w is not None else probe.problem.backend.convert(leaf.value) * 0
        path = f"cotangent.{leaf.path}" if leaf.path else "cotangent"
        extra.append(replace(leaf, path=path, value=value, trainable=True))
    return extra
