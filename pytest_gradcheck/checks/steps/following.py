"""Does the loss follow its gradient, or hold a part of itself back, and is that claimed?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from pytest_gradcheck.checks.steps import kinks, slopes, sources
from pytest_gradcheck.checks.steps.contract import Contract
from pytest_gradcheck.checks.steps.measure import Run
from pytest_gradcheck.checks.steps.received import Pair
from pytest_gradcheck.checks.steps.slopes import Gap
from pytest_gradcheck.limits import Limits
from pytest_gradcheck.results import Finding

MEANT = ("SpectralNorm",)  # what holds back by its definition, in torch's own code
NAMED = 3  # tensors and places in a message
SAME = 1e-3  # of a slope that what is held back does not change


@dataclass(frozen=True, slots=True)
class Reasons:
    """Why a gradient need not be the slope of its loss.

    Args:
        places: What holds parts of the loss back, and where.
        functions: Functions whose backward is written by the user.
    """

    places: tuple[str, ...]
    functions: tuple[str, ...]


def findings(run: Run, pair: Pair, contract: Contract, limits: Limits) -> list[Finding]:
    """A gradient that is not the slope of the loss, by what explains it, and as it is claimed."""
    window = pair.window
    off, is_kinked = slopes.gap(run, window, sources.plain(run, window), limits, is_beside=False)
    finds_inner: Any = getattr(run.loop, "finds_inner", None)  # what costs, and is asked at last
    is_open = off is not None or is_kinked
    if is_open and finds_inner is not None and finds_inner(window.batches[0], window.marks[0]):
        plain = sources.plain(run, window)
        off, is_kinked = slopes.gap(run, window, plain, limits, is_beside=False)
    if is_kinked:
        window = kinks.beside(run, window) or window
        off, _ = slopes.gap(run, window, sources.plain(run, window), limits)
    if off is None:
        return [] if contract.semi_gradient is None else [_unneeded()]
    rest: Gap | None = off
    stopped: Reasons | None = None
    found = sources.stopped(run, window)
    if found is not None:
        source, *told = found
        rest, stopped = slopes.gap(run, window, source, limits)[0], Reasons(*told)
    if contract.semi_gradient is not None:
        return [_claimed(contract.semi_gradient, off, rest, stopped)]
    return [_told(off, stopped) if stopped is None or rest is not None else _held(off, stopped)]


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _placed(off: Gap, told: Finding) -> Finding:
    """A finding with the tensor that is to blame, where it is one, and the slopes."""
    where = off.names[0] if len(off.names) == 1 else ""
    return replace(
        told, where=where, numbers=(("measured", off.measured), ("claimed", off.claimed))
    )


def _whose(off: Gap) -> str:
    if off.is_part:
        return f" where it is 0 in a part of {_some(off.names)}"
    return f" in {_some(off.names)}" if off.names else ""


def _told(off: Gap, stopped: Reasons | None, beside: str = "") -> Finding:
    whose = _whose(off)
    custom = f" ({_some(stopped.functions)})" if stopped and stopped.functions else ""
    place = "there" if off.is_part else "along it"
    more = "" if beside else ", or claim semi_gradient='why' if that is meant"
    told = Finding(
        code="step-slope",
        severity="fail",
        message=f"the loss does not follow its gradient{whose}{beside}: differences give a slope "
        f"of {off.measured:.4g} {place}, the gradient says {off.claimed:.4g} (ratio "
        f"{off.ratio:.3g}); look for a gradient hook, a backward of one's own{custom}, or a loss "
        f"that is not what is differentiated{more}",
    )
    return _placed(off, told)


def _held(off: Gap, stopped: Reasons) -> Finding:
    if all(place.startswith(MEANT) for place in stopped.places):
        return _meant(off, stopped)
    whose = _whose(off)
    told = Finding(
        code="step-stopped-gradient",
        severity="fail",
        message=f"the gradient is not the slope of the loss{whose} (ratio {off.ratio:.3g}), since "
        f"the loss holds parts of itself back: {_some(stopped.places)}; claim "
        f"semi_gradient='why' if that is meant, as in temporal differences or actor-critic, else "
        f"take it out",
    )
    return _placed(off, told)


def _meant(off: Gap, stopped: Reasons) -> Finding:
    told = Finding(
        code="step-semi-gradient",
        severity="note",
        message=f"the gradient is not the slope of the loss (ratio {off.ratio:.3g}): "
        f"{_some(stopped.places)} takes its vectors for constants, by definition",
    )
    return _placed(off, told)


def _unneeded() -> Finding:
    return Finding(
        code="weak-claim",
        severity="warn",
        message="semi_gradient= is claimed, and the gradient is the slope of the loss; leave the "
        "claim out",
    )


def _claimed(why: str, off: Gap, rest: Gap | None, stopped: Reasons | None) -> Finding:
    """What is claimed, told; beyond what the loss holds back, the gradient must be its slope."""
    explained = ""
    if stopped is not None and rest is None:
        explained = f"held still, {_some(stopped.places)} makes it the slope"
    elif stopped is not None and stopped.functions:
        explained = f"a backward of one's own: {_some(stopped.functions)}"
    elif rest is not None and abs(rest.measured - off.measured) > SAME * abs(off.measured):
        return _told(rest, stopped, ", though what it holds back is held still")
    unknown = "nothing that can be seen explains it: it is taken at its word"
    told = Finding(
        code="step-semi-gradient",
        severity="note" if explained else "warn",
        message=f"the gradient is not the slope of the loss (ratio {off.ratio:.3g}), as claimed: "
        f"{why} ({explained or unknown})",
    )
    return _placed(off, told)
