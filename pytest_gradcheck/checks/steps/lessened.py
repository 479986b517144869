"""Windows of a functional step that leave out some of their batches, where others have them all.

What such a step does with a batch cannot be seen but in its gradient: one that loses micro-batches
by mistake does so in most windows, one that leaves out a batch on purpose now and then.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace

from pytest_gradcheck.checks.steps import received
from pytest_gradcheck.checks.steps.contract import Contract
from pytest_gradcheck.checks.steps.measure import Run
from pytest_gradcheck.checks.steps.received import Pair
from pytest_gradcheck.checks.steps.windows import Window
from pytest_gradcheck.limits import Limits
from pytest_gradcheck.results import Finding

MOST = 5  # calls of a window of which every part is tried


def adopted(
    run: Run, pairs: Sequence[Pair], contract: Contract, limits: Limits
) -> tuple[list[Pair], Finding] | None:
    """The windows without what they leave out, and what is told of it; None where it is a mistake.

    It is one where half of the windows do so, or where the rest does not count as a full window.
    """
    gathered = [p for p in pairs if p.window.count > 1]
    wrong = [p for p in pairs if p.wrong]
    if any(p.window.events for p in pairs) or 2 * len(wrong) >= len(gathered):
        return None
    meant = {p.window.number: _meant(run, p, contract, limits) for p in wrong}
    lost = [(p, found) for p in wrong if (found := meant[p.window.number]) is not None]
    if len(lost) < len(wrong):
        return None
    first, (_, gone) = lost[0]
    told = Finding(
        code="step-batch-skipped",
        severity="warn",
        message=f"{len(lost)} of {len(gathered)} updates leave out a batch, such as that of call "
        f"{first.window.first + gone[0]}, and take the others for a full window: it is left out on "
        f"purpose, or lost",
        numbers=(("updates", len(lost)),),
    )
    return [found[0] if (found := meant.get(p.window.number)) else p for p in pairs], told


def _meant(
    run: Run, pair: Pair, contract: Contract, limits: Limits
) -> tuple[Pair, tuple[int, ...]] | None:
    for gone, window in _parts(pair.window):
        found = received.against(run, window, pair.got, contract, limits)
        if not found.wrong:
            kept = iter(found.expected.shares)
            count = len(pair.window.batches)
            shares = tuple(0.0 if k in gone else next(kept) for k in range(count))
            expected = replace(found.expected, shares=shares)
            return replace(found, window=pair.window, expected=expected), gone
    return None


def _parts(window: Window) -> Iterator[tuple[tuple[int, ...], Window]]:
    """A window without some of its calls, the fewest first."""
    count = len(window.batches)
    for size in range(1, count if count <= MOST else 2):
        for gone in itertools.combinations(range(count), size):
            yield gone, window.without({*gone})
