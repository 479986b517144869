"""What a training step is said to do."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pytest_gradcheck.errors import UsageError

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these


@dataclass(frozen=True, slots=True, kw_only=True)
class Contract:
    """The claims of a call; None where nothing is claimed.

    Args:
        optimizer: Name of the rule.
        hyper: Claimed hyperparameters, which replace those of the optimizer's groups.
        schedule: Claimed learning rate of each update, counted from 0.
        no_decay: Globs of parameters without decay.
        max_norm: Claimed threshold of the global norm.
        norm_type: Order of that norm.
        max_value: Claimed threshold of each element.
        accumulate: Calls of ``step`` for each update.
        weights: ``samples`` (each sample counts the same), ``batches`` (each batch does),
            ``window`` (each counts as one of a full window), or a function of a batch.
        frozen: Globs of parameters that must not move.
        loss_scale: Factor on the loss that must be gone when the optimizer gets the gradient.
        nonfinite: What must happen to a batch whose gradient is not finite.
        semi_gradient: Why the gradient is not meant to be the slope of the loss.
    """

    optimizer: str | None = None
    hyper: Mapping[str, Any] = field(default_factory=dict)
    schedule: Callable[[int], float] | Sequence[float] | None = None
    no_decay: tuple[str, ...] = ()
    max_norm: float | None = None
    norm_type: float = 2.0
    max_value: float | None = None
    accumulate: int | None = None
    weights: str | Callable[[Any], float] = "samples"
    frozen: tuple[str, ...] = ()
    loss_scale: float | None = None
    nonfinite: str | None = None
    semi_gradient: str | None = None

    def rate(self, update: int) -> float | None:
        """The claimed learning rate of an update, counted from 0; None where none is claimed."""
        if self.schedule is None:
            return None
        if callable(self.schedule):
            return float(self.schedule(update))
        return float(self.schedule[min(update, len(self.schedule) - 1)])

    def at(self, name: str, group: Mapping[str, Any], update: int) -> dict[str, Any]:
        """Hyperparameters of a parameter at an update: the claimed ones over those of its group."""
        merged = {**group, **self.hyper}
        rate = self.rate(update)
        if rate is not None:
            merged["lr"] = rate
        if matches(name, self.no_decay):
            merged["weight_decay"] = 0.0
        return merged


def require_matched(claims: Contract, names: Sequence[str]) -> None:
    """Refuse a claim on parameters that are not there: a misspelt one, which would pass unseen.

    Raises:
        UsageError: No parameter fits a glob.
    """
    for claim, globs in (("frozen", claims.frozen), ("no_decay", claims.no_decay)):
        for glob in globs:
            if not any(matches(name, (glob,)) for name in names):
                listed = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
                raise UsageError(f"{claim}={glob!r} fits no parameter; there are: {listed}")


def matches(name: str, globs: Sequence[str]) -> bool:
    """Whether a name fits one of some globs."""
    return any(fnmatch.fnmatchcase(name, glob) for glob in globs)
