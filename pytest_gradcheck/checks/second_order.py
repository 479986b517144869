"""Second order: the gradient as a function of the inputs and of the cotangent, checked likewise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pytest_gradcheck.backends import Array, Leaf
from pytest_gradcheck.checks import verdict
from pytest_gradcheck.checks.derivative import Automatic, WrongDerivative
from pytest_gradcheck.checks.measure import measure
from pytest_gradcheck.checks.measured import Measured
from pytest_gradcheck.checks.probe import Probe
from pytest_gradcheck.checks.problem import Call, Problem
from pytest_gradcheck.errors import UsageError
from pytest_gradcheck.limits import Limits
from pytest_gradcheck.results import Finding

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these


def measured(
    seen: Measured, limits: Limits, seed: int
) -> tuple[Measured | None, tuple[Finding, ...]]:
    """The numbers of second order, and what they say; no numbers where there is no derivative."""
    calm = seen if seen.beside is None else seen.beside
    probe = calm.plan.probe
    problem = _problem(probe, calm.plan.cotangents[0])
    try:
        again = measure(problem, Automatic(), probe.guard, probe.cost, limits, seed)
    except WrongDerivative as error:
        message = f"second order: {error.message}"
        return None, (_wrong(error.where, message),)
    except UsageError as error:
        told = " ".join(str(error.__cause__ or error).split())
        told = told[:100] + ("…" if len(told) > 100 else "")
        message = f"the gradient cannot be differentiated again: {told}"
        return None, (Finding(code="second-order-missing", severity="fail", message=message),)
    return again, _told(again, limits)


def named(finding: Finding) -> Finding:
    """A finding on the gradient, as one of second order."""
    return replace(finding, message=f"second order: {finding.message}")


def _wrong(where: str, message: str, numbers: tuple[tuple[str, float], ...] = ()) -> Finding:
    return Finding(
        code="wrong-second-order", severity="fail", where=where, message=message, numbers=numbers
    )


def _told(again: Measured, limits: Limits) -> tuple[Finding, ...]:
    judged = verdict.of(again, limits)
    reason = next((f for f in judged.findings if f.severity == "fail"), None)
    if judged.verdict == "fail" and reason is not None:
        message = f"second order: {reason.message}"
        return (_wrong(reason.where, message, reason.numbers),)
    if judged.verdict == "undecided":
        told = judged.headline.removeprefix(f"undecided on {judged.label}: ")
        message = f"second order is undecided: {told}"
        return (Finding(code="second-order-undecided", severity="fail", message=message),)
    return ()


def _problem(probe: Probe, weights: Sequence[Array | None]) -> Problem:
    """The gradient as a problem: inputs as before, then the cotangents."""
    inputs = probe.problem.inputs
    extra = _cotangents(probe, weights)
    derived = probe.problem.backend.gradient(probe.problem.run, len(inputs))
    names = probe.problem.names

    def run(values: Sequence[Any]) -> dict[str, Any]:
        return dict(zip(names, derived(list(values)), strict=True))

    leaves = (*inputs, *extra)
    return Problem(
        backend=probe.problem.backend,
        label=probe.problem.label,
        leaves=leaves,
        selected=tuple(i for i, leaf in enumerate(leaves) if leaf.size),
        rebuild=lambda values: Call(run, (values,), {}),
        groups=tuple(leaf.path for leaf in leaves),
    )


def _cotangents(probe: Probe, weights: Sequence[Array | None]) -> list[Leaf]:
    extra = []
    for leaf, w in zip(probe.outputs.leaves, weights, strict=True):
        if not leaf.dtype:
            continue
        value = w if w is not None else probe.problem.backend.convert(leaf.value) * 0
        path = f"cotangent.{leaf.path}" if leaf.path else "cotangent"
        extra.append(replace(leaf, path=path, value=value, trainable=True))
    return extra
