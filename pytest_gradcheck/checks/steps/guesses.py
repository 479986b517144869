"""The mistakes that predict a wrong gradient, each as a function of the window."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from pytest_gradcheck.checks.steps import left, rounded
from pytest_gradcheck.checks.steps.contract import Contract
from pytest_gradcheck.checks.steps.cuts import again, of_clipping, times
from pytest_gradcheck.checks.steps.expected import combined, flat
from pytest_gradcheck.checks.steps.measure import Run
from pytest_gradcheck.checks.steps.suspect import Guess, Suspect
from pytest_gradcheck.checks.steps.windows import Grads

if TYPE_CHECKING:
    from pytest_gradcheck.checks.steps.received import Pair


def guesses(run: Run, pairs: Sequence[Pair], contract: Contract) -> Iterator[Guess]:
    """Every mistake that is known, the plainest first."""
    by_number = {p.window.number: p for p in pairs}

    def before(pair: Pair) -> Pair | None:
        return by_number.get(pair.window.number - 1)

    yield (
        Suspect(
            "step-missing-gradient",
            "the optimizer received no gradient at all, though the loss has one",
            "look for zero_grad after backward, detach, or parameters that are copies",
        ),
        lambda p: [np.zeros_like(x) for x in p.window.at],
    )
    yield (
        Suspect(
            "step-gradient-sign",
            "the optimizer received the negative of the right gradient",
            "look for a minus in the loss, or an update that subtracts twice; with maximize=True, "
            "Training.loss is what must rise",
        ),
        lambda p: times(p.expected.clipped, -1.0),
    )
    yield (
        Suspect(
            "step-not-clipped",
            "the optimizer received a gradient that is not clipped",
            "clip after backward (and after unscaling), before the optimizer's step",
        ),
        lambda p: p.expected.raw if p.expected.bites else None,
    )
    yield from of_clipping(run, contract)
    yield from _of_windows(run, contract)
    yield (
        Suspect(
            "step-gradient-accumulates",
            "the optimizer received the gradient on top of the ones before: they are not zeroed",
            "call zero_grad once for each update",
        ),
        lambda p: _on_top(run, p, before(p), contract),
    )
    yield (
        Suspect(
            "step-gradient-stale",
            "the optimizer received the gradient of the update before",
            "compute the gradient before each update, from the new parameters",
        ),
        lambda p: b.expected.clipped if (b := before(p)) else None,
    )
    yield (
        Suspect(
            "step-batch",
            "the optimizer received the gradient of the batch before",
            "use the batch that the step is given",
        ),
        lambda p: _of_batch(run, p, before(p), contract),
    )
    yield (
        Suspect(
            "step-batch",
            "the optimizer received the gradient of the first batch",
            "use the batch that the step is given",
        ),
        lambda p: _of_batch(run, p, pairs[0], contract) if p is not pairs[0] else None,
    )
    yield (
        Suspect(
            "step-parameters",
            "the optimizer received the gradient at the parameters of the update before",
            "differentiate at the parameters that the step is given",
        ),
        lambda p: _of_parameters(run, p, before(p), contract),
    )
    yield (
        Suspect(
            "step-mode",
            "the optimizer received the gradient of the model in the other mode (train or eval)",
            "call model.train() before the step, and model.eval() only to evaluate",
        ),
        lambda p: _of_mode(run, p, contract),
    )
    yield (
        Suspect(
            "step-decay-in-gradient",
            "the optimizer received the gradient with decay added to it",
            "leave the decay to the optimizer, or put it into the loss",
        ),
        lambda p: _with_decay(p),
    )
    yield from rounded.guesses(run, contract)


def _of_windows(run: Run, contract: Contract) -> Iterator[Guess]:
    """Micro-batches weighted wrongly, or lost."""

    def of(weights: Callable[[int], Sequence[float]]) -> Callable[[Pair], Grads | None]:
        def predict(p: Pair) -> Grads | None:
            count = len(p.window.micro)
            if count < 2:
                return None
            return again(run, p, contract, combined(p.window.micro, weights(count)))

        return predict

    yield (
        Suspect(
            "step-weights",
            "micro-batches of unequal size count the same",
            "divide by the samples (tokens) of the whole window, not by the number of "
            "micro-batches; or claim weights='batches', or a function of a batch",
        ),
        of(lambda k: [1 / k] * k),
    )
    for wanted in left.full(run, contract):
        yield (
            Suspect(
                "step-gradient-accumulates",
                "the optimizer received the gradient on top of those of a call that made no update",
                "set the gradients to zero where the update is left out",
            ),
            functools.partial(_with_left_out, run, contract, wanted),
        )
    yield (
        Suspect(
            "step-gradient-sum",
            "the gradients of the micro-batches are added, not averaged",
            "divide the loss of each micro-batch by their number",
        ),
        of(lambda k: [1.0] * k),
    )
    lost = (
        "call zero_grad once for each update, not for each micro-batch; if batches are left out of "
        "every update on purpose, claim accumulate=1"
    )
    for told, first in (("last", False), ("first", True)):
        message = f"only the {told} micro-batch of the window reaches the optimizer"
        suspect = Suspect("step-gradient-dropped", message, lost)
        yield suspect, of(functools.partial(_one, is_first=first, is_averaged=False))
        yield suspect, of(functools.partial(_one, is_first=first, is_averaged=True))
        yield suspect, functools.partial(_share, run, contract, 0 if first else -1)


def _with_left_out(run: Run, contract: Contract, wanted: int, pair: Pair) -> Grads | None:
    count = len(pair.window.micro)
    if pair.window.count <= wanted:
        return None
    return again(run, pair, contract, combined(pair.window.micro, [1 / wanted] * count))


def _share(run: Run, contract: Contract, place: int, pair: Pair) -> Grads | None:
    if len(pair.window.micro) < 2:
        return None
    raw = times(pair.window.micro[place], pair.expected.shares[place])
    return again(run, pair, contract, raw)


def _one(count: int, is_first: bool, is_averaged: bool) -> list[float]:
    weights = [0.0] * count
    weights[0 if is_first else -1] = 1 / count if is_averaged else 1.0
    return weights


def _on_top(run: Run, pair: Pair, before: Pair | None, contract: Contract) -> Grads | None:
    lay = lying(pair, before)
    if lay is None:
        return None
    return again(run, pair, contract, combined([pair.expected.raw, lay], (1.0, 1.0)))


def lying(pair: Pair, before: Pair | None) -> Grads | None:
    """The gradients that lay there before a window, or what arrived in the one before."""
    return pair.window.lying or (None if before is None else before.got)


def _of_batch(run: Run, pair: Pair, other: Pair | None, contract: Contract) -> Grads | None:
    if other is None or len(pair.window.batches) > 1:
        return None
    batch, mark = other.window.batches[-1], pair.window.marks[0]
    _, grads = run.loop.gradient(batch, pair.window.at, mark)
    return again(run, pair, contract, grads)


def _of_parameters(run: Run, pair: Pair, other: Pair | None, contract: Contract) -> Grads | None:
    if other is None or len(pair.window.batches) > 1:
        return None
    batch, mark = pair.window.batches[0], pair.window.marks[0]
    _, grads = run.loop.gradient(batch, other.window.at, mark)
    return again(run, pair, contract, grads)


def _of_mode(run: Run, pair: Pair, contract: Contract) -> Grads | None:
    flipped = getattr(run.loop, "flipped", None)
    if flipped is None or len(pair.window.batches) > 1:
        return None
    grads = flipped(pair.window.batches[0], pair.window.at, pair.window.marks[0])
    return None if grads is None else again(run, pair, contract, grads)


def _with_decay(pair: Pair) -> Grads | None:
    if pair.got is None:
        return None
    at = flat(
        [x if g is not None else None for x, g in zip(pair.window.at, pair.got, strict=True)],
        pair.window.at,
    )
    extra = flat(pair.got, pair.window.at) - flat(pair.expected.clipped, pair.window.at)
    size = float(np.vdot(at, at))
    if not size:
        return None
    rate = float(np.vdot(extra, at)) / size
    return [
        None if g is None else g + rate * x
        for g, x in zip(pair.expected.clipped, pair.window.at, strict=True)
    ]
