"""The framework's other modes: forward, batched, and the derivative of the derivative.

Reverse mode has been held against differences before; the others are held against it, which costs
no evaluation of the function alone. Forward mode alone (``tangents.py``) is held against
differences itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pytest_gradcheck.checks import batched, forward, second_order
from pytest_gradcheck.checks.measured import Measured
from pytest_gradcheck.checks.question import Question
from pytest_gradcheck.errors import UsageError
from pytest_gradcheck.limits import Limits
from pytest_gradcheck.results import Finding

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

MODES = ("reverse", "forward", "batched")
FORWARD_ALONE = ("forward",)


def require(question: Question, by_hand: bool) -> tuple[str, ...]:
    """The modes that are asked for, each once.

    Raises:
        UsageError: Unknown modes or order, or a hand-written derivative, which has one mode.
    """
    modes = _known(question.modes)
    if question.order not in (1, 2) or isinstance(question.order, bool):
        raise UsageError(f"order={question.order!r} is not allowed; allowed: 1 and 2")
    if by_hand and (modes != ("reverse",) or question.order == 2):
        raise UsageError(
            "a derivative by hand has one mode and order 1; check its own derivative as a function "
            "(the Hessian with jac=), or give a function of torch or JAX without grad=, vjp=, jac="
        )
    if modes == FORWARD_ALONE and question.order == 2:
        raise UsageError(
            "order=2 differentiates the gradient that reverse mode gives; add 'reverse' to modes, "
            "or check the function that gives the derivative along a tangent by itself"
        )
    return modes


def _known(given: object) -> tuple[str, ...]:
    names = (given,) if isinstance(given, str) or not isinstance(given, Iterable) else (*given,)
    for mode in names or ("",):
        if mode not in MODES:
            raise UsageError(f"modes: {mode!r} is not known; known: {', '.join(MODES)}")
    return tuple(mode for mode in MODES if mode in names)


def findings(
    seen: Measured, question: Question, limits: Limits, seed: int, modes: Sequence[str]
) -> tuple[Finding, ...]:
    """What the modes that were asked for beside reverse have wrong."""
    told = _beside_reverse(seen, limits, modes)
    if question.order == 2:
        again, found = second_order.measured(seen, limits, seed)
        told += found
        if again is not None:  # what is wrong or missing in first order is so in second
            right = [mode for mode in modes if not any(_is_of(f, mode) for f in told)]
            told += tuple(map(second_order.named, _beside_reverse(again, limits, right)))
    return told


def _is_of(finding: Finding, mode: str) -> bool:
    """Whether a finding says that a mode is wrong or missing."""
    return finding.severity == "fail" and finding.code.startswith(f"{mode}-")


def _beside_reverse(seen: Measured, limits: Limits, modes: Sequence[str]) -> tuple[Finding, ...]:
    calm = seen if seen.beside is None else seen.beside
    told: tuple[Finding, ...] = ()
    if "forward" in modes and modes != FORWARD_ALONE:
        told += tuple(forward.findings(calm, limits))
    if "batched" in modes:
        told += tuple(batched.findings(calm, limits))
    return told
