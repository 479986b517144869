"""The gradient that the optimizer received, beside the one that it should have."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pytest_gradcheck.checks.steps import expected as expecting
from pytest_gradcheck.checks.steps import left, products, shrinking, suspects, unnamed, weighing
from pytest_gradcheck.checks.steps.contract import Contract, matches
from pytest_gradcheck.checks.steps.expected import TORCH_FLOOR, Expected, flat
from pytest_gradcheck.checks.steps.measure import Run
from pytest_gradcheck.checks.steps.order import timeline
from pytest_gradcheck.checks.steps.retaking import held_by
from pytest_gradcheck.checks.steps.windows import Grads, Window
from pytest_gradcheck.limits import Limits
from pytest_gradcheck.numerics import clipping, precision
from pytest_gradcheck.results import Finding

# A tensor whose gradient is a thousandth of the whole is judged as if it were as large as that.
LEAST = 1e-3
CLEAR = 0.1  # of the largest error, by which an update shows what is wrong
# What is said of a gradient that arrived: by these a step is accused of what its loss gives.
CODES = frozenset(
    {f"step-{word}-gradient" for word in ("wrong", "missing", "extra")}
    | {
        f"step-gradient-{word}"
        for word in ("scale", "sign", "sum", "stale", "dropped", "accumulates")
    }
    | {f"step-{word}" for word in ("random", "weights", "batch", "parameters", "mode")}
    | {"step-not-compared"}
    | {"step-decay-in-gradient", "step-not-clipped", "step-rounded"}
    | {f"step-clip-{word}" for word in ("kind", "micro", "scaled", "varied")}
)


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """A window with the gradient that arrived and the one that should have.

    Args:
        window: The window.
        expected: What should have arrived.
        got: What arrived; None where it could not be seen.
        wrong: Numbers of the tensors that differ.
        error: Largest relative error of a tensor.
    """

    window: Window
    expected: Expected
    got: Grads | None
    wrong: tuple[int, ...] = ()
    error: float = 0.0


def pair(run: Run, window: Window, contract: Contract, limits: Limits) -> Pair:
    """Compare, with every window that the step may mean; the likeliest one is what is judged."""
    if window.is_spared:
        return Pair(window, expecting.expected(run, window, contract), gathered(run, window))
    seen = []
    for meant in meanings(window):
        found = _paired(run, meant, contract, limits)
        if not found.wrong:
            return found
        seen.append(found)
    for meant in left.meanings(run, window, contract):
        found = _paired(run, meant, contract, limits)
        if not found.wrong:
            return found
    return max(seen, key=_likeness)


def _likeness(pair: Pair) -> float:
    """How much what arrived points where it should, or away from there; the first one of equals.

    Or what it adds to what lay there before, where nobody set that to zero.
    """
    at = pair.window.at
    right, got = flat(pair.expected.clipped, at), flat(pair.got or (), at)
    added = [got - flat(pair.window.lying, at)] if pair.window.lying else []
    cosines = [abs(clipping.ratio(row, right)[1]) for row in (got, *added)]
    return max((round(c, 6) for c in cosines if np.isfinite(c)), default=0.0)


def meanings(window: Window) -> Iterator[Window]:
    """What a window may be: with the gradients before or after the call, with idle calls or not."""
    is_other = any(a is not b for a, b in zip(window.micro, window.retaken, strict=True))
    retaken = replace(window, micro=window.retaken, is_retaken=True) if is_other else window
    both = [retaken, window] if window.is_altered else [window, retaken]
    for each in both if is_other else both[:1]:
        if window.idle:
            yield each.without(set(window.idle))
        yield each


def _paired(run: Run, window: Window, contract: Contract, limits: Limits) -> Pair:
    return against(run, window, gathered(run, window), contract, limits)


def against(
    run: Run, window: Window, got: Grads | None, contract: Contract, limits: Limits
) -> Pair:
    """Compare what a window should give with what arrived, tensor by tensor."""
    expected = expecting.expected(run, _trained(run, window, got, contract), contract)
    if got is None:
        return Pair(window, expected, None)
    wrong, worst = compared(run, got, expected.clipped, expected, limits, window)
    if wrong:

        def meant(micro: list[Grads]) -> Grads:
            taken = _trained(run, replace(window, micro=micro), got, contract)
            return expecting.expected(run, taken, contract).clipped

        if doubts := products.doubts(run, window, meant):
            wrong, worst = compared(run, got, expected.clipped, expected, limits, window, doubts)
    if wrong and expected.bites and run.clipping is None:
        run.clipping = _clipping(run, window, expected, contract)
        if run.clipping:
            return against(run, window, got, contract, limits)
    return Pair(window, expected, got, wrong, worst)


def _clipping(run: Run, window: Window, expected: Expected, contract: Contract) -> set[int]:
    """The tensors by whose norm the optimizer itself clips: all, or those that are not frozen."""
    absorbs: Any = getattr(run.loop, "absorbs", None)
    whole = {i for i, g in enumerate(expected.raw) if g is not None}
    free = {i for i in whole if not matches(run.names[i], contract.frozen)}
    for given in (whole, free) if absorbs is not None else ():
        run.clipping = given
        meant = expecting.finished(run, window, contract, expected.raw, expected.shares).inner
        if given and absorbs(expected.raw, meant, window.at):
            return given
    return set()


def _trained(run: Run, window: Window, got: Grads | None, contract: Contract) -> Window:
    """A window without the gradients of what is claimed to be frozen, and was given none."""
    frozen = [
        not p.trainable
        if p.owners is None
        else p.owners > 0 and got is not None and matches(p.name, contract.frozen)
        for p in run.loop.parameters
    ]
    if got is not None:
        frozen = [f and (g is None or not np.any(g)) for f, g in zip(frozen, got, strict=True)]
    if not any(frozen):
        return window
    micro: list[Grads] = [
        [None if f else g for f, g in zip(frozen, grads, strict=True)] for grads in window.micro
    ]
    return replace(window, micro=micro)


def gathered(run: Run, window: Window) -> Grads | None:
    """What all optimizers of a window received together; the first time that each one stepped."""
    found: list[np.ndarray | None] = [None] * len(run.loop.parameters)
    seen = set()
    for update in window.updates:
        if update.received is None:
            return None
        if update.which in seen:
            continue
        seen.add(update.which)
        found = [a if a is not None else b for a, b in zip(found, update.received, strict=True)]
    return found


def compared(
    run: Run,
    got: Grads,
    wanted: Grads,
    expected: Expected,
    limits: Limits,
    window: Window,
    doubts: Sequence[float] = (),
) -> tuple[tuple[int, ...], float]:
    """Numbers of the tensors that differ by more than is doubted, and the largest relative error.

    What is doubted is a norm for each tensor, beside the tolerance.
    """
    sizes = [0.0 if g is None else run.sizes.of(g) for g in wanted]
    whole = float(np.linalg.norm(sizes))
    wrong, worst = [], 0.0
    stepped = set().union(*(held_by(update) for update in window.updates))
    lowered = [dtype] if (dtype := getattr(run.loop, "lowered", "")) else []
    for i, tracked in enumerate(run.loop.parameters):
        has_copy = any(t.shadow == i for t in run.loop.parameters)
        if tracked.owners == 0 or not tracked.trainable or has_copy or i not in stepped:
            continue
        a = got[i] if got[i] is not None else np.zeros_like(run.calls[0].before[i])
        b = wanted[i] if wanted[i] is not None else np.zeros_like(run.calls[0].before[i])
        dtype = run.loop.parameters[tracked.shadow].dtype if tracked.shadow >= 0 else tracked.dtype
        dtype = precision.coarsest([dtype, run.loop.dtype, *lowered])
        tolerance = limits.number("step_gradient", dtype)
        # What is read off a state is held against what may itself be differences.
        tolerance += 0.0 if run.loop.can_see else run.loop.doubt
        if expected.bites:
            tolerance += TORCH_FLOOR / max(expected.norm, TORCH_FLOOR)
        base = max(sizes[i], LEAST * whole, precision.smallest(dtype))
        tolerance += expected.doubt(i) / base
        off = run.sizes.apart(a, b) / base  # type: ignore[arg-type]  # none is None here
        if not off <= tolerance + (min(doubts[i] / base, products.MOST) if doubts else 0.0):
            wrong.append(i)
            worst = max(worst, off)
    return tuple(wrong), worst


def findings(
    run: Run, pairs: Sequence[Pair], contract: Contract, limits: Limits, is_random: bool
) -> list[Finding]:
    """One finding on the first gradient that is wrong, by the mistake that explains it."""
    wrong = [p for p in pairs if p.wrong]
    if not wrong:
        return []
    odd = weighing.guessed(run, wrong)
    if odd is not None:
        return [odd]
    first = wrong[0]
    suspect = suspects.recognised(run, pairs, wrong, contract, limits)
    if is_random and (suspect is None or suspect.is_varied):
        return [_random(first)]
    if suspect is not None and suspect.is_bare and shrinking.is_shrinking(run, pairs, contract):
        return [shrinking.finding(pairs)]
    got = flat(first.got or (), first.window.at)
    ratio, cosine = clipping.ratio(got, flat(first.expected.clipped, first.window.at))
    if suspect is None and first.window.turns > 1:
        return [_not_compared(first)]
    if suspect is None:
        most = max(p.error for p in wrong)
        first = next((p for p in wrong if p.error >= CLEAR * most), first)
        ratio, cosine = clipping.ratio(*unnamed.rows(first))
        suspect = unnamed.suspect(run, first, ratio, cosine)
    when = f"update {first.window.number}"
    told = timeline(first.window.events)
    return [
        Finding(
            code=suspect.code,
            severity="fail",
            where=suspect.where,
            message=f"{suspect.message} ({when}{': ' + told if told else ''}); {suspect.advice}",
            numbers=(
                ("update", first.window.number),
                ("ratio", ratio),
                ("cosine", cosine),
                ("error", first.error),
            ),
        )
    ]


def _not_compared(pair: Pair) -> Finding:
    return Finding(
        code="step-not-compared",
        severity="fail",
        message=f"the optimizer steps {pair.window.turns} times in a call, each time after a "
        f"backward pass of its own, with gradients that are not those of the batch: of parts of "
        f"it, maybe, which cannot be seen; hand over a step that makes one update, and these parts "
        f"as the batches",
    )


def _random(pair: Pair) -> Finding:
    return Finding(
        code="step-random",
        severity="fail",
        message="the loss is random and the step draws other numbers than the loss does, so the "
        "gradients cannot be compared; draw the same in both, or switch the randomness off",
        numbers=(("error", pair.error),),
    )
