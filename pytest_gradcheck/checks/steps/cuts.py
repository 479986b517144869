"""The mistakes of clips, each as a function of the window."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from pytest_gradcheck.checks.steps import norms
from pytest_gradcheck.checks.steps.contract import Contract
from pytest_gradcheck.checks.steps.expected import clipped, combined
from pytest_gradcheck.checks.steps.measure import Run
from pytest_gradcheck.checks.steps.suspect import Guess, Suspect
from pytest_gradcheck.checks.steps.windows import Grads

if TYPE_CHECKING:
    from pytest_gradcheck.checks.steps.received import Pair


def of_clipping(run: Run, contract: Contract) -> Iterator[Guess]:
    """Another kind of clip, another place of it, another norm in it."""
    early = "clip after the last backward (and after unscaling), before the step"

    def bites(predict: Callable[[Pair], Grads | None]) -> Callable[[Pair], Grads | None]:
        return lambda p: predict(p) if p.expected.threshold == p.expected.threshold else None

    if contract.max_value is not None:
        return
    yield (
        Suspect(
            "step-clip-kind",
            "the optimizer received a gradient that is clipped for each tensor by itself",
            "take one norm over all gradients",
        ),
        bites(lambda p: norms.each_alone(p.expected.raw, p.window.at, p.expected.threshold)),
    )
    yield (
        Suspect(
            "step-clip-kind",
            "the optimizer received a gradient that is clipped by value, not by its norm",
            "clip by the norm, or claim max_value=",
        ),
        bites(lambda p: norms.by_value(p.expected.raw, p.window.at, p.expected.threshold)),
    )
    for scale in _scales(run, contract):
        told = (
            f"the optimizer received a gradient that was clipped before the loss scale {scale:g} "
        )
        yield (
            Suspect("step-clip-scaled", told + "was removed", "unscale, then clip"),
            bites(functools.partial(_scaled, run, contract, scale)),
        )
    yield (
        Suspect(
            "step-clip-micro",
            "each micro-batch is clipped before the sum over the window",
            early,
        ),
        bites(
            lambda p: combined(
                [again(run, p, contract, g) for g in p.window.micro], p.expected.shares
            )
        ),
    )
    yield (
        Suspect(
            "step-clip-micro",
            "each micro-batch is clipped, with its share of the window, before the sum",
            early,
        ),
        bites(lambda p: _shares_clipped(run, p, contract)),
    )
    yield (
        Suspect("step-clip-micro", "the sum is clipped after every micro-batch", early),
        bites(lambda p: _running(run, p, contract)),
    )
    yield (
        Suspect(
            "step-clip-kind",
            "the optimizer received a gradient at the threshold also where it is below",
            "the factor of a clip is min(1, max_norm / norm)",
        ),
        bites(_at_threshold),
    )
    for message, cut in norms.mistaken(run, contract.norm_type):
        suspect = Suspect("step-clip-kind", message, "divide by one norm over all gradients")
        yield suspect, bites(functools.partial(_by_hand, cut))


def _by_hand(cut: norms.Cut, pair: Pair) -> Grads | None:
    """What a clip that is not the framework's makes of the right gradient."""
    if pair.window.clips:
        return None
    return cut(pair.expected.raw, pair.window.at, pair.expected.threshold)


def _at_threshold(pair: Pair) -> Grads | None:
    """A gradient with the norm of the threshold; a clip of the framework makes none longer."""
    if pair.window.clips:
        return None
    return times(pair.expected.raw, pair.expected.threshold / max(pair.expected.norm, 1e-300))


def _scaled(run: Run, contract: Contract, scale: float, pair: Pair) -> Grads:
    return times(again(run, pair, contract, times(pair.expected.raw, scale)), 1 / scale)


def _shares_clipped(run: Run, pair: Pair, contract: Contract) -> Grads:
    parts = zip(pair.expected.shares, pair.window.micro, strict=True)
    cut = [again(run, pair, contract, times(grads, share)) for share, grads in parts]
    return combined(cut, (1.0,) * len(cut))


def _running(run: Run, pair: Pair, contract: Contract) -> Grads:
    total: Grads = [None] * len(run.loop.parameters)
    for share, grads in zip(pair.expected.shares, pair.window.micro, strict=True):
        parts = [total, times(grads, share)]
        total = again(run, pair, contract, combined(parts, (1.0, 1.0)))
    return total


def _scales(run: Run, contract: Contract) -> list[float]:
    found = [contract.loss_scale] if contract.loss_scale else []
    return found + [2.0**k for k in (16, 8, 10, 12, 14, 15)]


def again(run: Run, pair: Pair, contract: Contract, raw: Grads) -> Grads:
    """A gradient clipped as the expected one is."""
    threshold = pair.expected.threshold
    is_value = contract.max_value is not None
    return clipped(run, raw, threshold, is_value, contract.norm_type, ()).clipped


def times(grads: Grads, factor: float) -> Grads:
    """A gradient times a factor."""
    return [None if g is None else g * factor for g in grads]
