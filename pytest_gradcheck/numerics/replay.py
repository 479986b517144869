"""Updates of one tensor held against an independent replay of an optimizer in float64."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pytest_gradcheck.numerics import optimizers
from pytest_gradcheck.numerics.optimizers import COARSE, Hyper
from pytest_gradcheck.numerics.variants import Change


@dataclass(frozen=True, slots=True, eq=False)
class Move:
    """One update of one tensor.

    Args:
        before: Parameter before.
        after: Parameter after.
        gradient: What the optimizer was given; None for a tensor that it left out.
        hyper: Hyperparameters at the time.
        slack: Norm by which the gradient itself may be off; 0 where it was seen.
        start: State of the optimizer before, where this is the first move that is seen.
        count: Number of updates before, likewise.
    """

    before: np.ndarray
    after: np.ndarray
    gradient: np.ndarray | None
    hyper: Hyper
    slack: float = 0.0
    start: Mapping[str, np.ndarray] = field(default_factory=dict)
    count: int = 0


@dataclass(frozen=True, slots=True)
class Misfit:
    """The first update that a replay does not reach.

    Args:
        update: Its number, from 1.
        error: Norm of the difference over that of the larger update.
        ratio: ``<actual, replayed> / <replayed, replayed>``.
        cosine: Cosine between actual and replayed update.
    """

    update: int
    error: float
    ratio: float
    cosine: float


@dataclass(frozen=True, slots=True)
class Followed:
    """A replay beside the updates of one tensor.

    Args:
        misfit: The first update that the replay does not reach, at which it ends; None if none.
        lost: Updates of single elements that are lost: smaller than a unit in the last place, and
            the element stands still.
        total: Updates of single elements that are not zero.
    """

    misfit: Misfit | None
    lost: int
    total: int


def misfit(
    name: str, moves: Sequence[Move], change: Change, tolerance: float, epsilon: float
) -> Misfit | None:
    """The first update of a tensor that the replay with a change does not reach, or None."""
    return followed(name, moves, change, tolerance, epsilon).misfit


def followed(
    name: str, moves: Sequence[Move], change: Change, tolerance: float, epsilon: float
) -> Followed:
    """Replay the updates of a tensor as far as they are reached.

    Args:
        name: The optimizer, a name of ``RULES``.
        moves: The updates of one tensor, in their order.
        change: Hyperparameters to replace, of ``variants.py``.
        tolerance: Relative error accepted of an update.
        epsilon: Unit in the last place of the parameter, which each update rounds.
    """
    name = str(change.get("rule", name))
    tolerance = max(tolerance, COARSE.get(name, 0.0))
    tolerance = max(tolerance, change.get("float32", 0.0) if epsilon > 1e-10 else 0.0)
    state: optimizers.State = dict(moves[0].start) if moves else {}
    shaken: optimizers.State = dict(state)
    count = moves[0].count if moves else 0
    lost = total = 0
    for number, move in enumerate(moves, start=1):
        actual = move.after - move.before
        if move.gradient is None:
            if np.any(actual != 0):
                return Followed(Misfit(number, 1.0, np.inf, np.nan), lost, total)
            continue
        count += 1
        hyper = {**move.hyper, **change}
        t = 1 if change.get("stuck") else count
        if change.get("forget"):
            state = {}
        expected, state = optimizers.replayed(name, move.gradient, move.before, state, t, hyper)
        error = float(np.linalg.norm(actual - expected))
        sizes = float(np.linalg.norm(expected)), float(np.linalg.norm(actual))
        rounding = 2 * epsilon * float(np.linalg.norm(move.before))
        bound = tolerance * max(sizes) + rounding
        if move.slack:
            nudge = move.slack / np.sqrt(move.gradient.size)
            nudged = move.gradient + nudge * (move.gradient != 0)
            other, shaken = optimizers.replayed(name, nudged, move.before, shaken, t, hyper)
            bound += 2 * float(np.linalg.norm(other - expected))
        if not error <= bound:
            size = float(np.vdot(expected, expected))
            ratio = float(np.vdot(actual, expected)) / size if size else np.inf
            cosine = ratio * sizes[0] / sizes[1] if sizes[1] and size else np.nan
            off = Misfit(number, error / max(max(sizes), 1e-300), ratio, cosine)
            return Followed(off, lost, total)
        total += int(np.count_nonzero(expected))
        lost += _lost(expected, actual, move.before, epsilon)
    return Followed(None, lost, total)


def _lost(expected: np.ndarray, actual: np.ndarray, before: np.ndarray, epsilon: float) -> int:
    """Elements that stand still though they should move, by less than a unit in the last place."""
    still = (actual == 0) & (expected != 0)
    if not np.any(still):
        return 0
    return int(np.sum(np.abs(expected[still]) < epsilon * np.abs(before[still])))


def states(name: str, moves: Sequence[Move], change: Change) -> dict[str, Any]:
    """The state of a replay after all updates, by the name of its parts."""
    name = str(change.get("rule", name))
    state: optimizers.State = dict(moves[0].start) if moves else {}
    count = moves[0].count if moves else 0
    for move in moves:
        if move.gradient is not None:
            count += 1
            hyper = {**move.hyper, **change}
            _, state = optimizers.replayed(name, move.gradient, move.before, state, count, hyper)
    return state
