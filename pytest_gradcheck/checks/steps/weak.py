"""What makes a pass mean little, and what makes a check see nothing at all."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pytest_gradcheck.checks.clipping.real import told
from pytest_gradcheck.checks.steps import weighing
from pytest_gradcheck.checks.steps.contract import Contract
from pytest_gradcheck.checks.steps.ladder import filled
from pytest_gradcheck.checks.steps.measure import Run
from pytest_gradcheck.checks.steps.received import Pair
from pytest_gradcheck.numerics import clipping
from pytest_gradcheck.results import Finding

SAME = 1e-12


def vacuous(run: Run, pairs: Sequence[Pair], contract: Contract) -> Finding | None:
    """Why nothing was exercised; None where something was."""
    if not any(np.any(g) for p in pairs for g in p.expected.raw if g is not None):
        zero = "the gradient of the loss is zero for every parameter in all updates; give batches "
        zero += "whose inputs are not zero, and a loss that depends on the parameters"
        cut = "Training.loss gives a tensor that is cut from its graph, so nothing can be compared "
        cut += "with its gradient; return the tensor as it is, without detach(), .data or no_grad()"
        message = cut if is_cut(run) else zero
        return Finding(code="step-no-gradient", severity="fail", message=message)
    rates = [
        contract.at(p.name, h, k).get("lr")
        for k, w in enumerate(run.windows)
        for u in w.updates
        for p, h in zip(run.loop.parameters, u.hyper, strict=True)
        if h
    ]
    is_still = all(
        np.array_equal(a, b) for c in run.calls for a, b in zip(c.before, c.after, strict=True)
    )
    asked = [u.oracle for w in run.windows for u in w.updates]
    if is_still and asked and all(x and not any(map(np.any, x)) for x in asked):
        return Finding(
            code="step-rate-zero",
            severity="fail",
            message="the optimizer gave updates of 0 in all calls, so nothing could move; set a "
            "learning rate above 0, leave something for it to train, or give more batches than a "
            "warm-up has",
        )
    if is_still and rates and all(rate == 0 for rate in rates):
        return Finding(
            code="step-rate-zero",
            severity="fail",
            message="the learning rate was 0 in all updates, so nothing could move; set a "
            "learning rate above 0, or give more batches than a warm-up has",
        )
    return None


def is_cut(run: Run) -> bool:
    """Whether the loss is handed over without its graph: what the step does is not wrong by it."""
    return bool(getattr(run.loop, "is_cut", False))


def findings(run: Run, pairs: Sequence[Pair], contract: Contract) -> list[Finding]:
    """What the batches and the model hide."""
    found = []
    trained = [i for i, p in enumerate(run.loop.parameters) if p.trainable and p.owners != 0]
    if bitten := _bitten(pairs, contract):
        found.append(told(*bitten))
        if contract.max_norm is not None and len(trained) < 2:
            found.append(
                _weak(
                    "weak-one-tensor",
                    "with one tensor, clipping all together and "
                    "each by itself is the same; train two at least",
                )
            )
    found += weighing.unseen(pairs)
    batches = [b for p in pairs for b in p.window.batches]
    if any(len(p.window.batches) > 1 for p in pairs) and not run.loop.differ(batches):
        found.append(
            _weak(
                "weak-equal-batches",
                "all micro-batches have the same shape, so their "
                "weights were not seen; give batches of unequal size",
            )
        )
    first = filled(pairs[0].expected.raw, pairs[0].window)
    size = clipping.norm(first, 2)
    if len(pairs) > 1 and all(_apart(p, first) <= SAME * size for p in pairs[1:]):
        found.append(
            _weak(
                "weak-constant-gradient",
                "the gradient is the same in all updates, so "
                "a stale one looks right; give batches that differ",
            )
        )
    if len(pairs) < 2:
        found.append(
            _weak(
                "weak-updates", "there was one update only, which shows no state of the optimizer"
            )
        )
    return found


def _bitten(pairs: Sequence[Pair], contract: Contract) -> tuple[np.ndarray, float] | None:
    """The sizes that a threshold is held against, and it, as claimed or as it was seen."""
    clips = [p.window.clips[0] for p in pairs if len(p.window.clips) == 1]
    kinds = {(c.threshold, c.is_value) for c in clips}
    if contract.max_value is not None:
        threshold, is_value = contract.max_value, True
    elif contract.max_norm is not None:
        threshold, is_value = contract.max_norm, False
    elif len(kinds) == 1 and len(clips) == len(pairs):
        ((threshold, is_value),) = kinds
    else:
        return None
    if not is_value:
        return np.array([p.expected.norm for p in pairs]), threshold
    grads = ([g for g in p.expected.raw if g is not None] for p in pairs)
    return np.array([clipping.norm(each, np.inf) for each in grads]), threshold


def _apart(pair: Pair, first: Sequence[np.ndarray]) -> float:
    grads = filled(pair.expected.raw, pair.window)
    return clipping.distance(zip(grads, first, strict=True))


def skipped(run: Run, pairs: Sequence[Pair]) -> list[Finding]:
    """Batches that the step leaves alone: usual for a short one, worth a look for another."""
    left = []
    for whole, pair in zip(run.windows, pairs, strict=True):
        for k in whole.idle if len(pair.window.batches) < len(whole.batches) else ():
            words = [word for word, _ in run.calls[whole.first + k - 1].events]
            if "other step" not in words:
                left.append((whole.first + k, run.loop.size(whole.batches[k])))
    if not left:
        return []
    largest = max(run.loop.size(batch) for window in run.windows for batch in window.batches)
    number, size = max(left, key=lambda each: each[1])
    return [
        Finding(
            code="step-batch-skipped",
            severity="note" if size < largest else "warn",
            message=f"{len(left)} of {len(run.calls)} calls of the step do nothing, such as call "
            f"{number} with {size} samples: they add nothing to any update",
            numbers=(("calls", len(left)), ("samples", size)),
        )
    ]


def _weak(code: str, message: str) -> Finding:
    known = {
        "weak-one-tensor": Finding(code="weak-one-tensor", severity="warn", message=message),
        "weak-equal-batches": Finding(code="weak-equal-batches", severity="warn", message=message),
        "weak-constant-gradient": Finding(
            code="weak-constant-gradient", severity="warn", message=message
        ),
        "weak-updates": Finding(code="weak-updates", severity="warn", message=message),
    }
    return known[code]
