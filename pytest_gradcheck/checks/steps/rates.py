"""Updates against their replay; and the learning rate with which they would agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from pytest_gradcheck.checks.steps.measure import Run
from pytest_gradcheck.limits import Limits
from pytest_gradcheck.numerics import precision
from pytest_gradcheck.numerics.optimizers import replayed
from pytest_gradcheck.numerics.replay import Followed, Move, followed
from pytest_gradcheck.numerics.variants import Change

Moves = dict[int, list[Move]]
NEAR = 0.05  # of 1: a decay at another place is such a factor, of 1 - lr * weight_decay


def replays(
    run: Run, moves: Moves, name: str, change: Change, limits: Limits
) -> dict[int, Followed]:
    """A replay of each parameter."""
    return {i: _followed(run, i, each, name, change, limits) for i, each in moves.items()}


def fits(run: Run, moves: Moves, name: str, change: Change, limits: Limits) -> bool:
    """Whether a replay reaches every update; the first parameter that it does not ends it.

    Few that are wrong reach the first update of all parameters, so those come before the others.
    """
    return all(
        _followed(run, i, each[:count], name, change, limits).misfit is None
        for count in (1, None)
        for i, each in moves.items()
    )


def _followed(
    run: Run, i: int, moves: Sequence[Move], name: str, change: Change, limits: Limits
) -> Followed:
    dtype = run.loop.parameters[i].dtype
    tolerance = limits.number("step_replay", dtype)
    return followed(name, moves, change, tolerance, precision.epsilon(dtype))


def of_rate(
    run: Run, moves: Moves, name: str, change: Change, limits: Limits
) -> tuple[str, bool] | None:
    """A learning rate other than the claimed one, if that explains every update in a dialect.

    Beside it: whether it is the same factor each time and not nearly 1, or a moment or a decay
    could explain it as well. Where gradients are not seen, a factor on them moves plain gradient
    descent the same.
    """
    count = min(len(each) for each in moves.values())
    rates = []
    for k in range(count):
        i = max(moves, key=lambda j: float(np.linalg.norm(moves[j][k].after - moves[j][k].before)))
        found = _rate(moves[i][: k + 1], name, change)
        if found is None:
            return None
        rates.append(found)
    claimed = [next(iter(moves.values()))[k].hyper["lr"] for k in range(count)]
    changed = {
        i: [_with_rate(m, r) for m, r in zip(each, rates, strict=False)]
        for i, each in moves.items()
    }
    if not fits(run, changed, name, change, limits):
        return None
    odd = [k for k in range(count) if abs(rates[k] - claimed[k]) > 1e-3 * abs(claimed[k])]
    if not odd:
        return None
    k = odd[0]
    told = (
        f"the learning rate of update {k + 1} is {rates[k]:.4g}, not the claimed {claimed[k]:.4g}"
    )
    factors = [r / c if c else 0.0 for r, c in zip(rates, claimed, strict=True)]
    is_steady = max(factors) - min(factors) <= 1e-3 * abs(factors[0])
    if is_steady and not run.loop.can_see and name == "sgd":
        told += f", or the gradient is {factors[0]:.4g} times the right one"
    return told, is_steady and abs(factors[0] - 1) > NEAR


def _rate(moves: Sequence[Move], name: str, change: Change) -> float | None:
    """The rate with which the last of some updates agrees: every rule is linear in it."""
    last = moves[-1]
    base = last.hyper["lr"] or 1e-3
    ends = []
    for rate in (base, 2 * base):
        each = [*moves[:-1], _with_rate(last, rate)]
        ends.append(_last(name, each, change))
    slope = (ends[1] - ends[0]).ravel() / base
    size = float(np.vdot(slope, slope))
    if not size:
        return None
    rest = (last.after - last.before - ends[0]).ravel()
    return float(base + np.vdot(rest, slope) / size)


def _with_rate(move: Move, rate: float) -> Move:
    return replace(move, hyper={**move.hyper, "lr": rate})


def _last(name: str, moves: Sequence[Move], change: Change) -> np.ndarray:
    state, rule = dict(moves[0].start), str(change.get("rule", name))
    update, count = np.zeros_like(moves[-1].before), moves[0].count
    for move in moves:
        if move.gradient is not None:
            count += 1
            hyper = {**move.hyper, **change}
            update, state = replayed(rule, move.gradient, move.before, state, count, hyper)
    return update
