"""The claims of a call as they are written: each of its kind, or refused by name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pytest_gradcheck.checks.steps.contract import Contract
from pytest_gradcheck.errors import UsageError
from pytest_gradcheck.numerics.hyperparameters import TAKES
from pytest_gradcheck.numerics.optimizers import RULES

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

POLICIES = ("propagate", "raise", "skip")
HYPER = tuple(sorted({name for names in TAKES.values() for name in names}))
SWITCHES = ("amsgrad", "centered", "maximize", "nesterov")
WORDS = {"decay": ("coupled", "decoupled"), "adjust_lr_fn": ("original", "match_rms_adamw")}


def contract(claims: Mapping[str, Any], named: Mapping[str, Any]) -> Contract:
    """The contract of a call.

    Args:
        claims: What is claimed, None where nothing is.
        named: Hyperparameters that have names of their own in the call.

    Raises:
        UsageError: A claim is not allowed.
    """
    kept = {name: value for name, value in claims.items() if value is not None}
    kept["hyper"] = {**_hyper(named), **_hyper(kept.get("hyper", {}))}
    for name, allowed in CHOICES.items():
        is_function = name == "weights" and callable(kept.get(name))
        if name in kept and not is_function and kept[name] not in allowed:
            raise _refused(name, kept[name], ", ".join(allowed))
    for name in ("max_norm", "max_value", "loss_scale"):
        if name in kept:
            kept[name] = _number(name, kept[name], 0.0, is_open=True)
    if "max_norm" in kept and "max_value" in kept:
        raise UsageError("claim either max_norm= or max_value=")
    if "norm_type" in kept:
        kept["norm_type"] = _order(kept["norm_type"], "max_norm" in kept)
    count = kept.get("accumulate", 1)
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise _refused("accumulate", count, "a whole number above 0")
    why = kept.get("semi_gradient", "-")
    if not (isinstance(why, str) and why.strip()):
        raise _refused("semi_gradient", why, "the reason, as a text")
    for name in ("frozen", "no_decay"):
        kept[name] = _globs(name, kept.get(name, ()))
    if "schedule" in kept:
        kept["schedule"] = _schedule(kept["schedule"])
    return Contract(**kept)


CHOICES = {
    "optimizer": tuple(RULES),
    "nonfinite": POLICIES,
    "weights": ("samples", "batches", "window", "a function of a batch"),
}


def _refused(name: str, value: object, allowed: str) -> UsageError:
    return UsageError(f"{name}={value!r} is not allowed; allowed: {allowed}")


def _number(name: str, value: Any, least: float, is_open: bool = False) -> float:
    """A finite number that is large enough."""
    try:
        found = math.nan if isinstance(value, (bool, str)) else float(value)
    except (TypeError, ValueError):
        found = math.nan
    if math.isfinite(found) and (found > least or (found == least and not is_open)):
        return found
    raise _refused(name, value, f"a number {'above' if is_open else 'from'} {least:g}")


def _order(value: Any, has_norm: bool) -> float:
    try:
        found = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        found = math.nan
    if not found > 0:
        raise _refused("norm_type", value, "a number above 0, or inf")
    if not has_norm:
        raise UsageError(f"norm_type={value!r} is the order of a norm: claim max_norm= with it")
    return found


def _schedule(value: Any) -> Any:
    """A function of the number of the update, or a row of rates."""
    allowed = "a function of the number of the update, or a list of numbers from 0"
    if callable(value):
        try:
            _number("schedule", value(0), 0.0)
        except UsageError as error:
            raise _refused("schedule", value, f"{allowed}; it gives {value(0)!r} for 0") from error
        return value
    if isinstance(value, (str, bytes)):
        raise _refused("schedule", value, allowed)
    try:
        rates = list(value)
    except TypeError:
        raise _refused("schedule", value, allowed) from None
    if not rates:
        raise _refused("schedule", value, allowed)
    return tuple(_number("schedule", rate, 0.0) for rate in rates)


def _globs(name: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    if isinstance(value, (list, tuple, set, frozenset)) and all(isinstance(v, str) for v in value):
        return tuple(value)
    raise _refused(name, value, "a glob of parameters, or a list of globs")


def _hyper(given: Any) -> dict[str, Any]:
    """Claimed hyperparameters, each of its kind."""
    if not isinstance(given, Mapping):
        raise _refused("hyper", given, "a dictionary")
    for name in given:
        if name not in HYPER:
            raise UsageError(f"hyper={{{name!r}: …}} is not known; known: {', '.join(HYPER)}")
    return {name: _of_its_kind(name, value) for name, value in given.items()}


def _of_its_kind(name: str, value: Any) -> Any:
    if name in SWITCHES:
        if not isinstance(value, bool):
            raise _refused(name, value, "True, False")
        return value
    if name in WORDS:
        if value not in WORDS[name]:
            raise _refused(name, value, ", ".join(WORDS[name]))
        return value
    if name == "betas":
        allowed = "two numbers from 0 to below 1"
        return _row(name, value, 2, allowed, lambda v: 0 <= v < 1)
    if name == "ns_coefficients":
        return _row(name, value, 3, "three numbers", math.isfinite)
    return _number(name, value, 0.0)


def _row(name: str, value: Any, count: int, allowed: str, is_right: Any) -> tuple[float, ...]:
    if not isinstance(value, (list, tuple)) or len(value) != count:
        raise _refused(name, value, allowed)
    try:
        row = tuple(float(v) for v in value)
    except (TypeError, ValueError):
        raise _refused(name, value, allowed) from None
    if not all(is_right(v) for v in row):
        raise _refused(name, value, allowed)
    return row
