"""Values that are not finite before anything is computed: in the batch, a parameter or a buffer.

Such a value is to blame where loss and gradients are finite with another in its place. Negative
infinities among values that are all alike are a mask, which somebody wrote on purpose.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pytest_gradcheck.backends.layers import Origin

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

MOST = 8  # values that are taken for the one to blame, one after another


@dataclass(frozen=True, slots=True, eq=False)
class Given:
    """An array that a pass begins with.

    Args:
        what: ``input``, ``parameter`` or ``buffer``.
        name: As a user would write it.
        value: Its numbers, in float64.
    """

    what: str
    name: str
    value: np.ndarray

    @property
    def is_bad(self) -> bool:
        """Whether it holds a value that is not finite, and is no mask."""
        fine = np.isfinite(self.value)
        if fine.all():
            return False
        is_alike = not fine.any() or np.ptp(self.value[fine]) == 0
        is_masked = is_alike and self.value.size > 1 and np.all(self.value[~fine] == -np.inf)
        return not is_masked

    def mended(self) -> np.ndarray:
        """The array with the mean of what is finite in the place of what is not."""
        fine = np.isfinite(self.value)
        return np.where(fine, self.value, self.value[fine].mean() if fine.any() else 1.0)

    def spot(self) -> str:
        """The first element that is not finite, as an index."""
        wrong = np.isnan(self.value)
        wrong = wrong if wrong.any() else ~np.isfinite(self.value)
        index = ", ".join(map(str, np.argwhere(wrong)[0])) if self.value.ndim else ""
        return f"{self.name}[{index}]" if index else self.name


def blamed(
    values: Sequence[Given], outcome: Callable[[dict[int, np.ndarray]], bool], reaches: str
) -> Origin | None:
    """The value that is to blame; None where none is.

    Args:
        values: Every array, those of the batch first.
        outcome: Whether all is finite with some of the arrays, by position, replaced.
        reaches: What is not finite without.
    """
    bad = [n for n, one in enumerate(values) if one.is_bad]
    mended = {n: values[n].mended() for n in bad}
    if not bad or not outcome(mended):
        return None
    for n in bad[:MOST]:
        if len(bad) == 1 or not outcome({k: x for k, x in mended.items() if k != n}):
            return _origin(values[n], reaches)
    return _origin(values[bad[0]], reaches)


def _origin(one: Given, reaches: str) -> Origin:
    word = "nan" if np.isnan(one.value).any() else "inf"
    return Origin(where=one.spot(), op=one.what, phase="given", value=word, reaches=reaches)


def of_batch(path: str) -> str:
    """A path inside the batch as a user would write it."""
    parts = path.split(".") if path else []
    return "batch" + "".join(f"[{p}]" if p.isdigit() else f"[{p!r}]" for p in parts)
