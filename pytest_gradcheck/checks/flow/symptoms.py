"""From statistics and limits to symptoms: what is wrong, at which layer, and by which numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from pytest_gradcheck.backends.layers import SIGMOIDS, Pass
from pytest_gradcheck.checks.flow import along, first, parameters, reached, time
from pytest_gradcheck.checks.flow import frozen as thaw
from pytest_gradcheck.checks.flow.passes import Grouped, Passes, Statistics, statistics
from pytest_gradcheck.checks.flow.symptom import Numbers, Symptom
from pytest_gradcheck.limits import Limits
from pytest_gradcheck.numerics.intervals import Interval, of_mean, of_rate

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

RISK = 0.05  # probability of a dead network that is no accident of one initialisation
CERTAIN = 4.0  # times that, which needs no dead network to be seen
SAMPLES = (
    16  # positions that tell a dead unit from an unlucky one: 2**-16 for a unit that is on half
)


def symptoms(
    passes: Passes, seen: Statistics, limits: Limits, frozen: Sequence[str]
) -> tuple[Symptom, ...]:
    """Everything that the passes show, worst first."""
    found = [
        *parameters.held(passes, frozen),
        *reached.missing(passes, frozen),
        *thaw.moving(passes, frozen),
        *_off(passes, seen, limits, frozen),
        *parameters.symmetric(passes),
        *along.attenuated(seen, limits),
        *along.faded(passes.finite, seen, limits),
        *time.symptoms(passes),
        *first.symptoms(passes, seen),
        *parameters.updates(passes, limits, frozen),
    ]
    order = {"fail": 0, "warn": 2, "note": 3}
    return tuple(sorted(found, key=lambda s: 1 if s.is_open else order[s.severity]))


def fading(found: Sequence[Symptom]) -> list[Symptom]:
    """The failures of a gradient that fades, certain ones and those that may be."""
    return [s for s in found if s.kind == "vanishing" and s.severity == "fail"]


def still_fades(
    passes: Passes, changed: Sequence[Pass], limits: Limits, frozen: Sequence[str]
) -> bool:
    """Whether the gradient fades, or may, in passes of the same model with something changed."""
    made = Passes(passes.probe, seen=list(changed), is_single=passes.is_single)
    return bool(fading(symptoms(made, statistics(changed), limits, frozen)))


def _off(passes: Passes, seen: Statistics, limits: Limits, frozen: Sequence[str]) -> list[Symptom]:
    """Dead and saturated units, and gradients of zero that these do not explain."""
    units = [*_dead(passes, seen, limits), *_saturated(passes, seen, limits)]
    if any(s.severity == "fail" and not s.is_open for s in units):
        return units
    return [*reached.zero(passes, frozen), *units]


def _dead(passes: Passes, seen: Statistics, limits: Limits) -> list[Symptom]:
    count, hits = len(passes.finite), seen.dead_networks
    if not count:
        return []
    found = _dead_network(passes, seen, count, hits)
    rows = passes.finite[0].rows
    if rows < SAMPLES or any(s.severity == "fail" for s in found):
        return found
    worst = _beyond(passes, seen, "dead", limits.number("dead"))
    if worst is not None:
        layer, share, is_open = worst
        found.append(
            Symptom(
                "dead",
                layer.name,
                f"{share.mean:.0%} of the units of {layer.name} are off for every sample",
                (("share", share.mean), ("low", share.low), ("high", share.high)),
                is_open=is_open,
            )
        )
    return found


def _dead_network(passes: Passes, seen: Statistics, count: int, hits: int) -> list[Symptom]:
    low, _ = of_rate(hits, count)
    numbers: Numbers = (("dead", hits), ("initialisations", count), ("risk", seen.dead_risk))
    layer = _first_dead(seen)
    if low > RISK or (hits and seen.dead_risk > RISK) or seen.dead_risk > CERTAIN * RISK:
        told = f"in {hits} of {count} initialisations" if hits else "by its dead units"
        risk = max(seen.dead_risk, hits / count)
        return [
            Symptom(
                "dead",
                layer,
                f"the network is dead at its start {told}: a layer is off for every sample "
                f"(probability {risk:.0%})",
                numbers,
            )
        ]
    if hits or seen.dead_risk > RISK:
        told = f"{hits} of {count} initialisations are dead, {seen.dead_risk:.0%} are expected"
        is_open = not passes.is_single and count < 20
        return [Symptom("dead", layer, told, numbers, "warn", is_open)]
    return []


def _first_dead(seen: Statistics) -> str:
    known = [y for y in seen.layers if y.dead and not math.isnan(y.dead[0])]
    known = [y for y in known if y.name not in seen.bypassed] or known
    return max(known, key=lambda y: sum(y.dead)).name if known else ""


def _saturated(passes: Passes, seen: Statistics, limits: Limits) -> list[Symptom]:
    worst = _beyond(passes, seen, "saturated", limits.number("saturated"))
    if worst is None:
        return []
    layer, share, is_open = worst
    what = "gates" if layer.op.startswith(("LSTM", "GRU")) else "units"
    what = "samples" if layer.op == "softmax" else what
    return [
        Symptom(
            "saturated",
            layer.name,
            f"{share.mean:.0%} of the {what} of {layer.name} ({layer.op}) are saturated: their "
            f"mean slope is under 1 % of the largest",
            (("share", share.mean), ("low", share.low), ("high", share.high)),
            is_open=is_open,
        )
    ]


def _undone(passes: Passes) -> tuple[str, ...]:
    """The last layer of a record, where the loss is the cross entropy of what it puts out.

    That undoes the saturation of a sigmoid or softmax: the gradient before it is the difference of
    answer and label (Bishop 2006, equation 4.91).
    """
    kinds = {one.constant.kind if one.constant else "" for one in passes.finite}
    last = passes.finite[0].layers[-1]
    is_undone = kinds == {"labels"} and last.op in {*SIGMOIDS, "softmax"}
    return (last.name,) if is_undone else ()


def _beyond(
    passes: Passes, seen: Statistics, what: str, limit: float
) -> tuple[Grouped, Interval, bool] | None:
    """The first layer whose share is beyond a limit for certain; else the worst that may be."""
    read: Callable[[Grouped], tuple[float, ...]] = lambda y: getattr(y, what)  # noqa: E731  # two
    known = [y for y in seen.layers if y.index >= 0 or y.kind != "activation"]
    known = [y for y in known if read(y) and not math.isnan(read(y)[0])]
    known = [y for y in known if y.name not in (_undone(passes) if what == "saturated" else ())]
    shares = [(y, of_mean(read(y), 0.0 if passes.is_single else math.inf)) for y in known]
    # A gate, or a branch beside a skip connection, may lose more: others do its work.
    limits = {y.name: (1 + limit) / 2 if y.name in seen.bypassed else limit for y in known}
    certain = [(y, s) for y, s in shares if s.side(limits[y.name]) > 0]
    if certain:
        layer, share = certain[0]
        return layer, share, False
    possible = [(y, s) for y, s in shares if s.low <= limits[y.name] < s.mean]
    if possible and not passes.is_single:
        layer, share = max(possible, key=lambda pair: pair[1].mean)
        return layer, share, True
    return None
