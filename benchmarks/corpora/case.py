"""A function at a point with its derivative, in one framework."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

MOST_ELEMENTS = 400  # of the inputs, and of the outputs


@dataclass(frozen=True, eq=False)
class Case:
    """One function at one point.

    Args:
        name: Name in lists.
        backend: ``torch``, ``jax`` or ``numpy``.
        dtype: ``float64`` or ``float32``.
        function: The function of the inputs.
        inputs: Its inputs.
        vjp: ``vjp(cotangent, *inputs)``, a list of one array for each input; None for the
            framework's own derivative.
    """

    name: str
    backend: str
    dtype: str
    function: Callable[..., Any]
    inputs: Sequence[Any]
    vjp: Callable[..., Any] | None = None
