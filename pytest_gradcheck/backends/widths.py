"""A model made anew with wider layers: by its own ``make``, or by drawing from its own weights.

A ``make`` that takes ``width`` (with a number as its default) is asked for more. Parameters that
are a plain chain of matrices and biases are drawn wider: entries at random from those that are
there, scaled so that each unit still sums to the same variance.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

Arrays = Mapping[str, np.ndarray]  # by path, in the order of the data


def asked(make: Callable[..., Any] | None, factor: int) -> Callable[..., Any] | None:
    """``make`` with its ``width`` times a factor; None where it takes none."""
    if make is None:
        return None
    try:
        width = inspect.signature(make).parameters.get("width")
    except (TypeError, ValueError):
        return None
    if width is None or isinstance(width.default, bool) or not isinstance(width.default, int):
        return None
    if width.kind not in (width.POSITIONAL_OR_KEYWORD, width.KEYWORD_ONLY):
        return None
    return functools.partial(make, width=factor * width.default)


def widened(arrays: Arrays, factor: int, seed: int) -> dict[str, np.ndarray] | None:
    """The parameters with hidden layers ``factor`` times as wide; None unless they are a chain."""
    names = [name for name, x in arrays.items() if x.ndim == 2]
    axes = _axes([arrays[name].shape for name in names])
    if axes is None or len(names) < 2:
        return None
    owners = {name.rpartition(".")[0]: name for name in names}
    if len(owners) < len(names) and len(arrays) > len(names):
        return None  # nothing tells which bias belongs to which matrix
    rng = np.random.default_rng(seed)
    fresh: dict[str, np.ndarray] = {}
    for name, x in arrays.items():
        matrix = name if x.ndim == 2 else owners.get(name.rpartition(".")[0], "")
        if not matrix or x.ndim not in (1, 2) or not x.size:
            return None
        is_first, is_last = matrix == names[0], matrix == names[-1]
        grown = [1 if is_first else factor, 1 if is_last else factor]  # of inputs and outputs
        if x.ndim == 2:
            shape = tuple(n * grown[axes.index(axis)] for axis, n in enumerate(x.shape))
            fresh[name] = (_drawn(rng, x, shape) / math.sqrt(grown[0])).astype(x.dtype)
        elif len(x) == arrays[matrix].shape[axes[1]]:
            fresh[name] = _drawn(rng, x, (len(x) * grown[1],)).astype(x.dtype)
        else:
            return None
    return fresh


def _drawn(rng: np.random.Generator, x: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    return rng.choice(np.asarray(x, np.float64).ravel(), size=tuple(shape))


def _axes(shapes: Sequence[tuple[int, ...]]) -> tuple[int, int] | None:
    """Axis of the inputs and of the outputs of matrices, each of which takes what the last gave."""
    for inputs, outputs in ((0, 1), (1, 0)):
        if all(a[outputs] == b[inputs] for a, b in itertools.pairwise(shapes)):
            return inputs, outputs
    return None
