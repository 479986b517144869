"""The framework's other modes: forward, batched, and the derivative of the derivative.

Reverse mode has been held against differences before; the others are held against it, which costs
no evaluation of the function alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from pytest_gradcheck.backends import Array
from pytest_gradcheck.checks import second_order
from pytest_gradcheck.checks.contracts import UNITS
from pytest_gradcheck.checks.look import Look
from pytest_gradcheck.checks.measured import Measured
from pytest_gradcheck.checks.plan import Plan
from pytest_gradcheck.checks.power import percent
from pytest_gradcheck.checks.probe import norm
from pytest_gradcheck.checks.question import Question
from pytest_gradcheck.errors import UsageError
from pytest_gradcheck.limits import Limits
from pytest_gradcheck.numerics import precision
from pytest_gradcheck.results import Finding

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

MODES = ("reverse", "forward", "batched")
LOOKS = 4  # directions along which forward mode is held against reverse mode
MOST_INPUTS = 64  # that are differentiated alone to find the wrong one


def require(question: Question, by_hand: bool) -> tuple[str, ...]:
    """The modes that are asked for.

    Raises:
        UsageError: Unknown modes or order, or a hand-written derivative, which has one mode.
    """
    modes = (question.modes,) if isinstance(question.modes, str) else tuple(question.modes)
    for mode in modes or ("",):
        if mode not in MODES:
            raise UsageError(f"modes: {mode!r} is not known; known: {', '.join(MODES)}")
    if question.order not in (1, 2) or isinstance(question.order, bool):
        raise UsageError(f"order={question.order!r} is not allowed; allowed: 1 and 2")
    if by_hand and (modes != ("reverse",) or question.order == 2):
        raise UsageError(
            "a derivative by hand has one mode and order 1; check its own derivative as a function "
            "(the Hessian with jac=), or give a function of torch or JAX without grad=, vjp=, jac="
        )
    return modes


def findings(
    seen: Measured, question: Question, limits: Limits, seed: int, modes: Sequence[str]
) -> tuple[Finding, ...]:
    """What the modes that were asked for beside reverse have wrong."""
    told = _of_first_order(seen, modes)
    if question.order == 2 and not any(f.severity == "fail" for f in told):
        again, found = second_order.measured(seen, limits, seed)
        told += found
        if again is not None:
            told += tuple(second_order.named(f) for f in _of_first_order(again, modes))
    return told


def _of_first_order(seen: Measured, modes: Sequence[str]) -> tuple[Finding, ...]:
    calm = seen if seen.beside is None else seen.beside
    told: list[Finding] = []
    if "forward" in modes and "reverse" in modes:
        told += _forward(calm)
    if "batched" in modes:
        told += _batched(calm.plan)
    return tuple(told)


def _raised(what: str, error: BaseException) -> str:
    brief = " ".join(str(error).split())
    return f"{what} raises {type(error).__name__}: {brief[:100]}{'…' if len(brief) > 100 else ''}"


def _forward(seen: Measured) -> Iterator[Finding]:
    """Forward mode against reverse mode: ``<w, J v>`` is ``<J' w, v>`` (the transpose)."""
    if seen.plan.claim.dtype != seen.plan.probe.precision:
        return
    looks = [look for look in seen.survey.looks if look.line.direction][:LOOKS]
    try:
        off = [look for look in looks if _is_off(seen, look)]
    except Exception as error:  # the user's own rule; told, not hidden
        told = _raised("forward mode", error)
        yield Finding(code="forward-missing", severity="fail", message=told)
        return
    if not off:
        return
    worst = off[0]
    for index in worst.inputs[:MOST_INPUTS]:
        alone = [v if i == index else None for i, v in enumerate(worst.line.direction)]
        claimed, other, room = _both(seen.plan, alone, worst)
        gaps = [abs(a - b) for a, b in zip(claimed, other, strict=True)]
        if any(gap > room for gap in gaps):
            j = int(np.argmax(gaps))
            yield _of_forward(seen.name(index), claimed[j], other[j])


def _of_forward(name: str, reverse: float, forward: float) -> Finding:
    size = abs(forward - reverse) / max(abs(forward), abs(reverse))
    ratio = forward / reverse if reverse else math.nan
    return Finding(
        code="forward-mode",
        severity="fail",
        where=name,
        message=f"forward mode for {name} is off by {percent(size)}; reverse mode is right",
        numbers=(("forward", forward), ("reverse", reverse), ("ratio", ratio)),
    )


def _is_off(seen: Measured, look: Look) -> bool:
    claimed, other, room = _both(seen.plan, look.line.direction, look)
    return any(not abs(a - b) <= room for a, b in zip(claimed, other, strict=True))


def _both(
    plan: Plan, direction: Sequence[Array | None], look: Look
) -> tuple[list[float], list[float], float]:
    """The pairing by reverse mode, the same by forward mode, and what rounding may do to it."""
    probe, backend = plan.probe, plan.probe.problem.backend
    tangents = [
        backend.convert(x) * 0 if v is None else v
        for x, v in zip(probe.problem.point, direction, strict=True)
    ]
    probe.guard.rewind()
    probe.cost.derivatives += 1
    moved = backend.jvp(probe.problem.run, probe.problem.point, tangents)
    claimed = [probe.pairing(gradient, direction) for gradient in plan.claim.gradients]
    other = [_projected(plan, row, moved) for row in plan.cotangents]
    return claimed, other, max(c.slack for c in look.comparisons)


def _projected(plan: Plan, weights: Sequence[Array | None], moved: Sequence[Array | None]) -> float:
    inner = plan.probe.problem.backend.inner
    pairs = zip(weights, moved, strict=True)
    return math.fsum(inner(w, t) for w, t in pairs if w is not None and t is not None)


def _batched(plan: Plan) -> Iterator[Finding]:
    """A stack of cotangents at once against one at a time."""
    probe, backend = plan.probe, plan.probe.problem.backend
    rows = plan.cotangents if len(plan.cotangents) > 1 else (*plan.cotangents, *plan.cotangents)
    stacks = [_stacked(plan, [row[m] for row in rows]) for m in range(len(rows[0]))]
    probe.guard.rewind()
    probe.cost.derivatives += 1
    try:
        grads = backend.vjps(probe.problem.run, probe.problem.point, stacks)
    except Exception as error:  # the user's own rule; told, not hidden
        told = _raised("the batched gradient (vmap)", error)
        yield Finding(code="batched-missing", severity="fail", message=told)
        return
    unit = precision.epsilon(plan.claim.dtype)
    for index, name in enumerate(probe.problem.names):
        for j, exact in enumerate(plan.claim.gradients):
            got, right = grads[index], exact[index]
            if right is None or got is None:
                gap = 0.0 if got is None and not plan.claim.norms[j][index] else math.inf
                gap = 0.0 if right is None else gap
            else:
                gap = norm(backend, got[j] - right)
            if not gap <= UNITS * unit * plan.claim.norms[j][index]:
                size = plan.claim.norms[j][index]
                share = gap / size if size else math.inf
                yield Finding(
                    code="batched-mode",
                    severity="fail",
                    where=name,
                    message=f"the batched gradient (vmap) of {name} is off by {percent(share)}; "
                    f"one at a time it is right",
                    numbers=(("difference", share),),
                )
                break


def _stacked(plan: Plan, rows: Sequence[Array | None]) -> Array | None:
    backend = plan.probe.problem.backend
    if rows[0] is None:
        return None
    first = rows[0]
    whole = np.stack([backend.to_numpy(row) for row in rows])
    return backend.convert(
        whole, str(first.dtype).removeprefix("torch."), str(getattr(first, "device", ""))
    )
