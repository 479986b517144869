"""Updates of one tensor held against an independent replay of an optimizer in float64."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pytest_gradcheck.numerics import optimizers
from pytest_gradcheck.numerics.optimizers import COARSE, WHOLE, Hyper
from pytest_gradcheck.numerics.variants import Change

CHUNK = 1 << 14  # elements in float64, which stay in the cache; in float32 twice as many
SHARE = 0.5  # of a bound, within which float32 must be: it rounds an update by 1e-5 of itself
CANCELS = 4.0  # roundings of a momentum that a gradient takes back
TINY = 1e-30  # a square beside which those that float32 loses are nothing


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
    if _is_quick(name, moves, epsilon):
        sums = _added_up(name, moves, change, epsilon, np.dtype(np.float32))
        if all(s.is_clear and s.is_reached(m, tolerance, SHARE) for m, s in sums):
            return Followed(None, sum(s.lost for _, s in sums), sum(s.total for _, s in sums))
    sums = _added_up(name, moves, change, epsilon, np.dtype(np.float64))
    lost = total = 0
    given = iter(sums)
    for number, move in enumerate(moves, start=1):
        if move.gradient is None:
            if np.any(move.after != move.before):
                return Followed(Misfit(number, 1.0, np.inf, np.nan), lost, total)
            continue
        _, found = next(given)
        if not found.is_reached(move, tolerance):
            return Followed(found.misfit(number), lost, total)
        total += found.total
        lost += found.lost
    return Followed(None, lost, total)


def _is_quick(name: str, moves: Sequence[Move], epsilon: float) -> bool:
    """Whether a replay in float32 may be enough: of a large tensor that is no finer itself.

    What it reaches within a share of the bound, a replay in float64 reaches within all of it.
    """
    is_large = bool(moves) and moves[0].before.size > CHUNK
    is_seen = all(move.gradient is not None and not move.slack for move in moves)
    return is_large and is_seen and epsilon > 1e-10 and name not in WHOLE


def _added_up(
    name: str, moves: Sequence[Move], change: Change, epsilon: float, dtype: np.dtype
) -> list[tuple[Move, _Sums]]:
    """What the updates with a gradient and their replays add up to, in a precision.

    All updates of a part come one after another: it and its state stay in the cache.
    """
    given = [move for move in moves if move.gradient is not None]
    sums = [(move, _Sums(epsilon)) for move in given]
    first = 1 + (moves[0].count if moves else 0)
    for part in _parts(name, moves, dtype):
        for t, (move, found) in enumerate(sums, start=first):
            part.move(name, move, 1 if change.get("stuck") else t, {**move.hyper, **change}, found)
    for (_, last), (_, found) in itertools.pairwise(sums):
        found.before = last.size
    return sums


class _Sums:
    """What an update and its replay add up to, part by part.

    Args:
        epsilon: Unit in the last place of the parameter.
    """

    def __init__(self, epsilon: float) -> None:
        self._epsilon = epsilon
        self._squares = [0.0, 0.0, 0.0, 0.0]  # of error, replayed and actual update, and slack
        self.before = 0.0  # norm of the update before: of its momentum little may be left
        self.lost = self.total = 0

    def add(
        self, expected: np.ndarray, actual: np.ndarray, before: np.ndarray, other: np.ndarray | None
    ) -> None:
        """A part of the tensor; ``other`` is the replay with another gradient."""
        rows = [actual - expected, expected, actual]
        rows += [] if other is None else [other - expected]
        for k, row in enumerate(rows):
            self._squares[k] += float(np.vdot(row, row))
        self.total += int(np.count_nonzero(expected != 0))  # counting bits is quicker
        self.lost += _lost(expected, actual, before, self._epsilon)

    @property
    def size(self) -> float:
        """The norm of the actual update."""
        return math.sqrt(self._squares[2])

    @property
    def is_clear(self) -> bool:
        """Whether no square of note was lost in float32."""
        return all(TINY < square < math.inf for square in self._squares[1:3])

    def is_reached(self, move: Move, tolerance: float, share: float = 1.0) -> bool:
        """Whether the replay reaches the update within a share of what is accepted."""
        error, expected, actual, slack = map(math.sqrt, self._squares)
        bound = tolerance * max(expected, actual) + 2 * slack
        if error <= share * bound:
            return True  # which needs no look at the parameter
        rounding = 2 * self._epsilon * float(np.linalg.norm(move.before))
        rounding += CANCELS * self._epsilon * self.before
        return error <= share * (bound + rounding)

    def misfit(self, number: int) -> Misfit:
        """An update that the replay does not reach."""
        error, expected, actual, _ = map(math.sqrt, self._squares)
        inner = (self._squares[1] + self._squares[2] - self._squares[0]) / 2
        ratio = inner / self._squares[1] if expected else math.inf
        cosine = ratio * expected / actual if actual and expected else math.nan
        return Misfit(number, error / max(expected, actual, 1e-300), ratio, cosine)


class _Part:
    """Some elements of a tensor and their state: what a rule makes of few stays in the cache."""

    def __init__(
        self, start: Mapping[str, np.ndarray], size: int, place: slice | None, dtype: np.dtype
    ) -> None:
        self._place, self._dtype = place, dtype
        self._last: tuple[np.ndarray | None, np.ndarray] = None, np.zeros(0)  # after a move
        taken = {k: self._of(x) if np.size(x) == size else x for k, x in start.items()}
        self._state: optimizers.State = taken
        self._shaken: optimizers.State = dict(taken)

    def _of(self, x: np.ndarray) -> np.ndarray:
        part = x if self._place is None else x.reshape(-1)[self._place]
        return part.astype(self._dtype, copy=False)

    def move(self, name: str, move: Move, t: int, hyper: Hyper, sums: _Sums) -> None:
        """One update."""
        if hyper.get("forget"):
            self._state, self._shaken = {}, {}
        whole, last = self._last
        before = last if move.before is whole else self._of(move.before)
        g, after = self._of(move.gradient), self._of(move.after)  # type: ignore[arg-type]  # there is a gradient
        self._last = move.after, after
        expected, self._state = optimizers.replayed(name, g, before, self._state, t, hyper)
        other = None
        if move.slack:
            nudged = g + move.slack / np.sqrt(move.before.size) * (g != 0)
            other, self._shaken = optimizers.replayed(name, nudged, before, self._shaken, t, hyper)
        sums.add(expected, after - before, before, other)


def _parts(name: str, moves: Sequence[Move], dtype: np.dtype) -> Iterator[_Part]:
    """All elements, or so many at a time where a rule takes each by itself."""
    size = moves[0].before.size if moves else 0
    start: Mapping[str, np.ndarray] = moves[0].start if moves else {}
    if size <= CHUNK or name in WHOLE:
        yield _Part(start, size, None, dtype)
        return
    step = CHUNK * 8 // dtype.itemsize
    for k in range(0, size, step):
        yield _Part(start, size, slice(k, k + step), dtype)


def _lost(expected: np.ndarray, actual: np.ndarray, before: np.ndarray, epsilon: float) -> int:
    """Elements that stand still though they should move, by less than a unit in the last place."""
    still = actual == 0
    if not still.any():
        return 0
    still &= expected != 0
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
