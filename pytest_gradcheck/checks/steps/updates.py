"""The updates as a table: what arrived beside what should have, and what came of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from pytest_gradcheck.checks.steps.measure import Run
from pytest_gradcheck.checks.steps.received import Pair
from pytest_gradcheck.checks.steps.windows import Grads, Window
from pytest_gradcheck.numerics import clipping
from pytest_gradcheck.results import Evidence


def _norm(seen: Run, grads: Grads) -> float:
    return seen.sizes.whole(g for g in grads if g is not None)


def _off(seen: Run, pair: Pair) -> float | None:
    """The difference of a received gradient from the right one, relative to that."""
    got = pair.got
    if got is None or pair.window.is_spared:
        return None
    ours = [p.trainable and p.owners != 0 for p in seen.loop.parameters]
    both = zip(ours, got, pair.expected.clipped, pair.window.at, strict=True)
    zero = np.zeros_like
    rows = [(zero(x) if a is None else a, zero(x) if b is None else b) for o, a, b, x in both if o]
    size = seen.sizes.whole(b for _, b in rows)
    return seen.sizes.distance(rows) / size if size else math.nan


def _length(window: Window) -> float:
    return clipping.distance(zip(window.at, window.updates[-1].after, strict=True))


def _held(pair: Pair, value: float | None) -> float | None:
    """A number of a fresh gradient; None where none was taken."""
    return None if pair.window.is_spared else value


def table(seen: Run, pairs: Sequence[Pair]) -> Evidence:
    """One row for each update; without the columns of which nothing was seen."""
    columns: list[tuple[str, list[Any]]] = [
        ("update", [f"{p.window.number}" for p in pairs]),
        ("loss", [_held(p, float(np.mean(p.window.losses))) for p in pairs]),
        ("right gradient", [_held(p, _norm(seen, p.expected.clipped)) for p in pairs]),
        ("received", [None if p.got is None else _norm(seen, p.got) for p in pairs]),
        ("off by", [_off(seen, p) for p in pairs]),
        ("moved by", [_length(p.window) for p in pairs]),
    ]
    columns = [each for each in columns if any(value is not None for value in each[1])]
    return Evidence(
        name="updates",
        title="loss, norms of the right and the received gradient, length of the update",
        columns=tuple(name for name, _ in columns),
        rows=tuple(zip(*(column for _, column in columns), strict=True)),
    )
