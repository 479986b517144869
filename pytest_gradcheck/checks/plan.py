"""In which precision the reference is computed, and the derivative under test in each of them.

float64 functions are taken as they are. Others are differentiated as they are, and the reference
is computed with every floating-point input in float64 where the function can be promoted; where
it cannot, at its own precision. The derivative is evaluated in both: its formula is judged where
differences are sharp, its rounding by comparing the two.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from pytest_gradcheck.backends import Array
from pytest_gradcheck.checks.form import WrongDerivative
from pytest_gradcheck.checks.outputs import sides
from pytest_gradcheck.checks.point import start
from pytest_gradcheck.checks.probe import OUTSIDE_DOMAIN, Probe
from pytest_gradcheck.checks.projection import Cotangents, norm
from pytest_gradcheck.errors import UsageError, brief
from pytest_gradcheck.limits import PROMOTED
from pytest_gradcheck.numerics import precision
from pytest_gradcheck.numerics.column import NOISE_FACTOR, ROUNDING_UNITS
from pytest_gradcheck.numerics.differences import central_exponent, first_exponents
from pytest_gradcheck.numerics.growth import HIGHEST
from pytest_gradcheck.numerics.ladder import Floats
from pytest_gradcheck.numerics.seeds import derive

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

# How far a deep network in a lower precision may be from itself in float64, in its units.
SAME_UNITS = 32.0

Gradient = Sequence[Array | None]


@dataclass(frozen=True, slots=True, eq=False)
class Claim:
    """The derivative under test at one precision.

    Args:
        dtype: The real precision it was computed in.
        gradients: For each set of cotangents, one array for each input or None.
        norms: (sets, inputs) Euclidean norms; 0 where there is no gradient.
    """

    dtype: str
    gradients: tuple[Gradient, ...]
    norms: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, eq=False)
class Plan:
    """What is compared with what.

    Args:
        native: The function as it was given.
        probe: The function that the differences are taken of.
        cotangents: Sets of cotangents in the precision of ``probe``.
        asis: The derivative in the function's own precision.
        claim: The derivative that is compared with the differences.
        reason: Precision of the reference in words.
        native_cotangents: The same sets in the function's own precision.
    """

    native: Probe
    probe: Probe
    cotangents: tuple[Cotangents, ...]
    asis: Claim
    claim: Claim
    reason: str
    native_cotangents: tuple[Cotangents, ...]

    @functools.cached_property
    def floor(self) -> Floats:
        """(sets,) least rounding error of one projected value."""
        return self.probe.floor(self.cotangents)

    @functools.cached_property
    def sizes(self) -> tuple[float, ...]:
        """(inputs,) root mean square, over the sets of cotangents, of the scaled gradient norms."""
        columns = zip(self.probe.scales, *self.claim.norms, strict=True)
        return tuple(s * math.sqrt(sum(n * n for n in ns) / len(ns)) for s, *ns in columns)

    @functools.cached_property
    def whole(self) -> float:
        """Size of the whole gradient."""
        return math.hypot(*self.sizes)

    @functools.cached_property
    def at_zero(self) -> Gradient | None:
        """The derivative for cotangents of zeros, where it multiplies by them itself; else None."""
        probe, weights = self.probe, self.cotangents
        if self.claim is self.asis:
            probe, weights = self.native, self.native_cotangents
        if probe.outputs.has_rules is False or not probe.derivative.takes_cotangent:
            return None
        try:
            return _owned(probe, probe.gradient([None if w is None else w * 0 for w in weights[0]]))
        except (UsageError, WrongDerivative):  # told as a contract that is broken
            return None

    @property
    def least_bound(self) -> float:
        """Bound that rounding alone leaves at the step where it balances truncation."""
        return self._rounding_at(central_exponent(precision.epsilon(self.probe.precision)))

    @property
    def first_bound(self) -> float:
        """The same at the middle of the steps that are tried first."""
        return self._rounding_at(first_exponents(precision.epsilon(self.probe.precision))[1])

    @property
    def lowest_bound(self) -> float:
        """What rounding leaves of the bound of any set of cotangents at the largest step of all."""
        return NOISE_FACTOR * ROUNDING_UNITS * float(self.floor.min()) / 2.0**HIGHEST

    def _rounding_at(self, exponent: int) -> float:
        return NOISE_FACTOR * ROUNDING_UNITS * float(self.floor.max()) / 2.0**exponent

    def rounding_as(self, inside: str) -> Plan:
        """The same for a function that turned out to compute in a lower precision inside."""
        probe = replace(self.probe, inside=inside)
        claim = replace(self.claim, dtype=probe.precision)
        asis = claim if self.claim is self.asis else self.asis
        return replace(self, probe=probe, claim=claim, asis=asis)

    @property
    def claimed_in(self) -> str:
        """The precision of the claim, as the limits call it."""
        promoted = self.is_in_two_precisions and self.claim.dtype == "float64"
        return PROMOTED if promoted else self.claim.dtype

    @property
    def is_in_two_precisions(self) -> bool:
        """Whether the same derivative is there in its own precision and in float64."""
        return self.claim is not self.asis and not self.native.guard.is_random


def make(native: Probe, seed: int) -> Plan:
    """Draw the cotangents, get the derivative under test, promote where that works.

    Raises:
        WrongDerivative: The derivative is wrong by its form, or not finite.
    """
    weights = _cotangents(native, seed)
    asis = _claim(native, weights)
    unpromoted = Plan(native, native, weights, asis, asis, native.precision, weights)
    if native.precision == precision.promoted(native.precision):
        return unpromoted
    wide, why = _promoted(native)
    if wide is None:
        reason = f"{native.precision}, not promoted: {why}"
        return Plan(native, native, weights, asis, asis, reason, weights)
    wide_weights = _converted(wide, weights)
    try:
        claim = _claim(wide, wide_weights)
    except (*OUTSIDE_DOMAIN, TypeError, UsageError, WrongDerivative) as error:
        reason = f"float64; derivative in {native.precision} only: {type(error).__name__}"
        return Plan(native, wide, wide_weights, asis, asis, reason, weights)
    # Random numbers are drawn anew in float64: the same function, another realisation of it.
    reason = "float64, promoted" + (", another draw" if native.guard.is_random else "")
    reason += f", output in {wide.precision}" if wide.precision != "float64" else ""
    return Plan(native, wide, wide_weights, asis, claim, reason, weights)


def _promoted(native: Probe) -> tuple[Probe | None, str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            given = native.problem.promoted(), native.derivative, native.guard, native.cost
            wide = start(*given, is_exact=not any(native.rounding))
    except UsageError as error:
        return None, f"{_brief(error.__cause__ or error)} in float64"
    except (*OUTSIDE_DOMAIN, TypeError) as error:
        return None, f"{_brief(error)} in float64"
    # One that computes in less than its output has (autocast, then a cast) is sharper all the same.
    if wide.precision != "float64" and native.lowest_inside() == native.precision:
        return None, f"the output stays {wide.precision}"
    if not native.guard.is_random and not _same_function(native, wide):
        return None, "in float64 it gives another value"
    return wide, ""


def _brief(error: BaseException) -> str:
    return f"{type(error).__name__} ({brief(str(error), 60)})"


def _same_function(native: Probe, wide: Probe) -> bool:
    if _are_close(native, wide, 8 * math.sqrt(precision.epsilon(native.precision))):
        return True
    inside = native.lowest_inside()  # autocast leaves float64 alone
    slack = SAME_UNITS * precision.epsilon(inside)
    return inside != native.precision and _are_close(native, wide, slack)


def _are_close(native: Probe, wide: Probe, slack: float) -> bool:
    backend = native.problem.backend
    for narrow, broad in zip(native.outputs.leaves, wide.outputs.leaves, strict=True):
        if narrow.dtype:
            gap = norm(backend, broad.value - backend.convert(narrow.value, broad.dtype))
            if gap > slack * norm(backend, broad.value) + slack * 1e-3:
                return False
    return True


def _cotangents(probe: Probe, seed: int) -> tuple[Cotangents, ...]:
    leaves = probe.outputs.leaves
    spots = [m for m, leaf in enumerate(leaves) if leaf.dtype and leaf.size]
    # An output that is declared not differentiable is left out, unless that leaves nothing.
    spots = [m for m in spots if leaves[m].trainable] or spots
    only = leaves[spots[0]]
    if len(spots) == 1 and only.size == 1 and not only.dtype.startswith("complex"):
        one = only.value * 0 + 1
        return (tuple(one if m in spots else None for m in range(len(leaves))),)
    # Two sets: one alone can be blind to an error in an output that it happens to weigh little.
    return tuple(_drawn(probe, spots, derive(seed, "cotangent", j)) for j in range(2))


def _drawn(probe: Probe, spots: Sequence[int], seed: int) -> Cotangents:
    backend, leaves = probe.problem.backend, probe.outputs.leaves
    drawn: list[Array | None] = [None] * len(leaves)
    for m in spots:
        weight = backend.normal(leaves[m].value, derive(seed, leaves[m].path))
        drawn[m] = weight * (1 / _output_size(probe, m))
    return tuple(drawn)


def _output_size(probe: Probe, index: int) -> float:
    # Outputs of different size are weighed alike, else a large one would hide a small one.
    leaf = probe.outputs.leaves[index]
    if len(probe.outputs.leaves) == 1 or not leaf.dtype or not leaf.size:
        return 1.0
    return precision.power_of_two(norm(probe.problem.backend, leaf.value) / math.sqrt(leaf.size))


def _converted(wide: Probe, weights: Sequence[Cotangents]) -> tuple[Cotangents, ...]:
    convert = wide.problem.backend.convert
    return tuple(
        tuple(
            None if w is None else convert(w, leaf.dtype)
            for w, leaf in zip(row, wide.outputs.leaves, strict=True)
        )
        for row in weights
    )


def _claim(probe: Probe, weights: Sequence[Cotangents]) -> Claim:
    gradients = tuple(tuple(_owned(probe, probe.gradient(row))) for row in weights)
    backend = probe.problem.backend
    norms = tuple(
        tuple(0.0 if g is None else norm(backend, g) for g in gradient) for gradient in gradients
    )
    for gradient, row in zip(gradients, norms, strict=True):
        if not all(map(math.isfinite, row)):
            _require_finite(probe, gradient)
    return Claim(probe.precision, gradients, norms)


def _owned(probe: Probe, gradient: Gradient) -> list[Array | None]:
    # A hand-written derivative may hand out the same buffer each time; a Jacobian or a matrix
    # view is brought to the input's shape by a copy.
    convert = probe.problem.backend.convert
    return [None if g is None else convert(g) for g in gradient]


def _require_finite(probe: Probe, gradient: Gradient) -> None:
    for index, g in enumerate(gradient):
        if g is None or math.isfinite(norm(probe.problem.backend, g * 0.0)):
            continue
        name = probe.problem.names[index]
        told = f"the derivative for {name} holds NaN or infinite numbers"
        if _is_finite_around(probe, index):
            raise WrongDerivative(
                "gradient-nonfinite",
                name,
                f"{told}; the function is finite around the point: look for 0/0, a root or "
                f"logarithm of zero, or an unused branch of where",
            )
        raise WrongDerivative(
            "domain-edge",
            name,
            f"the derivative for {name} is not finite where the function ends; "
            f"give a point inside the domain",
        )


def _is_finite_around(probe: Probe, index: int) -> bool:
    """Whether the function is finite on both sides of the point, along one input."""
    smallest = first_exponents(precision.epsilon(probe.precision))[-1]
    direction = probe.direction(0, {index: 1.0})
    return bool(np.isfinite(sides(probe, direction, 2.0**smallest)).all())
