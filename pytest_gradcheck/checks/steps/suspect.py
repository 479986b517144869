"""A mistake that explains what was seen, and a guess at one: what it predicts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_gradcheck.checks.steps.windows import Grads

if TYPE_CHECKING:
    from pytest_gradcheck.checks.steps.received import Pair


@dataclass(frozen=True, slots=True, eq=False)
class Suspect:
    """A mistake that explains what was seen.

    Args:
        code: Code of the finding.
        message: What happened.
        advice: What to try.
        where: Path of a tensor, where one is to blame.
        is_varied: Whether it needs another number for each window, as a random loss would too.
        is_bare: Whether it is a factor of which nothing says where it comes from.
    """

    code: str
    message: str
    advice: str
    where: str = ""
    is_varied: bool = False
    is_bare: bool = False


Predict = Callable[["Pair"], "Grads | None"]
Guess = tuple[Suspect, Predict]
