"""The gradient that an optimizer received, read from its state where it cannot be seen itself.

The first moment of Adam is ``m' = b1 m + (1 - b1) g``, the buffer of momentum ``b' = mu b + g``;
plain gradient descent shows the gradient in its update. What is read counts only if a replay with
it explains every update.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from pytest_gradcheck.backends.steps import Update
from pytest_gradcheck.checks.steps import received, replaying
from pytest_gradcheck.checks.steps.contract import Contract
from pytest_gradcheck.checks.steps.expected import flat
from pytest_gradcheck.checks.steps.measure import Run
from pytest_gradcheck.checks.steps.received import Pair
from pytest_gradcheck.checks.steps.windows import Grads
from pytest_gradcheck.limits import Limits
from pytest_gradcheck.numerics import clipping
from pytest_gradcheck.numerics.optimizers import DEFAULTS, Hyper

ALIKE = 0.2  # least cosine of what is read with what is expected, or the state is something else


def pairs(
    run: Run, given: Sequence[Pair], contract: Contract, limits: Limits
) -> Sequence[Pair] | None:
    """The windows with the gradients that were read; None where they cannot be."""
    name = contract.optimizer or run.loop.rules[0]
    if not name or any(p.got is not None or len(p.window.updates) != 1 for p in given):
        return None
    for found in _read(run, given, contract, name):
        filled = []
        for pair, grads in zip(given, found, strict=True):
            wrong, error = received.compared(
                run, grads, pair.expected.clipped, pair.expected, limits, pair.window
            )
            filled.append(replace(pair, got=grads, wrong=wrong, error=error))
        trusted = replaying.judged(run, filled, contract, limits)
        if not any(f.severity == "fail" for f in trusted.findings):
            return filled
    return None


def _read(run: Run, given: Sequence[Pair], contract: Contract, name: str) -> list[list[Grads]]:
    """What may have been received, by each part of the state: the likeliest first."""
    updates = [p.window.updates[0] for p in given]
    hypers = [
        contract.at(run.names[0], {**DEFAULTS.get(name, {}), **u.hyper[0]}, k)
        for k, u in enumerate(updates)
    ]
    each = [_weights(name, h, k) for k, h in enumerate(hypers)]
    if not each[0]:
        found = _of_updates(run, updates, contract, name) if name == "sgd" else None
        return [found] if found else []
    count = min(len(u.slots_after) for u in updates)
    right = flat(given[0].expected.clipped, given[0].window.at)
    likely: list[tuple[float, list[Grads]]] = []
    for weights in zip(*each, strict=True):
        for slot in range(count):
            grads = [_unrolled(u, slot, w) for u, w in zip(updates, weights, strict=True)]
            _, cosine = clipping.ratio(flat(grads[0], given[0].window.at), right)
            if abs(cosine) > ALIKE:
                likely.append((abs(cosine), grads))
    return [grads for _, grads in sorted(likely, key=lambda each: -each[0])]


def _weights(name: str, h: Hyper, number: int) -> list[tuple[float, float]]:
    """What the old buffer and the gradient count in the new buffer, by each way to write it."""
    if "betas" in h:
        kept = h["betas"][1 if name == "lion" else 0]
        return [(kept, 1 - kept)]
    if name == "sgd" and h.get("momentum"):
        dampening = float(h.get("dampening") or 0.0)
        share = 1.0 if number == 0 else 1 - dampening
        ways = [share, -h["lr"] * share, h["lr"] * share]  # a velocity has the rate in it
        return [(h["momentum"], way) for way in ways if way]
    return []


def _unrolled(update: Update, slot: int, weights: tuple[float, float]) -> Grads:
    kept, share = weights
    old = update.slots_before
    before = old[slot] if slot < len(old) else [np.zeros_like(x) for x in update.before]
    return [(b - kept * a) / share for a, b in zip(before, update.slots_after[slot], strict=True)]


def _of_updates(
    run: Run, updates: Sequence[Update], contract: Contract, name: str
) -> list[Grads] | None:
    """Plain gradient descent: the update over the learning rate, decay taken off."""
    found: list[Grads] = []
    for k, update in enumerate(updates):
        grads: list[np.ndarray | None] = []
        for i, (a, b) in enumerate(zip(update.before, update.after, strict=True)):
            h = contract.at(run.names[i], {**DEFAULTS[name], **update.hyper[i]}, k)
            if not h["lr"] or h.get("decay", "coupled") not in ("coupled", "decoupled"):
                return None
            # For this rule both kinds of decay move the same.
            grads.append(-(b - a) / h["lr"] - (h.get("weight_decay") or 0.0) * a)
        found.append(grads)
    return found
