"""Forward mode, held against reverse mode, which was held against differences before.

Along every direction of the survey, so that an error would show with the same power.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

from pytest_gradcheck.checks import patterns
from pytest_gradcheck.checks.compare import Comparison, strongest
from pytest_gradcheck.checks.look import Look
from pytest_gradcheck.checks.measured import Measured
from pytest_gradcheck.checks.pairing import Direction, Pairing
from pytest_gradcheck.checks.power import percent
from pytest_gradcheck.errors import brief
from pytest_gradcheck.limits import Limits
from pytest_gradcheck.results import Finding

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

MOST_LOOKS = 16  # each costs one run in forward mode
MORE_LOOKS = 2  # at an input that differs
MOST_CULPRITS = 4
MOST_HALVINGS = 64  # runs in forward mode that are spent on finding the wrong inputs


def findings(seen: Measured, limits: Limits) -> Iterator[Finding]:
    """What forward mode has wrong, in float64 first and then in the function's own precision."""
    try:
        told = list(_differing(seen, exact(seen, limits)))
        own = _native(seen, limits)
        yield from told or ([] if own is None else _differing(seen, own))
    except Exception as error:  # the user's own rule; told, not hidden
        yield Finding(
            code="forward-missing", severity="fail", message=raised("forward mode", error)
        )


def raised(what: str, error: BaseException) -> str:
    """An error of the user's own rule in one line."""
    return f"{what} raises {type(error).__name__}: {brief(str(error), 100)}"


def exact(seen: Measured, limits: Limits) -> Pairing:
    """The function in the precision in which its gradient was held against differences."""
    plan = seen.plan
    tolerance = limits.number("tolerance", plan.claimed_in)
    if plan.claim.dtype == plan.probe.precision:
        return Pairing(plan, plan.probe, plan.cotangents, plan.claim, tolerance)
    return Pairing(plan, plan.native, plan.native_cotangents, plan.claim, tolerance)


def _native(seen: Measured, limits: Limits) -> Pairing | None:
    """The function as it was given, where that is another precision: compared loosely."""
    plan = seen.plan
    if not plan.is_in_two_precisions:
        return None
    tolerance = limits.number("rounding", plan.asis.dtype)
    return Pairing(plan, plan.native, plan.native_cotangents, plan.asis, tolerance)


def _differing(seen: Measured, pairing: Pairing) -> Iterator[Finding]:
    for look in seen.survey.looks[:MOST_LOOKS]:
        direction = look.line.direction
        found = pairing.compared(direction, look.shares)
        if strongest(found).is_off:
            yield from _named(seen, pairing, look, found)
            return


def _named(
    seen: Measured, pairing: Pairing, look: Look, joint: Sequence[Comparison]
) -> Iterator[Finding]:
    """One finding for each wrong input; one without a name where none is wrong alone."""
    search = _Search(pairing, look)
    found = search.narrowed(list(look.inputs), joint)
    for group, comparisons in found[:MOST_CULPRITS]:
        name = seen.name(group[0]) if len(group) == 1 else ""
        elsewhere = _elsewhere(seen, pairing, look, group)
        yield _finding(name, pairing.claim.dtype, [*comparisons, *elsewhere])


def _elsewhere(
    seen: Measured, pairing: Pairing, look: Look, group: Sequence[int]
) -> Iterator[Comparison]:
    """The same inputs along other directions, which tell a factor from a coincidence."""
    others = (o for o in seen.survey.looks if o is not look and {*group} <= {*o.inputs})
    for other in itertools.islice(others, MORE_LOOKS):
        yield from _Search(pairing, other).alone(group)


class _Search:
    """Halves the inputs that moved along a direction until each shows its own error."""

    def __init__(self, pairing: Pairing, look: Look) -> None:
        self.pairing, self.look, self.runs = pairing, look, 0

    def narrowed(
        self, group: list[int], seen: Sequence[Comparison]
    ) -> list[tuple[list[int], Sequence[Comparison]]]:
        """The smallest groups that differ, with what shows it."""
        if len(group) == 1 or self.runs >= MOST_HALVINGS:
            return [(group, seen)]
        half, found = len(group) // 2, []
        for part in (group[:half], group[half:]):
            comparisons = self.alone(part)
            if strongest(comparisons).is_off:
                found += self.narrowed(part, comparisons)
        return found or [(group, seen)]

    def alone(self, group: Sequence[int]) -> tuple[Comparison, ...]:
        """Both modes along a direction in some inputs alone."""
        self.runs += 1
        direction: Direction = [
            v if i in group else None for i, v in enumerate(self.look.line.direction)
        ]
        return self.pairing.compared(direction, {i: self.look.shares[i] for i in group})


def _finding(name: str, dtype: str, comparisons: Sequence[Comparison]) -> Finding:
    worst = strongest(comparisons)
    where = f" for {name}" if name else ""
    precision = "" if dtype == "float64" else f" in {dtype}"
    return Finding(
        code="forward-mode",
        severity="fail",
        where=name,
        message=f"forward mode{where}{precision} {_difference(worst, comparisons)}",
        numbers=(
            ("forward", worst.claimed),
            ("reverse", worst.reference),
            ("allowed", worst.slack),
            ("ratio", worst.claimed / worst.reference if worst.reference else math.nan),
        ),
    )


def _difference(worst: Comparison, comparisons: Sequence[Comparison]) -> str:
    if math.isinf(worst.claimed):
        return "gives NaN or infinite numbers"
    factor = patterns.common_factor(comparisons)
    if factor == 0:
        return "gives zero, reverse mode does not"
    if abs(factor + 1) < 1e-3:
        return "has the opposite sign of reverse mode"
    if len({c.reference for c in comparisons}) > 1 and not math.isnan(factor):
        return f"gives {factor:.4g} times what reverse mode gives"
    size = abs(worst.difference) / max(abs(worst.claimed), abs(worst.reference))
    return f"is off by {percent(size)} beside reverse mode"
