"""A call of the verb, as it was made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pytest_gradcheck.checks.bind import Wrt


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A call of the verb: the function, its arguments and what was said about the derivative."""

    fn: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    wrt: Wrt = None
    grad: Callable[..., Any] | None = None
    vjp: Callable[..., Any] | None = None
    jac: Callable[..., Any] | None = None
    value_and_grad: bool = False
    modes: Sequence[str] = ("reverse",)
    order: int = 1
    intended: str | None = None
    backend: str | None = None
    device: str | None = None
    label: str | None = None
