"""What a user hands over: a training or what builds one, functions and what they return."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from pytest_gradcheck.backends.steps import Training
from pytest_gradcheck.errors import UsageError

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these


def built(training: Any) -> Training:
    """The training itself, or what a factory builds.

    Raises:
        UsageError: Neither came out.
    """
    is_factory = callable(training) and not isinstance(training, Training)
    if is_factory and takes(getattr(training, "forward", training), 0):
        name = getattr(training, "__name__", type(training).__name__)
        raise UsageError(
            f"a Training is wanted, or a function without arguments that returns one; {name} takes "
            f"arguments: return Training(step=..., loss=..., batches=...) from a function"
        )
    made = training() if is_factory else training
    if not isinstance(made, Training):
        raise UsageError(
            f"a Training is wanted, or a function that returns one; got {type(made).__name__}"
        )
    losses = made.loss if isinstance(made.loss, (list, tuple)) and made.loss else [made.loss]
    for part, value in (("step", made.step), *(("loss", loss) for loss in losses)):
        if not callable(value):
            raise UsageError(f"Training.{part} must be callable, got {value!r}")
    return made


def takes(function: Callable[..., Any], default: int) -> int:
    """How many positional arguments a function must be given."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return default
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.kind in kinds and p.default is p.empty for p in parameters)


def scalar(value: Any) -> Any:
    """The loss in what a loss function returns: the first of a tuple."""
    return value[0] if isinstance(value, (tuple, list)) and value else value
