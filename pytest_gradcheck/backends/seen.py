"""What is seen inside of a call of a step: clips of the framework, and what is differentiated."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Clip:
    """One call of a clip of the framework.

    Args:
        places: Numbers of the parameters that it was given.
        threshold: Its threshold.
        order: Order of the norm.
        is_value: Whether it clips each element.
        size: The norm that it was given to divide by; NaN where it takes one itself.
        given: How many tensors it was given, those that are no parameters of ours too.
        with_gradient: How many of them had a gradient.
        entering: The norm of order 2 of the gradients of ours that it was given.
    """

    places: tuple[int, ...]
    threshold: float
    order: float = 2.0
    is_value: bool = False
    size: float = math.nan
    given: int = 1
    with_gradient: int = 1
    entering: float = math.nan


@dataclass(frozen=True, slots=True)
class Witness:
    """What a call differentiates, as it is seen without a fresh gradient.

    Args:
        form: The graph and its conditions: of the same form, the same is done to the same leaves.
        value: The loss that the step differentiates.
        meant: The loss of the contract, computed from what the model has put out in the step.
        dtype: The precision of both.
        has_arrived: Whether the optimizer was given what lay there after the backward pass, and at
            the parameters at which the model was called.
    """

    form: str
    value: float
    meant: float
    dtype: str
    has_arrived: bool
