"""Updates held against the optimizer itself, called once more, where its rule has no name."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pytest_gradcheck.backends.steps import Update
from pytest_gradcheck.checks.steps import unclaimed
from pytest_gradcheck.checks.steps.contract import Contract
from pytest_gradcheck.checks.steps.measure import Run, some_of
from pytest_gradcheck.checks.steps.received import Pair
from pytest_gradcheck.limits import Limits
from pytest_gradcheck.numerics import clipping, precision
from pytest_gradcheck.results import Finding


def findings(run: Run, pairs: Sequence[Pair], contract: Contract, limits: Limits) -> list[Finding]:
    """What the step makes of the updates that its optimizer gives, or why that is not seen."""
    asked = [u for p in pairs for u in p.window.updates if u.oracle]
    for number, update in enumerate(asked, start=1):
        for i, wanted in enumerate(update.oracle):
            actual = update.after[i] - update.before[i]
            if not _is_near(run, update, i, actual, wanted, limits):
                return [_told(run, update, i, number)]
    if asked:
        return _raw(run, asked) or _weak(run, asked, limits)
    if getattr(run.loop, "is_unseen", False):
        return [_not_seen(run)]
    if any(p.got is None for p in pairs):
        return unclaimed.findings(run, pairs, contract, limits)
    told = f"updates of {run.loop.shown} are not replayed: its rule is not known"
    return [not_replayed(f"{told}; claim optimizer= to have them replayed")]


def _raw(run: Run, asked: Sequence[Update]) -> list[Finding]:
    """Some tensors to which gradients are added as they are, while others are updated."""
    count = len(run.loop.parameters)
    raw = [i for i in range(count) if all(_adds(u, i) for u in asked) and _is_given(asked, i)]
    others = [i for i in range(count) if i not in raw and _is_given(asked, i)]
    if not raw or not others:
        return []
    return [
        Finding(
            code="step-update",
            severity="fail",
            where=run.names[raw[0]],
            message=f"the optimizer adds to {some_of([run.names[i] for i in raw])} the gradient "
            f"as it is, uphill and without a learning rate: optax.masked hands on what it does not "
            f"mask; set those updates to zero (optax.multi_transform with optax.set_to_zero, or "
            f"optax.partition), or give them a rule",
            numbers=(("tensors", len(raw)),),
        )
    ]


def _adds(update: Update, i: int) -> bool:
    g = _given(update, i)
    return g is None or bool(np.allclose(update.oracle[i], g, rtol=1e-6, atol=0))


def _is_given(asked: Sequence[Update], i: int) -> bool:
    """Whether there is a gradient that is not zero."""
    grads = (_given(u, i) for u in asked)
    return any(g is not None and bool(np.any(g)) for g in grads)


def _given(update: Update, i: int) -> np.ndarray | None:
    return update.received[i]  # type: ignore[index]  # what was asked once more was seen


def _is_near(
    run: Run, update: Update, i: int, actual: np.ndarray, wanted: np.ndarray, limits: Limits
) -> bool:
    """Whether two updates of a parameter are the same but for rounding."""
    dtype = run.loop.parameters[i].dtype
    size = max(float(np.linalg.norm(wanted)), float(np.linalg.norm(actual)))
    bound = limits.number("step_replay", dtype) * size
    bound += 2 * precision.epsilon(dtype) * float(np.linalg.norm(update.before[i]))
    return float(np.linalg.norm(actual - wanted)) <= bound


def _weak(run: Run, asked: Sequence[Update], limits: Limits) -> list[Finding]:
    """A part of the updates that comes from the parameters, and is too small to be seen."""
    rows = [(u, list(zip(u.oracle, u.bare, strict=True))) for u in asked]
    pairs = [(u, i, a, b) for u, each in rows for i, (a, b) in enumerate(each)]
    has_decay = any(not np.array_equal(a, b) for _, _, a, b in pairs)
    if not has_decay or not all(_is_near(run, u, i, a, b, limits) for u, i, a, b in pairs):
        return []
    return [
        Finding(
            code="weak-decay",
            severity="warn",
            message="the decay is smaller than rounding, so nothing shows whether it is taken of "
            "the parameters; check with a larger weight_decay",
        )
    ]


def not_replayed(told: str) -> Finding:
    """That the updates of an optimizer are not seen to be right."""
    return Finding(code="step-not-replayed", severity="note", message=told)


def _not_seen(run: Run) -> Finding:
    return Finding(
        code="step-not-seen",
        severity="fail",
        message=f"the step never asked {run.loop.shown} that was handed over for an update, so "
        f"neither gradients nor updates were seen; hand over the one that the step uses, where the "
        f"step holds it (a closure, an argument, an attribute), or claim optimizer= with lr=",
    )


def asked_often(run: Run, update: Update) -> str:
    """That an optimizer makes several updates of one call."""
    return (
        f"{run.loop.shown} is asked for {update.asked} updates in a call, and the step does not "
        f"move by the last of them alone"
    )


def _told(run: Run, update: Update, i: int, number: int) -> Finding:
    if update.asked > 1:
        return Finding(
            code="step-update",
            severity="fail",
            where=run.names[i],
            message=f"{asked_often(run, update)} (update {number}); ask it once for each update",
            numbers=(("update", number), ("asked", update.asked)),
        )
    if not (update.is_lost or update.is_astray):
        return _unlike(run, update, i, number)
    message = (
        f"the state of {run.loop.shown} is not carried on: it is given that of the start at every "
        f"step (first at update {number}); hand the new state to the next update, and return it "
        f"from the step"
        if update.is_lost
        else f"{run.loop.shown} is given other parameters than those of the step, so that it "
        f"decays from there (update {number}); give it the parameters that it is to move"
    )
    return Finding(
        code="step-optimizer" if update.is_lost else "step-update",
        severity="fail",
        where=run.names[i],
        message=message,
        numbers=(("update", number),),
    )


def _unlike(run: Run, update: Update, i: int, number: int) -> Finding:
    actual, wanted = update.after[i] - update.before[i], update.oracle[i]
    ratio, cosine = clipping.ratio(actual.ravel(), wanted.ravel())
    told = f"moves {run.names[i]} otherwise than the optimizer says (cosine {cosine:.3g})"
    if cosine > 1 - 1e-4:
        told = f"moves {run.names[i]} by {ratio:.4g} times what the optimizer says"
    elif cosine < -1 + 1e-4:
        told = f"moves {run.names[i]} by the negative of what the optimizer says"
    elif not np.any(actual):
        told = f"does not move {run.names[i]}, though the optimizer says so"
    return Finding(
        code="step-update",
        severity="fail",
        where=run.names[i],
        message=f"the step {told} (update {number}); apply each update once, to the parameters "
        f"that the optimizer was given",
        numbers=(("update", number), ("ratio", ratio), ("cosine", cosine)),
    )
