"""Gradients that bite and that do not: the cases over which a clip keeps its contract."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pytest_gradcheck.checks.clipping.claim import Claim
from pytest_gradcheck.numerics import clipping, precision, seeds

# A matrix, a vector, a kernel and a number: global and per-tensor norms differ, and so do shapes.
SHAPES: tuple[tuple[int, ...], ...] = ((4, 3), (6,), (2, 2, 3), ())
# Sizes of the tensors relative to one another: one alone is above most thresholds, one far below.
SCALES = (1.0, 0.3, 3.0, 0.05)
HALVES = ("float16", "bfloat16")


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """Gradients for one call.

    Args:
        name: In words, for a table.
        kind: ``plain``, ``zero``, ``half``, ``none``, ``nonfinite`` or ``zero-threshold``.
        dtype: Precision.
        gradients: One array for each parameter, None for one that has no gradient.
        claim: What is to be clipped to.
    """

    name: str
    kind: str
    dtype: str
    gradients: tuple[np.ndarray | None, ...]
    claim: Claim


def cases(
    claim: Claim,
    shapes: Sequence[tuple[int, ...]],
    parameters: Sequence[np.ndarray],
    dtype: str,
    seed: int,
) -> Iterator[Case]:
    """The cases of one precision; none for a threshold that nothing can be above."""
    if not np.isfinite(claim.threshold):
        return
    draws = _Draws(claim, shapes, parameters, dtype, seed)
    for ratio in (0.5, 1e-3, 0.9):
        yield draws.plain(f"{ratio:g} of the threshold", ratio)
    for ratio in (2.5, 4.0, 1e3):
        yield draws.plain(f"{ratio:g} times the threshold", ratio)
    yield draws.plain("three times, each tensor below", 3.0, scales=(1.0,))
    yield draws.negative()
    yield draws.spike()
    yield draws.with_zero()
    yield draws.zero()


class _Draws:
    """Draws gradients whose norm is a given multiple of the threshold."""

    def __init__(
        self,
        claim: Claim,
        shapes: Sequence[tuple[int, ...]],
        parameters: Sequence[np.ndarray],
        dtype: str,
        seed: int,
    ) -> None:
        self._claim, self._shapes, self._parameters = claim, shapes, parameters
        self._dtype, self._seed = dtype, seed

    def raw(self, name: str, scales: Sequence[float] = SCALES) -> list[np.ndarray]:
        """Normal numbers, each tensor of its own size."""
        generator = np.random.default_rng(seeds.derive(self._seed, name))
        return [
            scales[i % len(scales)] * generator.standard_normal(shape)
            for i, shape in enumerate(self._shapes)
        ]

    def plain(self, name: str, ratio: float, scales: Sequence[float] = SCALES) -> Case:
        """Normal gradients at a multiple of the threshold."""
        return self._case(name, "plain", self._scaled(self.raw(name, scales), ratio))

    def negative(self) -> Case:
        """All elements below zero: a maximum that forgot the absolute value sees nothing."""
        values = [-np.abs(x) for x in self.raw("negative")]
        return self._case("4 times, all negative", "plain", self._scaled(values, 4.0))

    def spike(self) -> Case:
        """One element far above all others."""
        values = self._scaled(self.raw("spike"), 0.2)
        largest = max(range(len(values)), key=lambda i: values[i].size)
        values[largest] = np.array(values[largest])
        limit = float(np.max(self._claim.groups(values, self._parameters).thresholds))
        values[largest].reshape(-1)[0] = 1e3 * limit
        return self._case("one huge element", "plain", values)

    def with_zero(self) -> Case:
        """One tensor that is zero among others that bite."""
        values = self._scaled(self.raw("zero tensor"), 4.0)
        if len(values) > 1:
            values[1] = np.zeros_like(values[1])
        return self._case("4 times, a tensor of zeros", "plain", values)

    def zero(self) -> Case:
        """Nothing but zeros."""
        return self._case("zeros", "zero", [np.zeros(shape) for shape in self._shapes])

    def _scaled(self, values: list[np.ndarray], ratio: float) -> list[np.ndarray]:
        """Every group at the ratio; where there are several, every second one below."""
        groups = self._claim.groups(values, self._parameters)
        row = clipping.flat(values)
        if self._claim.max_value is not None:
            factor = np.full(1, ratio * self._claim.threshold / np.sqrt(np.mean(row**2)))
        else:
            sizes = clipping.norms(row, groups, self._claim.norm_type)
            factor = ratio * groups.thresholds / np.where(sizes > 0, sizes, 1.0)
            if ratio > 1 and len(factor) > 1:
                factor[1::2] = factor[1::2] / (2 * ratio)
        return clipping.split(row * factor[groups.labels], values)

    def _case(self, name: str, kind: str, values: Sequence[np.ndarray]) -> Case:
        return Case(name, kind, self._dtype, tuple(values), self._claim)


def none(claim: Claim, base: Case) -> Case:
    """A case with a parameter that has no gradient."""
    values = (*base.gradients[:-1], None)
    return Case("a parameter without gradient", "none", base.dtype, values, claim)


def halves(claim: Claim, shapes: Sequence[tuple[int, ...]], dtype: str) -> Iterator[Case]:
    """Gradients whose squares overflow in half precision, or whose sum of squares stalls."""
    ones = [np.ones(shape) for shape in shapes]
    signs = [np.where(np.arange(x.size).reshape(x.shape) % 2, -1.0, 1.0) for x in ones]
    yield Case("elements of 300", "half", dtype, tuple(300.0 * s for s in signs), claim)
    spike = [0.5 * s for s in signs]
    spike[0] = np.array(spike[0])
    spike[0].reshape(-1)[0] = 6e4
    yield Case("one element of 6e4", "half", dtype, tuple(spike), claim)
    if dtype == "bfloat16":  # 256 + 1 is 256: a sum kept in bfloat16 stops there
        yield Case("many ones", "half", dtype, tuple(0.5 * s for s in signs), claim)
    if _is_normal(claim.threshold, dtype):
        small = [s * claim.threshold / 4 / math.sqrt(sum(x.size for x in ones)) for s in signs]
        yield Case("a quarter of the threshold", "half", dtype, tuple(small), claim)


def _is_normal(threshold: float, dtype: str) -> bool:
    return 1e3 * precision.smallest(dtype) < threshold < 1e3


def bad(base: Case) -> Iterator[Case]:
    """One element that is inf, one that is nan."""
    for name, value in (("inf", np.inf), ("nan", np.nan)):
        values = [None if g is None else np.array(g) for g in base.gradients]
        spot = max(range(len(values)), key=lambda i: 0 if values[i] is None else values[i].size)  # type: ignore[union-attr]  # just looked at
        values[spot].reshape(-1)[0] = value  # type: ignore[union-attr]  # chosen not to be None
        yield Case(f"one element {name}", "nonfinite", base.dtype, tuple(values), base.claim)
