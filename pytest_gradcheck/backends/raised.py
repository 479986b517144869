"""A loss of the user's that raised, in its own words and with how it was called."""

from __future__ import annotations

from typing import Any

from pytest_gradcheck.errors import UsageError

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these


def loss_raised(call: str, first: Any, batch: Any, error: Exception) -> UsageError:
    """The error that tells of it.

    Args:
        call: How the loss is called, such as ``loss(model, batch)``.
        first: What it was called with first.
        batch: And then.
        error: What it raised.
    """
    told = f"{call} raised {type(error).__name__}: {error}"
    if batch is None:
        return UsageError(f"{told}; no batch was given: check_flow(model, loss, batch)")
    if isinstance(error, (AttributeError, TypeError)):
        kinds = f"a {type(first).__name__} first, then the whole batch, {kind_of(batch)}"
        return UsageError(f"{told}; it is called with {kinds}")
    return UsageError(told)


def kind_of(value: Any) -> str:
    """What a value is, in words, and how many parts it has."""
    parts = f" of {len(value)}" if isinstance(value, (tuple, list)) else ""
    return f"a {type(value).__name__}{parts}"
