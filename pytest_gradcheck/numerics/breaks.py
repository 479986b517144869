"""One culprit or a uniform decay: whether one of many steps is unlike all others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pytest_gradcheck.numerics import depth

ALPHA = 0.01  # probability of naming a layer where all are alike
SHARE, LEAD = 0.6, 3.0  # of the whole change, and times the next step, that one culprit makes
FLOOR = 0.05  # decades: steps that differ by less are alike, whatever the test says
FEWEST = 5  # steps that can be tested


class Break(NamedTuple):
    """The largest step of a profile.

    Args:
        layer: Number of the layer across which it happens; at least 1.
        share: Of the whole change.
        lead: Times the next largest step.
        p: Probability of one so unlike the others where all are alike, Holm-corrected; NaN where
            there are too few to tell.
    """

    layer: int
    share: float
    lead: float
    p: float

    @property
    def is_single(self) -> bool:
        """Whether it makes the change, and the others are alike."""
        return self.share > SHARE and self.lead > LEAD and not self.p > ALPHA


def largest(profiles: Sequence[Sequence[float]], sign: int) -> Break | None:
    """The largest step from one layer to the next; None where there are none.

    Args:
        profiles: Flow of each layer, one row a pass.
        sign: -1 for a loss of gradient towards the first layer, 1 for a gain.
    """
    steps = depth.jumps(profiles) * sign
    if not len(steps):
        return None
    best = int(np.argmax(steps))
    others = np.delete(steps, best)
    top, total = float(steps[best]), max(float(steps.sum()), 1e-12)
    lead = top / max(float(others.max(initial=0.0)), FLOOR)
    return Break(best + 1, top / total, lead, outlier(top, others))


def outlier(top: float, others: np.ndarray) -> float:
    """Probability of a largest step like this among equals.

    The externally studentised residual (Cook and Weisberg 1982, section 2.2.1) of the step that
    was chosen as the largest, times the number of steps: the first comparison of Holm (1979).
    """
    count = len(others) + 1
    if count < FEWEST:
        return math.nan
    spread = max(float(others.std(ddof=1)), FLOOR)
    t = (top - float(others.mean())) / (spread * math.sqrt(1 + 1 / len(others)))
    return min(1.0, count * tail(t, count - 2))


def tail(t: float, freedom: int) -> float:
    """Probability that Student's t exceeds a value (Abramowitz and Stegun 1964, 26.7.3, 26.7.4)."""
    angle = math.atan(t / math.sqrt(freedom))
    cosine, sine = math.cos(angle), math.sin(angle)
    is_odd = freedom % 2
    term = total = cosine if is_odd else 1.0
    for k in range(2 + is_odd, freedom, 2):
        term *= cosine * cosine * (k - 1) / k
        total += term
    if is_odd:
        inside = 2 / math.pi * (angle + sine * (total if freedom > 1 else 0.0))
    else:
        inside = sine * total
    return max(0.0, (1 - inside) / 2)
