"""What a training step is said to do."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pytest_gradcheck.errors import UsageError
from pytest_gradcheck.numerics.optimizers import RULES

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

POLICIES = ("propagate", "raise", "skip")


# As torch and optax name them.
HYPER = (
    "adjust_lr_fn",
    "alpha",
    "amsgrad",
    "betas",
    "centered",
    "dampening",
    "eps",
    "initial_accumulator_value",
    "lr",
    "lr_decay",
    "maximize",
    "momentum",
    "momentum_decay",
    "nesterov",
    "ns_coefficients",
    "ns_steps",
    "rho",
    "trust_coefficient",
    "weight_decay",
)


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
        weights: ``samples`` (each sample counts the same) or ``batches`` (each batch does).
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
    weights: str = "samples"
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


def contract(claims: Mapping[str, Any]) -> Contract:
    """The contract of a call.

    Raises:
        UsageError: A claim is not allowed.
    """
    kept = {name: value for name, value in claims.items() if value is not None}
    name = kept.get("optimizer")
    if name is not None and name not in RULES:
        raise UsageError(f"optimizer={name!r} is not known; known: {', '.join(RULES)}")
    _require(kept.get("nonfinite"), "nonfinite", POLICIES)
    _require(kept.get("weights"), "weights", ("samples", "batches"))
    for each in ("max_norm", "max_value", "loss_scale"):
        if each in kept and not float(kept[each]) > 0:
            raise UsageError(f"{each}={kept[each]!r} is not allowed; allowed: a number above 0")
    if "max_norm" in kept and "max_value" in kept:
        raise UsageError("claim either max_norm= or max_value=")
    count = kept.get("accumulate")
    if count is not None and (not isinstance(count, int) or count < 1):
        raise UsageError(f"accumulate={count!r} is not allowed; allowed: a whole number above 0")
    why = kept.get("semi_gradient")
    if why is not None and not (isinstance(why, str) and why.strip()):
        raise UsageError(f"semi_gradient={why!r} is not allowed; allowed: the reason, as a text")
    unknown = sorted(set(kept.get("hyper", {})) - set(HYPER))
    if unknown:
        raise UsageError(f"hyper={{{unknown[0]!r}: …}} is not known; known: {', '.join(HYPER)}")
    for each in ("frozen", "no_decay"):
        kept[each] = _globs(kept.get(each, ()))
    if "schedule" in kept and not callable(kept["schedule"]):
        kept["schedule"] = tuple(float(rate) for rate in kept["schedule"])
    return Contract(**kept)


def _require(value: object, name: str, allowed: tuple[str, ...]) -> None:
    if value is not None and value not in allowed:
        raise UsageError(f"{name}={value!r} is not allowed; allowed: {', '.join(allowed)}")


def _globs(value: Any) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(str(v) for v in value)
