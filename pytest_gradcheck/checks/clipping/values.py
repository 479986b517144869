"""Mistakes in what clips elements by their value."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from pytest_gradcheck.checks.clipping.claim import Claim
from pytest_gradcheck.checks.clipping.judge import Judged
from pytest_gradcheck.checks.clipping.right import TINY, Prediction
from pytest_gradcheck.checks.clipping.sizes import Cause, some_of, untouched
from pytest_gradcheck.numerics import clipping

BOTH = "clip to both -max_value and max_value"


def known(
    wrong: Sequence[Judged], claim: Claim, names: Sequence[str]
) -> Iterator[tuple[Cause, Prediction]]:
    """The mistakes that are known, and what each makes of gradients."""
    c = claim.threshold
    told: dict[str, Prediction] = {
        "clips from above only": lambda x: [np.minimum(g, c) for g in x],
        "clips from below only": lambda x: [np.maximum(g, -c) for g in x],
        "sets what is below zero to zero": lambda x: [np.clip(g, 0.0, c) for g in x],
        "gives all that it clips the same sign": lambda x: [np.where(abs(g) > c, c, g) for g in x],
        "makes one number of all elements: its ends are mixed up": lambda x: [
            np.full_like(g, -c) for g in x
        ],
    }
    for message, predict in told.items():
        yield Cause("clip-value", message, BOTH), predict
    yield (
        Cause(
            "clip-by-norm",
            "scales all gradients by their norm",
            "clip each element, or claim max_norm= in the place of max_value=",
        ),
        lambda x: [g * min(1.0, c / max(clipping.norm(x, 2), TINY)) for g in x],
    )
    yield (
        Cause("clip-value", "sets what is too large to zero", "keep the sign and the threshold"),
        lambda x: [np.where(np.abs(g) > c, 0.0, g) for g in x],
    )
    kept = untouched(wrong)
    if kept:
        yield (
            Cause(
                "clip-missed-tensor",
                f"leaves {some_of(kept, names)} out",
                "give all parameters to the clip",
                names[kept[0]] if len(kept) == 1 else "",
            ),
            lambda x: [g if i in kept else np.clip(g, -c, c) for i, g in enumerate(x)],
        )
    other = max(item.after for item in wrong)
    yield (
        Cause(
            "clip-threshold",
            f"keeps {other:.3g} where {c:.3g} is claimed",
            "look at the threshold, and at its unit",
        ),
        lambda x: [np.clip(g, -other, other) for g in x],
    )


def general(wrong: Sequence[Judged], claim: Claim) -> Cause:
    """The element that is the furthest from what is claimed."""
    item, c = wrong[0], claim.threshold
    row, out = item.rows
    worst = int(np.nanargmax(np.abs(out - np.clip(row, -c, c))))
    return Cause(
        "clip-value",
        f"makes {out[worst]:.3g} of {row[worst]:.3g} where a largest value of {c:.3g} is claimed",
        BOTH,
    )
