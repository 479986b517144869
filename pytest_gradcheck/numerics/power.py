"""How small an error random directions can miss, and with what probability.

An error vector e of a gradient shows along a standard Gaussian direction v as the normal variable
e.v with standard deviation |e|. It hides where |e.v| <= t, which has probability
erf(t / (|e| sqrt 2)) <= sqrt(2/pi) t/|e|; k independent directions miss it with the product.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

DENSITY = math.sqrt(2 / math.pi)  # twice the standard normal density at 0
LARGEST = math.log(sys.float_info.max)  # of a logarithm whose exponential is a number


def miss_probability(hidden: Sequence[float], error: float) -> float:
    """Probability that an error of norm ``error`` stays unseen.

    Args:
        hidden: For each direction, the largest difference that would be accepted there.
        error: Norm of the error, in the same units.
    """
    if error <= 0:
        return 1.0
    return math.prod(math.erf(t / (error * math.sqrt(2))) for t in hidden)


def visible_error(hidden: Sequence[float], probability: float) -> float:
    """Smallest norm of an error that is missed with at most the given probability.

    Uses erf(x/sqrt 2) <= sqrt(2/pi) x, which is tight for the small x that matter: the answer is
    an upper bound of the exact one.
    """
    hidden = [t for t in hidden if math.isfinite(t)]  # the others show nothing
    if not hidden:
        return math.inf
    if min(hidden) == 0:
        return 0.0
    logs = math.fsum(math.log(DENSITY * t) for t in hidden)
    size = (logs - math.log(probability)) / len(hidden)
    return math.exp(size) if size < LARGEST else math.inf
