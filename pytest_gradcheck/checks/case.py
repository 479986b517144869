"""The claimed gradient of an input, and what it may have been confused with, in NumPy."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_gradcheck.backends import Array
from pytest_gradcheck.checks.form import WrongDerivative
from pytest_gradcheck.checks.plan import Plan
from pytest_gradcheck.checks.projection import Cotangents, is_bilinear
from pytest_gradcheck.errors import UsageError

Numbers = NDArray[Any]  # float64 or complex128


@dataclass(frozen=True, eq=False)
class Case:
    """The claimed gradient of an input, and what it may have been confused with, in NumPy.

    Complex gradients are brought to the convention in which ``Re(sum(conj(g) * v))`` is the
    derivative along ``v``.
    """

    plan: Plan
    index: int

    @functools.cached_property
    def x(self) -> Numbers:
        """The input."""
        return self.value(self.index)

    @functools.cached_property
    def gradients(self) -> tuple[Numbers, ...]:
        """The claimed gradient for each set of cotangents."""
        return tuple(self.claimed(self.index, j) for j in range(len(self.plan.cotangents)))

    @functools.cached_property
    def at_zero(self) -> Numbers | None:
        """The claimed gradient for a cotangent of zeros; None if it is zero or not to be had."""
        whole = self.plan.at_zero
        own = None if whole is None else whole[self.index]
        plain = None if own is None else self.brought(own).reshape(self.shape(self.index))
        return plain if plain is not None and np.isfinite(plain).all() and plain.any() else None

    def value(self, i: int) -> Numbers:
        """Value of an input."""
        return self.plain(self.plan.probe.problem.point[i])

    def claimed(self, i: int, j: int) -> Numbers:
        """Gradient claimed for an input, zero where there is none."""
        gradient = self.plan.claim.gradients[j][i]
        if gradient is None:
            return np.zeros(self.shape(i))
        return self.brought(gradient).reshape(self.shape(i))

    def brought(self, gradient: Array) -> Numbers:
        """A gradient in the convention of this file."""
        plain = self.plain(gradient)
        bilinear = np.iscomplexobj(plain) and is_bilinear(self.plan.probe.problem.backend)
        return plain.conj() if bilinear else plain

    def weights(self, j: int) -> list[Numbers]:
        """A set of cotangents."""
        return [self.plain(w) for w in self.plan.cotangents[j] if w is not None]

    def shape(self, i: int) -> tuple[int, ...]:
        """Shape of an input."""
        return self.plan.probe.problem.inputs[i].shape

    def again(self, cotangents: Cotangents) -> Numbers | None:
        """The gradient for other cotangents, in this convention; None where there is none."""
        try:
            gradient = self.rerun(cotangents)[self.index]
        except (UsageError, WrongDerivative):
            return None
        return None if gradient is None else self.brought(gradient).reshape(self.x.shape)

    def rerun(self, cotangents: Cotangents) -> list[Array | None]:
        """The derivative under test for other cotangents, in the precision of the claim.

        Raises:
            UsageError, WrongDerivative: It does not take them.
        """
        plan, convert = self.plan, self.plan.probe.problem.backend.convert
        if plan.claim is not plan.asis:
            return plan.probe.gradient(cotangents)
        pairs = zip(cotangents, plan.native.outputs.leaves, strict=True)
        return plan.native.gradient(
            [None if w is None else convert(w, leaf.dtype) for w, leaf in pairs]
        )

    @property
    def others(self) -> list[int]:
        """The other inputs."""
        return [i for i in range(len(self.plan.probe.problem.inputs)) if i != self.index]

    @property
    def twins(self) -> list[int]:
        """The other inputs of the same shape."""
        return [i for i in self.others if self.shape(i) == self.shape(self.index)]

    def name(self, i: int) -> str:
        """Path of an input."""
        return self.plan.probe.problem.names[i]

    def plain(self, x: Array) -> Numbers:
        """Any array as NumPy numbers in double precision."""
        host = np.asarray(self.plan.probe.problem.backend.to_numpy(x))
        return host.astype(np.complex128 if np.iscomplexobj(host) else np.float64)
