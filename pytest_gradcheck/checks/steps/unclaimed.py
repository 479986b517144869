"""Updates of which neither the gradient nor the rule is known: what they say by themselves.

Plain gradient descent shows its gradient: each update is the gradient times minus the rate. Where
all tensors of every update are that, with one rate, the gradient was seen. A rate that changes with
the update is a schedule that nobody claimed, or a clip: one that is claimed stays open then, as all
else does.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pytest_gradcheck.checks.steps.contract import Contract
from pytest_gradcheck.checks.steps.measure import Run
from pytest_gradcheck.checks.steps.received import LEAST, Pair
from pytest_gradcheck.limits import Limits
from pytest_gradcheck.numerics import clipping, precision
from pytest_gradcheck.results import Finding

LOST = 0.1  # share of an update that rounding may be, or anything looks proportional

Rates = dict[int, float]


def findings(run: Run, pairs: Sequence[Pair], contract: Contract, limits: Limits) -> list[Finding]:
    """The rate of plain gradient descent, tensors that disagree on it, or that nothing was seen."""
    rates = [_rates(run, pair, limits) for pair in pairs]
    known = [r for r in rates if r]
    if not known or None in rates:
        return [_not_seen(run)]
    odd = _odd(run, known, limits)
    if odd is not None:
        return [odd]
    means = [float(np.mean(list(r.values()))) for r in known]
    low, high = min(means), max(means)
    is_steady = high - low <= _slack(run, limits) * high
    is_clipped = contract.max_norm is not None or contract.max_value is not None
    if low <= 0 or (is_clipped and not is_steady):
        return [_not_seen(run)]
    times = f"{low:.4g}" if is_steady else f"{low:.4g} to {high:.4g}"
    summed = _summed(run, [p for p, r in zip(pairs, rates, strict=True) if r], means, limits)
    return [
        *([] if summed is None else [summed]),
        Finding(
            code="step-rate-unclaimed",
            severity="note",
            message=f"every update is {times} times the right gradient; claim optimizer='sgd' and "
            f"{'lr=' if is_steady else 'schedule='} to have that rate checked",
            numbers=(("low", low), ("high", high)),
        ),
    ]


def _summed(
    run: Run, pairs: Sequence[Pair], means: Sequence[float], limits: Limits
) -> Finding | None:
    """Rates that are as the numbers of samples are: a sum where the loss takes a mean."""
    sizes = [sum(map(run.loop.size, p.window.batches)) for p in pairs]
    if len(set(sizes)) < 2:
        return None
    shares = [mean / size for mean, size in zip(means, sizes, strict=True)]
    if max(shares) - min(shares) > _slack(run, limits) * max(shares):
        return None
    return Finding(
        code="step-gradient-sum",
        severity="warn",
        message=f"the updates are {max(shares):.4g} times the right gradient and the number of "
        f"samples ({min(sizes)} to {max(sizes)}): the step adds over samples, and the loss takes "
        f"their mean; divide by their number, or claim the rates with schedule=",
        numbers=(("share", max(shares)),),
    )


def _rates(run: Run, pair: Pair, limits: Limits) -> Rates | None:
    """By what each tensor moved against its gradient; None where one moved otherwise, or none did.

    Empty where nothing was to move, or all of it is at a kink and goes the way of a slope there.
    """
    found: Rates = {}
    is_kinked = False
    wanted = pair.expected.clipped
    whole = clipping.norm([g for g in wanted if g is not None], 2)
    moves = [b - a for a, b in zip(pair.window.at, pair.window.updates[-1].after, strict=True)]
    length = clipping.norm(moves, 2)
    for i, tracked in enumerate(run.loop.parameters):
        if tracked.owners == 0 or not tracked.trainable:
            continue
        move, g = moves[i], wanted[i]
        size, norm = clipping.norm([move], 2), 0.0 if g is None else clipping.norm([g], 2)
        rounding = 2 * precision.epsilon(tracked.dtype) * clipping.norm([pair.window.at[i]], 2)
        if g is None or norm <= LEAST * whole:  # too small to say by how much it is moved
            if size > 2 * LEAST * length + rounding:
                return None
            continue
        rate = -float(np.vdot(move, g)) / norm**2
        off = clipping.norm([move + rate * g], 2)
        share = limits.number("step_gradient", tracked.dtype) + run.loop.doubt
        doubt = abs(rate) * pair.expected.doubt(i)
        if rounding > LOST * size or off > share * size + rounding + doubt:
            return None
        if doubt > share * size:  # its rate is known no better than that
            is_kinked = True
            continue
        found[i] = rate
    is_idle = not whole and not length
    return found if found or is_kinked or is_idle else None


def _odd(run: Run, rates: Sequence[Rates], limits: Limits) -> Finding | None:
    """Tensors that go along their gradients by rates of their own."""
    for number, each in enumerate(rates, start=1):
        low, high = (f(each, key=lambda i: each[i]) for f in (min, max))
        if each[high] - each[low] > _slack(run, limits) * abs(each[high]):
            return Finding(
                code="step-rates-differ",
                severity="fail",
                where=run.names[high],
                message=f"{run.names[high]} moves by {each[high]:.4g} times its gradient and "
                f"{run.names[low]} by {each[low]:.4g} times (update {number}): a gradient that is "
                f"wrong by a factor, or rates that are meant to differ; claim optimizer= and lr=",
                numbers=(("update", number), ("high", each[high]), ("low", each[low])),
            )
    return None


def _slack(run: Run, limits: Limits) -> float:
    """Relative difference of rates that rounding and a reference leave open."""
    share = max(limits.number("step_gradient", p.dtype) for p in run.loop.parameters)
    return float(2 * (share + run.loop.doubt) + LEAST)


def _not_seen(run: Run) -> Finding:
    return Finding(
        code="step-not-seen",
        severity="fail",
        message=f"neither the gradient that {run.loop.shown} got nor its rule was seen, so only "
        f"the way of the updates was compared; {run.loop.wanted}",
    )
