"""One sample of a batch replaced, and whether the answers for the others move with it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

FEWEST = 3  # samples: one that is replaced by another, and one to look at


def exchanged(arrays: Sequence[np.ndarray], rows: int) -> list[np.ndarray] | None:
    """The arrays with a copy of the second sample in the place of the first.

    Args:
        arrays: Of floating-point numbers.
        rows: Samples; an array of another length holds no samples and stays as it is.

    Returns:
        None where nothing changes by that.
    """
    if rows < FEWEST:
        return None
    fresh = [_exchanged(x) if x.ndim and len(x) == rows else x for x in arrays]
    pairs = zip(arrays, fresh, strict=True)
    return None if all(np.array_equal(a, b) for a, b in pairs) else fresh


def _exchanged(x: np.ndarray) -> np.ndarray:
    fresh = np.array(x)
    fresh[0] = fresh[1]  # a sample of the user's own, whatever its values mean
    return fresh


def larger(number: int) -> float:
    """By how much other samples are larger: what chooses among branches may go by its biases."""
    return 1.0 if number % 3 == 1 else 10.0


def shuffled(arrays: Sequence[np.ndarray], number: int) -> list[np.ndarray] | None:
    """Other samples, of features that a batch has; None where there are no features.

    Args:
        arrays: Samples along the first axis of each that has more than one axis.
        number: Which of many; most are to be ``larger``.
    """
    rng = np.random.default_rng(number)
    fresh = [rng.permuted(x, axis=0) if x.ndim > 1 and len(x) > 1 and x.size else x for x in arrays]
    return None if all(a is b for a, b in zip(arrays, fresh, strict=True)) else fresh


def moved(answer: np.ndarray, other: np.ndarray) -> float:
    """Largest change of the answers for the other samples, over the largest of them.

    The second sample is left out: where samples are sorted or compared, it has a twin now.
    """
    if answer.shape != other.shape or len(answer) < FEWEST:
        return math.nan
    one, two = (x[2:].astype(np.float64) for x in (answer, other))
    size = float(np.abs(one).max())
    return float(np.abs(two - one).max()) / size if size else 0.0
