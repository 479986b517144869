"""Directions along which the loss is differed: where every tensor, and every row, is seen."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

SMALL = 0.1  # of the largest row's gradient: a smaller one counts less
LEAST = 1e-2  # of the largest tensor's gradient: a smaller one is seen beside that one only


def even(
    grads: Sequence[np.ndarray], sizes: Sequence[float], are_small: Sequence[bool]
) -> list[np.ndarray]:
    """A direction along which each tensor gives a slope of 1, and small ones next to none.

    And in a tensor each row about the same: along the gradient itself, parts that are too long and
    parts that are too short (of a recurrent state that is detached, say) add up to what is right.
    What is small may have been made so, and is moved as far as what is large.
    """
    largest = max(sizes)
    return [
        (_rowwise(g) * (size / largest) if is_small else _rowwise(g)) if size else 0 * g
        for g, size, is_small in zip(grads, sizes, are_small, strict=True)
    ]


def _rowwise(g: np.ndarray) -> np.ndarray:
    rows = g.reshape(len(g), -1) if g.ndim > 1 else g.reshape(1, -1)
    sizes = np.sqrt(np.einsum("ij,ij->i", rows, rows))
    largest = sizes.max()
    # A tiny row is moved as far as the largest: it may have been made tiny.
    weights = np.minimum(np.maximum(sizes, SMALL * largest) ** 2, sizes * largest)
    weights = np.divide(1.0, weights, out=np.zeros_like(sizes), where=weights > 0)
    slope = np.sum(sizes**2 * weights)
    found: np.ndarray = (rows * (weights / slope)[:, None]).reshape(g.shape)
    return found


def zeros(grads: Sequence[np.ndarray]) -> list[np.ndarray]:
    """A direction over what the gradient is 0 for, in units of the rest of each tensor's."""
    rng = np.random.default_rng(0)
    sizes = [float(np.linalg.norm(g)) for g in grads]
    least = LEAST * max(sizes, default=0.0)
    moves = []
    for g, size in zip(grads, sizes, strict=True):
        if np.all(g):
            moves.append(np.zeros_like(g))
            continue
        # Of unequal lengths: signs alone add up to nothing at the kinks of units that are alike.
        move = rng.choice((-1.0, 1.0), g.shape) * rng.uniform(0.5, 1.5, g.shape)
        moves.append(move * (g == 0) / max(size, least) if size else 0 * g)
    return moves
