"""How micro-batches count in a window: as claimed, by tokens, by rows; where that is a guess."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pytest_gradcheck.checks.steps.contract import Contract
from pytest_gradcheck.checks.steps.measure import Run
from pytest_gradcheck.checks.steps.windows import Grads, Window
from pytest_gradcheck.errors import UsageError
from pytest_gradcheck.numerics import clipping
from pytest_gradcheck.results import Finding

if TYPE_CHECKING:
    from pytest_gradcheck.checks.steps.received import Pair

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

Shares = tuple[float, ...]
Gradient = Callable[[Any, Sequence[np.ndarray], Any], Grads | None]

FIT = 1e-3  # relative residual of a sum, and how far from 1 its weights may add up


def shares(run: Run, window: Window, contract: Contract) -> tuple[float, ...]:
    """The share of each micro-batch in the gradient of its window.

    Raises:
        UsageError: The claimed function gives no weight.
    """
    count = len(window.batches)
    if contract.weights == "window":
        return (1 / _full(run, contract),) * count
    if contract.weights == "batches":
        return (1 / count,) * count
    if callable(contract.weights):
        counts = [_claimed(contract.weights(batch)) for batch in window.batches]
    else:
        counts = [float(run.loop.size(batch)) for batch in window.batches]
    total = sum(counts)
    return tuple(n / total for n in counts) if total else (1 / count,) * count


def _claimed(weight: object) -> float:
    try:
        found = float(weight)  # type: ignore[arg-type]  # what it cannot take is refused
    except (TypeError, ValueError):
        found = -1.0
    if not (found >= 0 and np.isfinite(found)):
        raise UsageError(
            f"weights= must give a number from 0 for a batch, such as its tokens; it gave "
            f"{weight!r}"
        )
    return found


def _full(run: Run, contract: Contract) -> int:
    """Calls in a full window: as claimed, or as most windows have."""
    return contract.accumulate or _usual([len(w.batches) for w in run.windows])


def _usual(counts: Sequence[int]) -> int:
    return max(set(counts), key=counts.count, default=1)


def calls(run: Run, pairs: Sequence[Pair], contract: Contract) -> tuple[list[int], int]:
    """The calls of each window, and of a full one: as claimed, or as most have.

    A call that does nothing is one where the step gathers its batches, and none where it leaves
    them out: as those windows say in which the gradient is right, or else each as it is likeliest.
    """
    right = [p.window for p in pairs if not p.wrong]
    if not right:
        counts = [len(p.window.batches) + p.window.left for p in pairs]
    elif any(w.idle for w in right):
        counts = [len(w.batches) for w in run.windows]
    else:
        counts = [w.count for w in run.windows]
    counts = [count - p.window.left for count, p in zip(counts, pairs, strict=True)]
    return counts, contract.accumulate or _usual(counts)


def by_tokens(run: Run, window: Window) -> tuple[float, ...] | None:
    """Shares by what a loss itself divides by, where it says so; None where it does not."""
    tokens = getattr(run.loop, "tokens", None)
    if tokens is None:
        return None
    counts = window.each(tokens)
    total = sum(n for n in counts if n is not None)
    return tuple(n / total for n in counts) if total and None not in counts else None


def known(run: Run, window: Window) -> Shares | None:
    """Shares that something shows: tokens, the loss in its other mode, or its samples' own axis."""
    found = by_tokens(run, window)
    if found is None and run.loop.differ(window.batches):
        found = in_other_mode(run, window) or in_columns(run, window)
    return found


def in_columns(run: Run, window: Window) -> Shares | None:
    """Shares by the axis in which batches differ, where the first one counts no samples: time."""
    aligned = getattr(run.loop, "aligned", None)
    if aligned is None:
        return None
    whole = _of_one(window, aligned(window.batches), _plain(run))
    found = None if whole is None else parts(window.micro, whole, window.at)
    first = run.loop.joined([window.batches[0]] * 2)
    twice = None if found is None else _of_one(window, first, _plain(run))
    # The same batch twice is the same loss along samples, and a longer sequence along time.
    is_time = twice is not None and parts(window.micro[:1], twice, window.at) is None
    return found if is_time else None


def _plain(run: Run) -> Gradient:
    return lambda *given: run.loop.gradient(*given)[1]


def of_joined(run: Run, window: Window, gradient: Gradient) -> Grads | None:
    """The gradient of all batches as one; None where they cannot be put together."""
    return _of_one(window, run.loop.joined(window.batches), gradient)


def _of_one(window: Window, joined: Any, gradient: Gradient) -> Grads | None:
    if joined is None:
        return None
    try:
        return gradient(joined, window.at, window.marks[0])
    except Exception:  # not every part of a batch is one row a sample: a random key, say
        return None


def parts(micro: Sequence[Grads], whole: Grads, like: Sequence[np.ndarray]) -> Shares | None:
    """With which weights the gradients of micro-batches make that of all; None where none do."""
    rows, target = np.stack([_row(g, like) for g in micro], axis=1), _row(whole, like)
    weights, *_ = np.linalg.lstsq(rows, target, rcond=None)
    size = float(np.linalg.norm(target))
    if not size or np.linalg.norm(rows @ weights - target) > FIT * size:
        return None
    return tuple(float(w) for w in weights)


def in_other_mode(run: Run, window: Window) -> Shares | None:
    """Shares by the loss without batch norm and dropout, under which no batch is a sum of parts."""
    flipped = getattr(run.loop, "flipped", None)
    if flipped is None:
        return None
    whole = of_joined(run, window, flipped)
    if whole is None:
        return None
    return parts(window.each(flipped), whole, window.at)


def guessed(run: Run, wrong: Sequence[Pair]) -> Finding | None:
    """Weights that nobody can hold against a loop: which axis counts samples is not known."""
    if not all(p.expected.is_guess for p in wrong):
        return None
    found = [_mean(p) for p in wrong]
    if any(w is None for w in found):
        return None
    pair, weights = wrong[0], found[0]
    shown = " and ".join(f"{w:.3g}" for w in weights or ())
    rows = " and ".join(f"{w:.3g}" for w in pair.expected.shares)
    return Finding(
        code="step-weights",
        severity="warn",
        message=f"micro-batches count {shown} in a window, where by their rows it were {rows}, and "
        f"no gradient of both together shows which is right (update {pair.window.number}); claim "
        f"weights=, a function that gives the weight of a batch",
        numbers=(("update", pair.window.number),),
    )


def unseen(pairs: Sequence[Pair]) -> list[Finding]:
    """Weights that agree with a guess."""
    if not any(p.expected.is_guess and not p.wrong for p in pairs):
        return []
    return [
        Finding(
            code="step-weights",
            severity="warn",
            message="micro-batches count by their rows, and no gradient of all together shows "
            "whether that is right; claim weights=, a function that gives the weight of a batch",
        )
    ]


def fitted(pair: Pair) -> list[float] | None:
    """Weights of micro-batches with which they make what arrived; None where there are none."""
    columns = [_row(grads, pair.window.at) for grads in pair.window.micro]
    target, matrix = _row(pair.got or (), pair.window.at), np.stack(columns, axis=1)
    weights, *_ = np.linalg.lstsq(matrix, target, rcond=None)
    residual = clipping.norm([matrix @ weights - target], 2)
    if residual > FIT * clipping.norm([target], 2) or min(weights) < 0 or not np.any(weights):
        return None
    return [float(w) for w in weights]


def _mean(pair: Pair) -> list[float] | None:
    """Such weights if they are those of a mean, whatever a clip took of it."""
    weights = fitted(pair)
    total = sum(weights or ())
    if weights is None or (abs(total - 1) > FIT and not pair.expected.bites):
        return None
    return [w / total for w in weights]


def _row(grads: Grads, like: Sequence[np.ndarray]) -> np.ndarray:
    pairs = zip(grads, like, strict=True)
    return clipping.flat([np.zeros_like(x) if g is None else g for g, x in pairs])
