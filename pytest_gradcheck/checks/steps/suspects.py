"""Which mistake made a gradient wrong: the one that predicts it in every window where it shows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from pytest_gradcheck.checks.steps import order, partial, weighing
from pytest_gradcheck.checks.steps.contract import Contract
from pytest_gradcheck.checks.steps.expected import flat
from pytest_gradcheck.checks.steps.guesses import guesses
from pytest_gradcheck.checks.steps.measure import Run, some_of
from pytest_gradcheck.checks.steps.suspect import Suspect
from pytest_gradcheck.checks.steps.windows import Grads
from pytest_gradcheck.limits import Limits
from pytest_gradcheck.numerics import clipping

if TYPE_CHECKING:
    from pytest_gradcheck.checks.steps.received import Pair

FIT = 10.0  # how many tolerances a prediction may be off
MOST = 0.1  # or anything would be explained by anything
LEAST = 1e-4  # and at least this: the mistakes differ by far more
APART = 0.1  # of what is wrong, by which a mistake must differ from what is right
LEFT = 0.5  # of what is wrong, that a mistake may not explain
EXACT = 1e-3  # how close a factor must be to a number to be called by its name


def recognised(
    run: Run, pairs: Sequence[Pair], wrong: Sequence[Pair], contract: Contract, limits: Limits
) -> Suspect | None:
    """The first mistake that explains every wrong window, or the first wrong one at least."""
    dtype = run.coarsest
    tolerance = min(max(FIT * limits.number("step_gradient", dtype), LEAST), MOST)
    known = list(guesses(run, pairs, contract))
    for suspect, predict in known:
        if all(_fits(p, predict(p), tolerance) for p in wrong):
            return suspect
    partly = partial.recognised(
        run, pairs, wrong, contract, lambda pair, guess: _fits(pair, guess, tolerance)
    )
    if partly is not None:
        return partly
    factor = _factor(run, pairs, wrong, contract, tolerance)
    if factor is not None:
        return factor
    missing = _missing(run, wrong, tolerance)
    if missing is not None:
        return missing
    for suspect, predict in known:
        if _fits(wrong[0], predict(wrong[0]), tolerance):
            return suspect
    return partial.unnamed(run, wrong)


def _fits(pair: Pair, guess: Grads | None, tolerance: float) -> bool:
    if guess is None or pair.got is None:
        return False
    a, b = flat(pair.got, pair.window.at), flat(guess, pair.window.at)
    size = max(float(np.linalg.norm(b)), float(np.linalg.norm(a)))
    right = flat(pair.expected.clipped, pair.window.at)
    if np.linalg.norm(b - right) <= APART * np.linalg.norm(a - right):
        return False  # what is as good as right explains nothing
    if not size:  # both are zero, which is wrong only because something was expected
        return pair.expected.norm > 0
    left = float(np.linalg.norm(a - b))
    return left <= tolerance * size and left <= LEFT * float(np.linalg.norm(a - right))


def times(ratio: float) -> str:
    """A factor in digits, as many as show that it is none of 1."""
    shown = f"{ratio:.4g}"
    return f"{ratio:.7g} times" if shown == "1" else f"{shown} times"


def is_multiple(got: np.ndarray, right: np.ndarray) -> bool:
    """Whether a factor explains most of what is wrong, or all: what is small otherwise is not."""
    ratio, _ = clipping.ratio(got, right)
    off = float(np.linalg.norm(got - right))
    return float(np.linalg.norm(got - ratio * right)) <= LEFT * off


def _factor(
    run: Run,
    pairs: Sequence[Pair],
    wrong: Sequence[Pair],
    contract: Contract,
    tolerance: float,
) -> Suspect | None:
    """One number times the right gradient."""
    ratios, turns = [], []
    for p in wrong:
        base = flat(p.expected.clipped, p.window.at)
        got = flat(p.got or (), p.window.at)
        ratio, cosine = clipping.ratio(got, base)
        if not cosine > 1 - tolerance or not is_multiple(got, base):
            return None
        ratios.append(ratio)
        turns.append(math.sqrt(max(1 - cosine**2, 0.0)))
    if _are_varied(ratios) and max(turns) > tolerance:
        return None  # another loss is turned and longer or shorter by turns
    if all(order.clip_is_scaled(p.window) for p in wrong):
        told = f"was clipped before the loss scale was removed: {ratios[0]:.4g} times the right one"
        message = f"the optimizer received a gradient that {told}"
        return Suspect("step-clip-scaled", message, "unscale, then clip")
    told, advice = _named(run, pairs, wrong, ratios, contract)
    sizes = [clipping.norm([g for g in p.got or () if g is not None], 2) for p in wrong]
    if len(wrong) > 1 and "other factors" in told and max(sizes) - min(sizes) <= EXACT * max(sizes):
        message = f"the optimizer received a gradient of the norm {sizes[0]:.4g} each time"
        return Suspect(
            "step-gradient-scale",
            f"{message}, whatever the right one has ({ratios[0]:.4g} times that at first)",
            "look for what normalises it; a clip has min(1, max_norm / norm)",
        )
    message = f"the optimizer received {told} the right gradient"
    is_varied = "other factors" in told
    is_bare = is_varied or told == times(ratios[0])
    return Suspect("step-gradient-scale", message, advice, is_varied=is_varied, is_bare=is_bare)


def _are_varied(ratios: Sequence[float]) -> bool:
    return max(ratios) - min(ratios) > EXACT * abs(ratios[0])


def _named(
    run: Run,
    pairs: Sequence[Pair],
    wrong: Sequence[Pair],
    ratios: Sequence[float],
    contract: Contract,
) -> tuple[str, str]:
    """The factor in digits, with what it is where that explains it in every window."""
    plain = times(ratios[0])
    for name, (value, advice) in _factors(run, pairs, contract).items():
        values = [value(p) for p in wrong]
        if all(v not in (0.0, 1.0) for v in values) and all(
            abs(r / v - 1) < EXACT for r, v in zip(ratios, values, strict=True)
        ):
            return f"{plain} ({name})", advice
    if _are_varied(ratios):
        plain = f"{plain} (and other factors later)"
    return plain, "look for a loss scale, a sum for a mean, or a second division"


def _factors(
    run: Run, pairs: Sequence[Pair], contract: Contract
) -> dict[str, tuple[Callable[[Pair], float], str]]:
    """Numbers that gradients are multiplied by, and what to try."""
    counts, full = weighing.calls(run, pairs, contract)
    scale = contract.loss_scale or 65536.0
    return {
        "the loss scale": (lambda p: scale, "unscale the gradients"),
        "1 over the loss scale": (lambda p: 1 / scale, "unscale the gradients once"),
        "the micro-batches of a short window over those of a full one": (
            lambda p: counts[p.window.number - 1] / full,
            "divide by the micro-batches that the window has",
        ),
        "the number of micro-batches": (
            lambda p: float(len(p.window.batches)),
            "average over the micro-batches",
        ),
        "1 over the number of micro-batches": (
            lambda p: 1 / len(p.window.batches),
            "divide once only",
        ),
        "the number of backward passes": (
            lambda p: float(order.unzeroed(p.window)),
            "divide the loss of each part by their number",
        ),
        "the batch size": (
            lambda p: float(sum(run.loop.size(b) for b in p.window.batches)),
            "look for a sum where the loss is a mean",
        ),
        "1 over the batch size": (
            lambda p: 1.0 / sum(run.loop.size(b) for b in p.window.batches),
            "look for a mean that is divided again",
        ),
        "the threshold of the clip": (
            lambda p: float(contract.max_norm or 0.0),
            "the factor of a clip is min(1, max_norm / norm)",
        ),
    }


def _missing(run: Run, wrong: Sequence[Pair], tolerance: float) -> Suspect | None:
    """Some tensors get nothing, or a factor of their own, and all others are right."""
    numbers = sorted({i for p in wrong for i in p.wrong})
    if len(numbers) == sum(p.trainable and p.owners != 0 for p in run.loop.parameters) > 1:
        return None
    names = [run.names[i] for i in numbers]
    told = some_of(names)
    got = [p.got[i] for p in wrong for i in p.wrong if p.got is not None]
    if all(g is None or not np.any(g) for g in got):
        return Suspect(
            "step-missing-gradient",
            f"{told} received no gradient, though the loss has one for it",
            "look for detach, a graph that is built anew, or a gradient that is thrown away; if it "
            "is not meant to be trained, freeze it, or claim frozen=",
            names[0],
        )
    extra = [p.expected.clipped[i] for p in wrong for i in p.wrong]
    if all(g is None or not np.any(g) for g in extra):
        return Suspect(
            "step-extra-gradient",
            f"{told} received a gradient that the loss does not have",
            "look for another loss, or a gradient that is left from before",
            names[0],
        )
    both = [(p.got[i], p.expected.clipped[i]) for p in wrong for i in p.wrong if p.got is not None]
    rows = [(a.ravel(), b.ravel()) for a, b in both if a is not None and b is not None]
    ratios = [clipping.ratio(a, b) for a, b in rows]
    is_factor = bool(rows) and all(is_multiple(a, b) for a, b in rows)
    if is_factor and all(c > 1 - tolerance for _, c in ratios):
        return Suspect(
            "step-gradient-scale",
            f"{told} received {times(ratios[0][0])} the right gradient, alone",
            "look for a gradient hook, or a factor for a part of the parameters",
            names[0],
        )
    if ratios and all(c < -1 + tolerance for _, c in ratios):
        return Suspect(
            "step-gradient-sign",
            f"{told} received the negative of the right gradient",
            "look for a gradient hook, or a reversal layer",
            names[0],
        )
    return None
