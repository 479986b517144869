"""What a check has cost so far, and how much it may."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these


@dataclass(slots=True)
class Cost:
    """Runs so far, and how many there may be.

    Args:
        evaluations: Evaluations of the function.
        derivatives: Evaluations of the derivative under test.
        most: Evaluations after which no further direction is begun.
        deadline: The same as a time of ``time.monotonic``.
        tell: Called after each evaluation with their number.
    """

    evaluations: int = 0
    derivatives: int = 0
    most: float = math.inf
    deadline: float = math.inf
    tell: Callable[[int], None] | None = None

    def evaluated(self) -> None:
        """Count one evaluation."""
        self.evaluations += 1
        if self.tell is not None:
            self.tell(self.evaluations)

    @property
    def is_spent(self) -> bool:
        """Whether the budget is used up."""
        return self.evaluations >= self.most or time.monotonic() >= self.deadline
