"""A gradient that is wrong by no mistake that has a name: where, and by how much."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pytest_gradcheck.checks.steps import suspects
from pytest_gradcheck.checks.steps.expected import flat
from pytest_gradcheck.checks.steps.measure import Run, percent, some_of
from pytest_gradcheck.checks.steps.suspect import Suspect

if TYPE_CHECKING:
    from pytest_gradcheck.checks.steps.received import Pair

ALL = 0.99  # of the square of an error: the rest is rounding


def rows(pair: Pair) -> tuple[np.ndarray, np.ndarray]:
    """What arrived of the tensors that are wrong, and what should have, each in one row."""
    at = [pair.window.at[i] for i in pair.wrong]
    both = (pair.got or (), pair.expected.clipped)
    got, right = (flat([grads[i] for i in pair.wrong], at) for grads in both)
    return got, right


def suspect(run: Run, pair: Pair, ratio: float, cosine: float) -> Suspect:
    """A factor, where one explains most of it; else how far off it is, and where."""
    names = [run.names[i] for i in pair.wrong]
    got, right = rows(pair)
    if cosine > 1 - 1e-4 and suspects.is_multiple(got, right):
        return Suspect(
            "step-gradient-scale",
            f"the optimizer received {suspects.times(ratio)} the right gradient",
            "look for a loss scale, a sum for a mean, or a division by the number of batches",
        )
    return Suspect(
        "step-wrong-gradient",
        f"the optimizer received another gradient than that of the loss for {some_of(names)}, off "
        f"by {'up to ' if len(names) > 1 else ''}{percent(pair.error)}"
        f"{_place(pair) or f' ({_likeness_told(cosine, ratio)})'}",
        "compare what the step does to gradients between backward and step, and the loss that it "
        "differentiates with Training.loss",
        names[0] if len(names) == 1 else "",
    )


def _place(pair: Pair) -> str:
    """Where in a tensor alone the error lies, if it is one element or one row; else empty."""
    (number, *others), got = pair.wrong, pair.got or ()
    a, b = got[number], pair.expected.clipped[number]
    if others or a is None or b is None or a.size < 2 or not a.ndim:
        return ""
    squares = np.abs(a - b) ** 2
    place = np.unravel_index(int(np.argmax(squares)), squares.shape)
    if squares[place] >= ALL * squares.sum():
        return f", in element {[int(k) for k in place]} alone"
    if a.ndim > 1 and len(a) > 1 and squares[place[0]].sum() >= ALL * squares.sum():
        return f", in row {int(place[0])} alone"
    return ""


def _likeness_told(cosine: float, ratio: float) -> str:
    """How what arrived lies to what is right; of what rounds to 1, that the rest is small."""
    shown = f"cosine {cosine:.3g}, ratio {ratio:.3g}"
    if shown != "cosine 1, ratio 1":
        return shown.replace("cosine 1,", f"cosine {cosine:.6g},")
    return "in the right direction and of the right length: a lower precision, or a small term"
