"""What a clip is given: once it bites, it hides by what its gradient was multiplied before."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pytest_gradcheck.checks.steps.contract import Contract
from pytest_gradcheck.checks.steps.measure import Run
from pytest_gradcheck.checks.steps.order import timeline
from pytest_gradcheck.checks.steps.received import Pair
from pytest_gradcheck.numerics import clipping
from pytest_gradcheck.results import Finding

HIDDEN = 0.05  # of a norm: beyond all rounding, and of what is mistaken less is seldom


def findings(run: Run, pairs: Sequence[Pair], contract: Contract) -> list[Finding]:
    """The first clip that is given a multiple of the right gradient, and brings it down."""
    for pair in pairs:
        ratio = _ratio(pair, contract)
        if math.isfinite(ratio) and abs(ratio - 1) > HIDDEN:
            return [_told(pair, ratio)]
    return []


def _ratio(pair: Pair, contract: Contract) -> float:
    """What the only clip of a window is given, over what it should be; NaN where that is open."""
    window, words = pair.window, [word for word, _ in pair.window.events]
    if len(window.clips) != 1 or len(window.updates) != 1 or "backward" not in words:
        return math.nan
    clips = [k for k, word in enumerate(words) if word.startswith("clip")]
    last = len(words) - 1 - words[::-1].index("backward")
    if len(clips) != 1 or clips[0] < last or window.is_spared:
        return math.nan
    (clip,) = window.clips
    if clip.is_value or clip.order != 2 or not clip.threshold < clip.entering < math.inf:
        return math.nan  # what does not bite hides nothing
    raw = [pair.expected.raw[i] for i in clip.places]
    right = clipping.norm([g for g in raw if g is not None], 2)
    ratio = clip.entering / right if right else math.nan
    claimed = contract.max_norm
    # A gradient that is scaled may be clipped to a threshold that is scaled, too.
    if claimed and ratio and abs(clip.threshold / claimed / ratio - 1) <= HIDDEN:
        return math.nan
    return ratio


def _told(pair: Pair, ratio: float) -> Finding:
    return Finding(
        code="step-gradient-scale",
        severity="fail",
        message=f"the clip is given {ratio:.4g} times the right gradient, which shows in no update "
        f"as long as it bites (update {pair.window.number}: {timeline(pair.window.events)}); look "
        f"for a sum for a mean, a division by the number of batches that is missing, or a scale "
        f"that is not removed before the clip",
        numbers=(("update", pair.window.number), ("ratio", ratio)),
    )
