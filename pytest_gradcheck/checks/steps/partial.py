"""Mistakes that touch a part of the tensors, of the clips or of the backward passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from pytest_gradcheck.checks.steps import expected as expecting
from pytest_gradcheck.checks.steps import order, weighing
from pytest_gradcheck.checks.steps.contract import Contract
from pytest_gradcheck.checks.steps.expected import flat
from pytest_gradcheck.checks.steps.guesses import lying
from pytest_gradcheck.checks.steps.measure import Run, some_of
from pytest_gradcheck.checks.steps.suspect import Suspect
from pytest_gradcheck.checks.steps.windows import Grads
from pytest_gradcheck.numerics import clipping

if TYPE_CHECKING:
    from pytest_gradcheck.checks.steps.received import Pair

ABOUT = 0.1  # how far a sum of unequal parts may be from a whole multiple

Fits = Callable[["Pair", "Grads | None"], bool]


def recognised(
    run: Run, pairs: Sequence[Pair], wrong: Sequence[Pair], contract: Contract, fits: Fits
) -> Suspect | None:
    """The first mistake that explains every wrong window."""
    first = wrong[0]
    if all(fits(p, _as_seen(run, p, contract)) for p in wrong):
        return _of_clips(run, first, contract)
    by_number = {p.window.number: p for p in pairs}
    if all(fits(p, _on_top(p, by_number.get(p.window.number - 1))) for p in wrong):
        names = [run.names[i] for i in first.wrong]
        return Suspect(
            "step-gradient-accumulates",
            f"{some_of(names)} received the gradient on top of the ones before: it is not zeroed",
            "call zero_grad of everything that is trained",
            names[0],
        )
    gone = _gone(run, wrong, contract, fits)
    if gone:
        some = [run.names[i] for i in gone]
        return Suspect(
            "step-missing-gradient",
            f"{some_of(some)} received no gradient, though the loss has one for it",
            "look for zero_grad or grad = None before the clip, or a gradient that is thrown away",
            some[0],
        )
    left = [_left_out(p, fits) for p in wrong]
    if left[0] and all(numbers == left[0] for numbers in left):
        some = [run.names[i] for i in left[0]]
        return Suspect(
            "step-clip-partial",
            f"{some_of(some)} is left out of the clip by the norm",
            "give the clip all that is trained",
            some[0],
        )
    return None


def _as_seen(run: Run, pair: Pair, contract: Contract) -> Grads | None:
    """What the clips that were called make of the right gradient."""
    if not pair.window.clips or (contract.max_norm is None and contract.max_value is None):
        return None
    plain = replace(contract, max_norm=None, max_value=None)
    raw = pair.expected.raw
    return expecting.finished(run, pair.window, plain, raw, pair.expected.shares).clipped


def _of_clips(run: Run, pair: Pair, contract: Contract) -> Suspect:
    """How the clips that were called are others than the claimed one."""
    clips = pair.window.clips
    trained = {i for i, g in enumerate(pair.got or ()) if g is not None}
    missing = sorted(trained - {i for clip in clips for i in clip.places})
    last, claimed = clips[-1], contract.max_norm or contract.max_value
    if missing:
        return Suspect(
            "step-clip-partial",
            f"the clip is given {len(trained) - len(missing)} of {len(trained)} tensors that are "
            f"trained, and not {run.names[missing[0]]}",
            "give it all of them",
            run.names[missing[0]],
        )
    if len(clips) > 1:
        return Suspect(
            "step-clip-kind",
            f"{len(clips)} clips take a part of the tensors each",
            "take one norm over all gradients",
        )
    if last.is_value != (contract.max_value is not None):
        told, kind = "value" if last.is_value else "norm", "norm" if last.is_value else "value"
        return Suspect("step-clip-kind", f"the clip is by {told}, not by {kind}", "claim it so")
    if last.threshold != claimed:
        return Suspect(
            "step-clip-kind",
            f"the clip is at {last.threshold:.4g}, not at the claimed {claimed:.4g}",
            "look at the threshold",
        )
    told = f"of order {last.order:g}" if np.isnan(last.size) else f"{last.size:.4g}"
    return Suspect(
        "step-clip-kind",
        f"the clip takes a norm {told}, not that of order {contract.norm_type:g} of all gradients",
        "look at norm_type, and at how the norm is taken",
    )


def _on_top(pair: Pair, before: Pair | None) -> Grads | None:
    """In the tensors that are wrong alone, what arrived before is still there."""
    lay = lying(pair, before)
    if lay is None:
        return None
    found = list(pair.expected.clipped)
    for i in pair.wrong:
        a, b = found[i], lay[i]
        found[i] = b if a is None else a if b is None else a + b
    return found


def _gone(run: Run, wrong: Sequence[Pair], contract: Contract, fits: Fits) -> list[int]:
    """Tensors that got nothing at first, where the others are clipped as if these were not."""
    found: list[list[int]] = []
    for pair in wrong:
        both = enumerate(zip(pair.got or (), pair.expected.raw, strict=True))
        gone = [i for i, (a, b) in both if b is not None and np.any(b) and not np.any(_zeros(a, b))]
        rest = [None if i in gone else g for i, g in enumerate(pair.expected.raw)]
        cut = expecting.finished(run, pair.window, contract, rest, pair.expected.shares).clipped
        if not gone or not fits(pair, cut):
            return []
        found.append(gone)
    return found[0] if any(pair.expected.bites for pair in wrong) else []


def _zeros(got: np.ndarray | None, like: np.ndarray) -> np.ndarray:
    return np.zeros_like(like) if got is None else got


def _left_out(pair: Pair, fits: Fits) -> tuple[int, ...]:
    """Tensors that arrived as they were, where the others were clipped as if these were not."""
    raw, got, threshold = pair.expected.raw, pair.got or (), pair.expected.threshold
    if not threshold > 0 or not pair.expected.bites:
        return ()
    pairs = [(i, g, r) for i, (g, r) in enumerate(zip(got, raw, strict=True)) if g is not None]
    untouched = tuple(
        i for i, g, r in pairs if r is not None and np.any(r) and np.allclose(g, r, rtol=1e-3)
    )
    rest = [r for i, _, r in pairs if i not in untouched and r is not None]
    if not untouched or not rest:
        return ()
    size = clipping.norm(rest, 2)
    factor = min(1.0, threshold / size) if size else 1.0
    guess = [r if r is None or i in untouched else r * factor for i, r in enumerate(raw)]
    return untouched if fits(pair, guess) else ()


def unnamed(run: Run, wrong: Sequence[Pair]) -> Suspect | None:
    """What the order of events, or a sum of micro-batches, tells of a gradient nobody predicts."""
    return next(_told(run, wrong), None)


def _told(run: Run, wrong: Sequence[Pair]) -> Iterator[Suspect]:
    first = wrong[0]
    got, right = (flat(x, first.window.at) for x in (first.got or (), first.expected.clipped))
    ratio, cosine = clipping.ratio(got, right)
    passes = order.unzeroed(first.window)
    is_one = len(first.window.batches) == 1
    between = order.clips_between(first.window)
    if between:
        yield Suspect(
            "step-clip-micro",
            f"the gradient is clipped before all of it is there: {between + 1} clips take turns "
            f"with backward passes that nothing sets to zero between",
            "clip after the last backward pass, before the step",
        )
    if is_one and passes > 1 and cosine > 1 - ABOUT and abs(ratio / passes - 1) < ABOUT:
        yield Suspect(
            "step-gradient-sum",
            f"the gradients of {passes} backward passes are added, not averaged ({ratio:.3g} times "
            f"the right one)",
            "divide the loss of each part by its share of the batch",
        )
    # A mean of means of unequal parts is about right, and no sum of losses.
    is_mean = cosine > 1 - ABOUT and abs(ratio - 1) < ABOUT
    if is_one and passes > 1 and not is_mean:
        yield Suspect(
            "step-gradient-accumulates",
            f"the optimizer received the gradients of {passes} backward passes on top of one "
            f"another",
            "call zero_grad between losses that are not one",
        )
    if not is_one:
        weights = weighing.fitted(first)
        if weights is not None and first.expected.bites:  # a clip hides how long it was before
            whole = sum(first.expected.shares) / sum(weights)
            weights = [w * whole for w in weights]
        if weights is not None:
            shown, shares = (
                " and ".join(f"{w:.3g}" for w in x) for x in (weights, first.expected.shares)
            )
            yield Suspect(
                "step-weights",
                f"micro-batches count {shown} in a window, where {shares} is right",
                "divide by the samples (tokens) of the whole window, or claim weights=",
            )
