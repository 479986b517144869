"""The optimizers that a step calls, taken for handed over where none was, or one around them."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

from pytest_gradcheck.backends.loading import load
from pytest_gradcheck.backends.steps import Loop
from pytest_gradcheck.checks.steps.measure import batches_of
from pytest_gradcheck.checks.steps.several import Part

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these


def loaded(part: Part, backend: str, batches: list[Any]) -> Loop:
    """The loop of a training, with the optimizers that its step calls.

    Args:
        part: The training.
        backend: Name of its backend.
        batches: Those of an epoch; drawn here where the step must be heard first.
    """
    loop = load(backend, part.training, part.others)
    listen = getattr(loop, "heard", None)
    if listen is None or not loop.is_heard:  # type: ignore[attr-defined]  # of torch, as heard is
        return loop
    with warnings.catch_warnings(), loop.held():
        warnings.simplefilter("ignore")
        batches += [] if batches else batches_of(part.training.batches)
        found = listen(batches)
    training = replace(part.training, optimizer=found)
    return load(backend, training, part.others) if found else loop
