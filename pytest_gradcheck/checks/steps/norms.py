"""Clips as they are written by hand: the right ones, and those with another norm in them."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from pytest_gradcheck.checks.steps.measure import Run
from pytest_gradcheck.checks.steps.windows import Grads
from pytest_gradcheck.numerics import clipping

TINY = 1e-300
LEAST_NORM = 1e-3  # of a parameter, in adaptive clipping (Brock et al. 2021, equation 3)

At = Sequence[np.ndarray]
Cut = Callable[[Grads, At, float], Grads]  # a gradient, the parameters, a threshold
Size = Callable[[list[np.ndarray], At], float]


def by_norm(raw: Grads, _: At, threshold: float) -> Grads:
    """By one norm over all."""
    return _shortened(raw, _size(raw, 2.0), threshold)


def by_value(raw: Grads, _: At, threshold: float) -> Grads:
    """Each element by itself."""
    return [None if g is None else np.clip(g, -threshold, threshold) for g in raw]


def each_alone(raw: Grads, _: At, threshold: float) -> Grads:
    """Each tensor by its own norm."""
    return [None if g is None else _one(g, float(np.linalg.norm(g)), threshold) for g in raw]


def adaptive(raw: Grads, at: At, threshold: float) -> Grads:
    """Each tensor by its norm over that of the parameter."""
    pairs = zip(raw, at, strict=True)
    return [None if g is None else _one(g, relative(g, x), threshold) for g, x in pairs]


def adaptive_rows(raw: Grads, at: At, threshold: float) -> Grads:
    """Each unit of a layer by the norm of its gradient over that of its weights."""
    pairs = zip(raw, at, strict=True)
    return [None if g is None else _rows(g, x, threshold) for g, x in pairs]


def relative(g: np.ndarray, x: np.ndarray) -> float:
    """The norm of a gradient over that of its parameter."""
    return float(np.linalg.norm(g)) / max(float(np.linalg.norm(x)), LEAST_NORM)


def relative_rows(g: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The same of each row; of all where there are none."""
    if g.ndim < 2:
        return np.array([relative(g, x)])
    ratios: np.ndarray = _row_norms(g) / np.maximum(_row_norms(x), LEAST_NORM)
    return ratios


def _row_norms(x: np.ndarray) -> np.ndarray:
    rows = x.reshape(len(x), math.prod(x.shape[1:]))
    return np.asarray(np.linalg.norm(rows, axis=1), dtype=np.float64)


def _rows(g: np.ndarray, x: np.ndarray, threshold: float) -> np.ndarray:
    if g.ndim < 2:
        return _one(g, relative(g, x), threshold)
    factors = np.minimum(1.0, threshold / np.maximum(relative_rows(g, x), TINY))
    found: np.ndarray = g * factors.astype(g.dtype).reshape(-1, *(1 for _ in g.shape[1:]))
    return found


def _size(raw: Grads, order: float) -> float:
    return clipping.norm([g for g in raw if g is not None], order)


def _one(g: np.ndarray, size: float, threshold: float) -> np.ndarray:
    return g * min(1.0, threshold / max(size, TINY))


def _shortened(raw: Grads, size: float, threshold: float) -> Grads:
    return [None if g is None else _one(g, size, threshold) for g in raw]


def mistaken(run: Run, order: float) -> Iterator[tuple[str, Cut]]:
    """Clips with a mistake in their norm, which is to be of an order: in words."""
    right = "the norm" if order == 2 else f"the norm of order {order:g}"
    told = f"the gradient is clipped by {{}}, not by {right} of all gradients"
    for name, size in _sizes(run):
        yield told.format(name), functools.partial(_mistaken, size)
    for name, is_scaled in (("", False), (" and made as long as the threshold", True)):
        yield (
            f"each tensor is divided by its own norm{name}, whether it is long or short",
            functools.partial(_normalised, is_scaled=is_scaled),
        )


def _mistaken(size: Size, raw: Grads, at: At, threshold: float) -> Grads:
    return _shortened(raw, size([g for g in raw if g is not None], at), threshold)


def _normalised(raw: Grads, _: At, threshold: float, is_scaled: bool) -> Grads:
    length = threshold if is_scaled else 1.0
    return [None if g is None else g * (length / max(float(np.linalg.norm(g)), TINY)) for g in raw]


def _sizes(run: Run) -> Iterator[tuple[str, Size]]:
    """What is taken for the norm of all gradients, by its name."""
    yield "the square of the norm", lambda gs, _: clipping.norm(gs, 2.0) ** 2
    yield "the norm of order 1", lambda gs, _: clipping.norm(gs, 1.0)
    yield "the norm of order 2", lambda gs, _: clipping.norm(gs, 2.0)
    yield "the largest element", lambda gs, _: clipping.norm(gs, math.inf)
    yield "the sum of the norms of the tensors", lambda gs, _: math.fsum(_each(gs))
    yield "the mean of the norms of the tensors", lambda gs, _: math.fsum(_each(gs)) / len(gs)
    yield "the largest norm of a tensor", lambda gs, _: max(_each(gs), default=0.0)
    yield (
        "the root mean square of the elements",
        lambda gs, _: clipping.norm(gs, 2.0) / math.sqrt(sum(g.size for g in gs)),
    )
    yield "the norm of the parameters", lambda _, at: clipping.norm(list(at), 2.0)
    for i, name in enumerate(run.names):
        yield f"the norm of {name} alone", functools.partial(_alone, i)


def _each(grads: Sequence[np.ndarray]) -> list[float]:
    return [float(np.linalg.norm(g)) for g in grads]


def _alone(i: int, grads: list[np.ndarray], at: At) -> float:
    """The norm of one gradient, where every tensor has one."""
    return float(np.linalg.norm(grads[i])) if len(grads) == len(at) else math.inf
