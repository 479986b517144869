"""How much a symmetric matrix stretches at most, from a few products with vectors."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np


def largest(product: Callable[[np.ndarray], np.ndarray], start: np.ndarray, count: int) -> float:
    """A lower bound on the eigenvalue of largest size, with its sign.

    Lanczos (1950) with the directions kept orthogonal by hand; of the Ritz vector ``y`` of the
    largest Ritz value it takes ``|H y| / |y|``, which lies between that value and the eigenvalue.

    Args:
        product: The matrix times a vector.
        start: The first direction.
        count: How many products to take.

    Returns:
        The bound; NaN where the start is zero or a product is not finite.
    """
    directions: list[np.ndarray] = []
    images: list[np.ndarray] = []
    for _ in range(count):
        rest = _beside(directions, images[-1]) if images else start
        size = float(np.linalg.norm(rest))
        if size <= 1e-12 * (float(np.linalg.norm(images[-1])) if images else 0.0):
            break  # the directions so far are all that the matrix mixes
        directions.append(rest / size)
        images.append(product(directions[-1]))
        if not math.isfinite(np.linalg.norm(images[-1])):
            return math.nan
    if not directions:
        return math.nan
    small = np.array([[float(np.vdot(v, w)) for w in images] for v in directions])
    values, vectors = np.linalg.eigh((small + small.T) / 2)
    best = int(np.argmax(np.abs(values)))
    image = vectors[0, best] * images[0]
    for c, w in zip(vectors[1:, best], images[1:], strict=True):
        image += c * w
    return float(np.copysign(np.linalg.norm(image), values[best]))


def _beside(directions: list[np.ndarray], image: np.ndarray) -> np.ndarray:
    """What is left of a vector beside some directions."""
    for v in (*directions, *directions):  # twice is enough (Parlett 1998, section 6.9)
        image = image - np.vdot(v, image) * v
    return image
