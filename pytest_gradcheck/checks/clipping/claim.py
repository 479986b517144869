"""What a clip is said to do, and what must then come out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pytest_gradcheck.errors import UsageError
from pytest_gradcheck.numerics import clipping
from pytest_gradcheck.numerics.clipping import Groups

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

PER = ("all", "tensor", "unit", "example")
POLICIES = ("propagate", "raise", "zero", "skip")
DTYPES = ("float16", "bfloat16", "float32", "float64")
# What torch adds to the norm before it divides: a known difference between right clips.
TORCH_FLOOR = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What a clip is said to do.

    Args:
        max_norm: Threshold of the norm; None where values are clipped.
        norm_type: 1, 2, ``inf`` or any other order, or ``rms``.
        max_value: Threshold of the absolute value of each element.
        per: What has one norm: ``all`` gradients together, each ``tensor``, each ``unit`` (its
            threshold relative to the norm of its parameters), each ``example``.
        outputs: Where a weight has its axis of outputs, ``first`` or ``last``.
        nonfinite: What is to happen to inf and nan; None takes whatever does not hide them.
    """

    max_norm: float | None = None
    norm_type: float | str = 2.0
    max_value: float | None = None
    per: str = "all"
    nonfinite: str | None = None
    outputs: str = "last"

    @property
    def threshold(self) -> float:
        """The one of both thresholds that is claimed."""
        return float(self.max_norm if self.max_value is None else self.max_value)  # type: ignore[arg-type]  # one is given

    def groups(self, values: Sequence[np.ndarray], parameters: Sequence[np.ndarray]) -> Groups:
        """The elements that share a norm, with their thresholds."""
        if self.per == "tensor":
            return clipping.by_tensor(values, self.threshold)
        if self.per == "unit":
            return clipping.by_unit(
                values, parameters, self.threshold, self.outputs, self.norm_type
            )
        return clipping.grouped(values, self.threshold)

    def settings(self) -> dict[str, Any]:
        """The claim by role, for a clip that takes it as arguments."""
        if self.max_value is not None:
            return {"value": self.max_value, "algorithm": "value"}
        return {"norm": self.max_norm, "kind": self.norm_type, "algorithm": "norm"}


def claim(
    max_norm: object, norm_type: object, max_value: object, per: object, nonfinite: object
) -> Claim:
    """The claim of a call.

    Raises:
        UsageError: Something in it is not allowed, or no threshold is given.
    """
    if (max_norm is None) == (max_value is None):
        raise UsageError("say what the clip claims: either max_norm= or max_value=")
    _require(per, "per", PER)
    if nonfinite is not None:
        _require(nonfinite, "nonfinite", POLICIES)
    if max_value is not None and per != "all":
        raise UsageError(f"per={per!r} goes with max_norm=: values are clipped one by one")
    return Claim(
        max_norm=None if max_norm is None else _positive(max_norm, "max_norm"),
        norm_type=_kind(norm_type),
        max_value=None if max_value is None else _positive(max_value, "max_value"),
        per=str(per),
        nonfinite=None if nonfinite is None else str(nonfinite),
    )


def _require(value: object, name: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UsageError(f"{name}={value!r} is not allowed; allowed: {', '.join(allowed)}")


def _positive(value: object, name: str) -> float:
    try:
        number = float(value)  # type: ignore[arg-type]  # what float() takes is welcome, words not
    except (TypeError, ValueError):
        number = math.nan
    if not number > 0 or isinstance(value, (bool, str)):
        raise UsageError(f"{name}={value!r} is not allowed; allowed: a number above 0")
    return number


def dtypes_of(dtypes: object) -> tuple[str, ...]:
    """Names of precisions, given as such or as those of a framework.

    Raises:
        UsageError: There are none, or one is not known.
    """
    many = () if isinstance(dtypes, str) or not isinstance(dtypes, Iterable) else tuple(dtypes)
    names = [str(getattr(d, "__name__", d)).removeprefix("torch.") for d in many]
    if not names or not set(names) <= set(DTYPES):
        raise UsageError(f"dtypes={dtypes!r} is not allowed; allowed: some of {list(DTYPES)}")
    return tuple(names)


def _kind(value: object) -> float | str:
    if isinstance(value, str) and value in ("rms", "inf"):
        return "rms" if value == "rms" else math.inf
    try:
        return _positive(value, "norm_type")
    except UsageError as error:
        raise UsageError(f"{error}, 'inf' or 'rms'") from None
