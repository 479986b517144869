"""The programs of a traced loss: with adjoints, with one thing changed, with an answer of zero.

A small one is run by NumPy, any other is compiled in one piece; which one it is changes the last
digits at most.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from pytest_gradcheck.backends.jax_arrays import can_host, hosted
from pytest_gradcheck.backends.jax_eval import Run
from pytest_gradcheck.backends.jax_runs import QUICK_SIZE, _quickly
from pytest_gradcheck.backends.jax_sites import Site
from pytest_gradcheck.backends.jax_tape import Tape, is_small
from pytest_gradcheck.backends.layers import Change

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

ZERO: Change = ("zero", -1)  # the last product with weights gives zero
Values = dict[str, Any]  # by the key of a site


@dataclass(frozen=True, slots=True)
class Told:
    """What one run shows.

    Args:
        loss: Value of the loss.
        plain: Loss of a zero answer; NaN where it was not asked for.
        seen: Values of the sites.
        adjoints: Their adjoints.
        gradients: Of the parameters, in their order.
    """

    loss: Any
    plain: float
    seen: Values
    adjoints: Values
    gradients: list[Any]


class Programs:
    """A traced loss, run in any of its forms.

    Args:
        jaxpr: The loss as a closed jaxpr of its parameters.
        sites: The values that are looked at.
        values: Parameters of the shapes that are to come.
    """

    def __init__(self, jaxpr: Any, sites: Mapping[str, Site], values: Sequence[Any]) -> None:
        self._jaxpr, self._sites = jaxpr, sites
        self._has_products = any(s.kind == "linear" for s in sites.values())
        self._is_quick = sum(x.size for x in values) <= QUICK_SIZE
        self.is_near = is_near(jaxpr, values)
        self._made: dict[Any, Callable[..., Told]] = {}

    def run(self, values: list[Any], change: Change | None = None, factor: float = 1.0) -> Told:
        """One pass forward and backward."""
        if change not in self._made:
            self._made[change] = self._tape(values, change) or self._compiled(values, change)
        return self._made[change](values, factor)

    def _tape(self, values: list[Any], change: Change | None) -> Callable[..., Told] | None:
        if not self.is_near:
            return None
        run = by_numpy(self._jaxpr, self._sites, values, change)
        if run is None or change is not None or not self._has_products:
            return run
        plain = Tape(jax.make_jaxpr(self._plain)(values))
        return lambda values, factor: replace(
            run(values, factor), plain=plain.value(list(map(hosted, values)))
        )

    def _plain(self, values: Sequence[Any]) -> Any:
        held = [jax.lax.stop_gradient(x) for x in values]
        return forward(self._jaxpr, self._sites, held, {}, ZERO)[0]

    def _compiled(self, values: list[Any], change: Change | None) -> Callable[..., Told]:
        shapes = jax.eval_shape(
            lambda v: forward(self._jaxpr, self._sites, v, {}, change)[1], values
        )
        zeros = {k: jnp.zeros(s.shape, s.dtype) for k, s in shapes.items()}
        program = jax.jit(self._both(change), **(_quickly() if self._is_quick else {}))

        def run(values: list[Any], factor: float) -> Told:
            (loss, plain, seen), (gradients, adjoints) = program(values, zeros, factor)
            return Told(loss, float(plain), seen, adjoints, gradients)

        return run

    def _both(self, change: Change | None) -> Callable[..., Any]:
        wants_plain = change is None and self._has_products

        def total(values: Any, zeros: Any, factor: Any) -> Any:
            loss, seen = forward(self._jaxpr, self._sites, values, zeros, change)
            plain = self._plain(values) if wants_plain else math.nan
            return loss * jnp.asarray(factor, loss.dtype), (loss, plain, seen)

        graded = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)

        def run(values: Any, zeros: Any, factor: Any) -> Any:
            (_, told), pulled = graded(values, zeros, factor)
            return told, pulled

        return run


def is_near(jaxpr: Any, values: Sequence[Any]) -> bool:
    """Whether NumPy may stand in: the program is small, and the arrays lie on the CPU."""
    return all(map(can_host, values)) and is_small(jaxpr)


def forward(
    jaxpr: Any,
    sites: Mapping[str, Site],
    values: Sequence[Any],
    zeros: Mapping[str, Any],
    change: Change | None = None,
) -> tuple[Any, Values]:
    """The loss, and the values at the sites that have a gradient."""
    run = Run(sites, zeros, change)
    (loss,), seen = run.evaluate(jaxpr.jaxpr, jaxpr.consts, values)
    return loss, {k: v for k, v in seen.items() if jnp.issubdtype(v.dtype, jnp.floating)}


def by_numpy(
    jaxpr: Any, sites: Mapping[str, Site], values: list[Any], change: Change | None = None
) -> Callable[..., Told] | None:
    """A pass by NumPy; None where the change does what is left to the compiler."""
    closed, shape = jax.make_jaxpr(
        lambda v: forward(jaxpr, sites, v, {}, change), return_shape=True
    )(values)
    if not is_small(closed):
        return None
    tape, keys = Tape(closed), sorted(shape[1])

    def run(values: list[Any], factor: float = 1.0) -> Told:
        (loss, *seen), adjoints, gradients = tape.run(list(map(hosted, values)), factor)
        values_of = dict(zip(keys, seen, strict=True))
        return Told(loss, math.nan, values_of, dict(zip(keys, adjoints, strict=True)), gradients)

    return run
