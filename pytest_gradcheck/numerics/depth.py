"""How a quantity changes along the depth of a network: from end to end, per layer, and where.

The quantity is the flow of each layer (gradient times activation), in the order of the data. A
network has side branches, whose flow is smaller than that of the trunk; the largest in a window
of an eighth of the layers is the trunk's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

WINDOWS = 8
# Spread of layers that another path goes round, as in residual blocks: 0.22 was the most that was
# measured (12 to 48 blocks of 8 to 32 units, with and without LayerNorm).
ROUND = 0.3
DIGITS = 6.0  # decades of a jump that count as much as any more


class Profile(NamedTuple):
    """Change along the depth of one pass.

    Args:
        attenuation: Log10 of the flow at the first layers over that at the last; minus infinity
            where nothing arrives, NaN where nothing leaves.
        level: Largest flow.
    """

    attenuation: float
    level: float


def profile(flows: Sequence[float]) -> Profile:
    """Ends of a profile by the largest flow of the first and of the last window."""
    known = [flow for flow in flows if not math.isnan(flow)]
    if not known:
        return Profile(math.nan, math.nan)
    width = max(1, len(known) // WINDOWS)
    first, last = max(known[:width]), max(known[-width:])
    return Profile(log_ratio(first, last), max(known))


def log_ratio(a: float, b: float) -> float:
    """Log10 of a ratio; infinite where one of them is zero, NaN where both are."""
    if not a or not b:
        return math.nan if a == b else math.copysign(math.inf, a - b)
    return math.log10(a) - math.log10(b)


def growth(attenuation: float, depth: int) -> float:
    """Factor per layer that makes up an attenuation over ``depth`` layers."""
    return math.pow(10.0, attenuation / max(1, depth - 1)) if math.isfinite(attenuation) else 0.0


def jumps(profiles: Sequence[Sequence[float]]) -> np.ndarray:
    """Mean over passes of log10 of each layer's flow over that of the next one."""
    with np.errstate(all="ignore"):
        logs = np.log10(np.maximum(np.array(profiles, dtype=np.float64), 1e-300))
    steps = np.diff(logs, axis=1)
    return np.asarray(-np.clip(np.nan_to_num(steps), -DIGITS, DIGITS).mean(axis=0))


def spread(widths: Sequence[float]) -> float:
    """Standard deviation of the log10 attenuation over initialisations, as widths predict it.

    At criticality the variance of the logarithm of the gradient grows as the sum of the inverse
    widths (Hanin 2018, arXiv 1801.03744, theorem 3). Its square root, for natural logarithms, was
    measured as 1.6 times that sum's for rectifiers of 8 units, and less for wider ones; 2 is used.
    Widths are those of hidden layers: the answer's, and what goes in, are no part of the product;
    nor are layers that another path goes round, which are left to ``ROUND``.
    """
    total = sum(1.0 / w for w in widths if w)
    return max(0.1, 2.0 * math.sqrt(total) / math.log(10))


def dead_network(shares: Sequence[Sequence[float]], widths: Sequence[int]) -> float:
    """Probability that a layer has no living unit left, were units dead independently.

    Args:
        shares: Share of dead units of each layer, one row a pass.
        widths: Units of each layer.
    """
    if not shares or not shares[0]:
        return 0.0
    means = np.mean(np.array(shares, dtype=np.float64), axis=0)
    return float(1 - np.prod(1 - means ** np.array(widths, dtype=np.float64)))


def gains(layers: Sequence[tuple[bool, float, float]], source: float) -> dict[int, float]:
    """Size of the output over size of the input of each layer that counts, by position.

    Args:
        layers: Whether each counts, the size of its output, and that of its input: NaN where it
            is that of the one before.
        source: Size of what the first one is given.
    """
    found: dict[int, float] = {}
    before = source
    for number, (counts, size, given) in enumerate(layers):
        given = before if math.isnan(given) else given
        if counts and given > 0:
            found[number] = size / given
        before = size
    return found
