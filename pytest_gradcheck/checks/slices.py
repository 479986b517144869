"""The indices of an axis at which a gradient is wrong: found by halving, verified, in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pytest_gradcheck.checks.parts import Chosen, Parts
from pytest_gradcheck.errors import listed

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

MOST_LOOKS = 24  # at halves of one axis
MOST_SPLITS = 4  # halvings without a half that is right, after which none will be
MOST_TOLD = 4  # indices, where they are not in a row
SPREAD = 6  # slices of an axis in which what holds for all of them must show
GOLDEN = (math.sqrt(5) - 1) / 2  # multiples of it meet no period


@dataclass
class Halving:
    """The search along one axis.

    Args:
        parts: The input.
        slices: (length, elements of each) flat indices.
        unsure: What an error may be off by, more with every look.
    """

    parts: Parts
    slices: Chosen
    unsure: float
    looks: int = 0
    is_some_right: bool = False
    wrong: list[int] = field(default_factory=list)

    def within(self, first: int, last: int, error: float) -> bool:
        """Collect the wrong indices from first to before last; False where that cannot be told."""
        if last - first == 1:
            self.wrong.append(first)
            return True
        if self.looks >= (MOST_LOOKS if self.is_some_right else MOST_SPLITS):
            return False
        middle, self.looks = (first + last) // 2, self.looks + 1
        seen = self.parts.at(self.slices[first:middle].ravel(), error)
        self.unsure += seen.bound
        here, there = seen.difference, error - seen.difference
        off = [abs(part) > self.unsure for part in (here, there)]
        self.is_some_right |= not all(off)
        return (
            seen.is_known
            and any(off)
            and (not off[0] or self.within(first, middle, here))
            and (not off[1] or self.within(middle, last, there))
        )


def wrong_along(parts: Parts, axis: int) -> list[int]:
    """The indices of an axis at which the gradient is wrong; none where that cannot be told."""
    places = np.arange(parts.size).reshape(parts.case.x.shape)
    slices = np.moveaxis(places, axis, 0).reshape(places.shape[axis], -1)
    search = Halving(parts, slices, parts.whole.bound + parts.whole.slack)
    is_told = search.within(0, len(slices), parts.whole.difference)
    return search.wrong if is_told else []


def show_everywhere(parts: Parts, inside: Chosen) -> bool:
    """Whether the error shows in slices of these elements that are spread along each axis."""
    for places in np.unravel_index(inside, parts.case.x.shape):
        for index in _spread(np.unique(places)):
            chosen = inside[places == index]
            share = np.sqrt(len(chosen) / len(inside)) / SPREAD
            if parts.look(chosen, parts.whole.difference * share).off is None:
                return False
    return True


def _spread(indices: Chosen) -> Chosen:
    if len(indices) <= SPREAD:
        return indices
    return indices[[int(len(indices) * (k * GOLDEN % 1)) for k in range(SPREAD)]]


def in_a_row(mask: NDArray[np.bool_]) -> str:
    """A mask in words that picks neighbouring indices of one axis; nothing of others."""
    for axis, length in enumerate(mask.shape):
        picked = np.flatnonzero(mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis)))
        is_whole = len(picked) * mask.size // length == mask.sum()
        if is_whole and picked[-1] - picked[0] < len(picked):
            return in_words([int(i) for i in picked], axis, length)
    return ""


def counted(mask: NDArray[np.bool_]) -> str:
    """The elements that a mask picks, where nothing else is known of them."""
    if mask.ndim == 1:
        return in_words([int(i) for i in np.flatnonzero(mask)], 0, mask.size)
    return f"in {mask.sum()} of {mask.size} elements"


def in_words(indices: Sequence[int], axis: int, length: int) -> str:
    """Indices of an axis, such as ``at index 1, 4 and 6 of axis 0``."""
    first, last = indices[0], indices[-1]
    if len(indices) > 1 and last - first < len(indices):
        if last == length - 1:
            return f"from index {first} of axis {axis} on"
        return f"at index {first} to {last} of axis {axis}"
    shown = [str(i) for i in indices[:MOST_TOLD]]
    told = ", ".join([*shown, "…"]) if len(indices) > MOST_TOLD else listed(shown)
    return f"at index {told} of axis {axis}"
