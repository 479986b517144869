"""A loss of the user's that raised, in its own words and with how it was called."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pytest_gradcheck.errors import UsageError, listed, told

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these


def loss_raised(call: str, first: Any, batch: Any, error: Exception) -> UsageError:
    """The error that tells of it.

    Args:
        call: How the loss is called, such as ``loss(model, batch)``.
        first: What it was called with first.
        batch: And then.
        error: What it raised.
    """
    words = f"{call} raised {type(error).__name__}: {error}"
    if batch is None:
        return UsageError(f"{words}; no batch was given: check_flow(model, loss, batch)")
    if isinstance(error, (AttributeError, TypeError)):
        kinds = f"a {type(first).__name__} first, then the whole batch, {kind_of(batch)}"
        return UsageError(f"{words}; it is called with {kinds}")
    return UsageError(words)


def kind_of(value: Any) -> str:
    """What a value is, in words, and how many parts it has; of a loader, how to get a batch."""
    parts = f" of {len(value)}" if isinstance(value, (tuple, list)) else ""
    has_batches = hasattr(value, "__iter__") and not hasattr(value, "__getitem__")
    loader = "; give one of its batches, such as next(iter(...))" if has_batches else ""
    return f"a {type(value).__name__}{parts}{loader}"


def step_raised(error: Exception, given: Sequence[Any]) -> str:
    """What a step raised, in words; with what it is called, where it does not take that."""
    words, trace = told(error), error.__traceback__
    if not isinstance(error, TypeError) or trace is None or trace.tb_next is not None:
        return words
    kinds = listed([kind_of(value) for value in given])
    return f"{words}; the step is called with {'the batch, ' * (len(given) == 1)}{kinds}"
