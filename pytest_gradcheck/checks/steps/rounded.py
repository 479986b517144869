"""Gradients of what a step rounds by itself: its batch, its parameters, or the gradient."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from pytest_gradcheck.checks.steps.contract import Contract
from pytest_gradcheck.checks.steps.cuts import again
from pytest_gradcheck.checks.steps.measure import Run
from pytest_gradcheck.checks.steps.suspect import Guess, Suspect
from pytest_gradcheck.checks.steps.windows import Grads

if TYPE_CHECKING:
    from pytest_gradcheck.checks.steps.received import Pair

DIGITS = {"float16": 11, "bfloat16": 8}  # significant bits (IEEE 754-2019, table 3.6)
OWN = {"float32": 24, "float64": 53}


def guesses(run: Run, contract: Contract) -> Iterator[Guess]:
    """What is rounded, and to which precision."""
    makers: tuple[tuple[str, Callable[..., Grads | None]], ...] = (
        ("the gradient of a batch", _of_batch),
        ("the gradient of a batch with its inputs", _of_inputs),
        ("the gradient at parameters", _at_parameters),
        ("the right gradient", _of_gradient),
    )
    for dtype in DIGITS:
        for what, made in makers:
            yield (
                Suspect(
                    "step-rounded",
                    f"the optimizer received {what} rounded to {dtype}",
                    "round the same in Training.loss, use autocast, or allow it with "
                    "step_gradient=",
                ),
                functools.partial(made, run, contract, dtype),
            )


def _of_batch(run: Run, contract: Contract, dtype: str, pair: Pair) -> Grads | None:
    if len(pair.window.batches) > 1:
        return None
    batch, mark = _batch(pair.window.batches[0], dtype), pair.window.marks[0]
    return again(run, pair, contract, run.loop.gradient(batch, pair.window.at, mark)[1])


def _of_inputs(run: Run, contract: Contract, dtype: str, pair: Pair) -> Grads | None:
    """The same where only the first part of a batch is rounded, and not its targets."""
    batch = pair.window.batches[0]
    if len(pair.window.batches) > 1 or not isinstance(batch, (list, tuple)) or len(batch) < 2:
        return None
    parts = [_batch(batch[0], dtype), *batch[1:]]
    given = type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
    grads = run.loop.gradient(given, pair.window.at, pair.window.marks[0])[1]
    return again(run, pair, contract, grads)


def _at_parameters(run: Run, contract: Contract, dtype: str, pair: Pair) -> Grads | None:
    if len(pair.window.batches) > 1:
        return None
    at = [_coarse(x, dtype, "float64") for x in pair.window.at]
    grads = run.loop.gradient(pair.window.batches[0], at, pair.window.marks[0])[1]
    return again(run, pair, contract, grads)


def _of_gradient(run: Run, contract: Contract, dtype: str, pair: Pair) -> Grads | None:
    return [None if g is None else _coarse(g, dtype, "float64") for g in pair.expected.clipped]


def _batch(batch: Any, dtype: str) -> Any:
    """A batch whose arrays of floating-point type are rounded."""
    if isinstance(batch, dict):
        return {key: _batch(value, dtype) for key, value in batch.items()}
    if isinstance(batch, (list, tuple)):
        parts = [_batch(value, dtype) for value in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
    own = str(getattr(batch, "dtype", "")).removeprefix("torch.")
    return _coarse(batch, dtype, own) if own in OWN else batch


def _coarse(x: Any, dtype: str, own: str) -> Any:
    """An array of any framework to so many significant bits (Veltkamp 1968, by Dekker 1971)."""
    with np.errstate(all="ignore"):
        large = x * (2.0 ** (OWN[own] - DIGITS[dtype]) + 1)
        return large - (large - x)
