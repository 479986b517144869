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
import numpy as np

from pytest_gradcheck.backends import samples
from pytest_gradcheck.backends.jax_arrays import can_host, hosted
from pytest_gradcheck.backends.jax_eval import Evaluation
from pytest_gradcheck.backends.jax_hurry import QUICK_SIZE, quickly
from pytest_gradcheck.backends.jax_loss import Traced
from pytest_gradcheck.backends.jax_sites import Site
from pytest_gradcheck.backends.jax_tape import Tape, is_small
from pytest_gradcheck.backends.layers import Change

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

ZERO: Change = ("zero", -1)  # the last product with weights gives zero
Values = dict[str, Any]  # by the key of a site
Run = Callable[[list[Any], Sequence[Any], float], "Told"]  # of parameters, batch, factor


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
        traced: The loss.
        sites: The values that are looked at.
        values: Parameters of the shapes that are to come.
    """

    def __init__(self, traced: Traced, sites: Mapping[str, Site], values: Sequence[Any]) -> None:
        self._traced, self._sites = traced, sites
        self._last = max(
            (s for s in sites.values() if s.kind == "linear"), key=lambda s: s.index, default=None
        )
        self._is_quick = sum(x.size for x in values) <= QUICK_SIZE
        self._is_near = is_near(traced, values)
        self._made: dict[Any, Run] = {}

    def run(self, values: list[Any], change: Change | None = None, factor: float = 1.0) -> Told:
        """One pass forward and backward."""
        return self._program(values, change)(values, self._traced.batch, factor)

    def answer(self, told: Told) -> Any:
        """What the last product with weights gave; None where there is none, or one in a loop."""
        if self._last is None or self._last.stacks:
            return None
        return told.seen.get(self._last.key)

    def answers(self, values: list[Any]) -> tuple[Any, Any] | None:
        """What the last product with weights gives for the batch, and with a sample replaced.

        None where it has no axis of samples, as far as can be told.
        """
        run, batch = self._program(values, None), self._traced.batch
        answer = self.answer(run(values, batch, 1.0))
        if answer is None or self._last is None:
            return None
        answer = np.asarray(answer)
        rows = len(answer) if answer.ndim else 0
        other = samples.exchanged([np.asarray(x) for x in batch], rows)
        if other is None:
            return None
        told = run(values, [jnp.asarray(x) for x in other], 1.0)
        return answer, np.asarray(told.seen[self._last.key])

    def _program(self, values: list[Any], change: Change | None) -> Run:
        if change not in self._made:
            self._made[change] = self._tape(values, change) or self._compiled(values, change)
        return self._made[change]

    def _tape(self, values: list[Any], change: Change | None) -> Run | None:
        if not self._is_near:
            return None
        run = by_numpy(self._traced, self._sites, values, change)
        if run is None or change is not None or self._last is None:
            return run
        plain = Tape(jax.make_jaxpr(self._plain)(values, self._traced.batch), len(values))
        return lambda values, batch, factor: replace(
            run(values, batch, factor), plain=plain.value(list(map(hosted, (*values, *batch))))
        )

    def _plain(self, values: Sequence[Any], batch: Sequence[Any]) -> Any:
        held = [jax.lax.stop_gradient(x) for x in values]
        return forward(self._traced, self._sites, (*held, *batch), {}, ZERO)[0]

    def _compiled(self, values: list[Any], change: Change | None) -> Run:
        every = (*values, *self._traced.batch)
        shapes = jax.eval_shape(
            lambda given: forward(self._traced, self._sites, given, {}, change)[1], every
        )
        zeros = {k: jnp.zeros(s.shape, s.dtype) for k, s in shapes.items()}
        program = jax.jit(self._both(change), **(quickly() if self._is_quick else {}))

        def run(values: list[Any], batch: Sequence[Any], factor: float) -> Told:
            told, (gradients, adjoints) = program(values, zeros, list(batch), factor)
            loss, plain, seen = told
            return Told(loss, float(plain), seen, adjoints, gradients)

        return run

    def _both(self, change: Change | None) -> Callable[..., Any]:
        wants_plain = change is None and self._last is not None

        def total(values: Any, zeros: Any, batch: Any, factor: Any) -> Any:
            loss, seen = forward(self._traced, self._sites, (*values, *batch), zeros, change)
            plain = self._plain(values, batch) if wants_plain else math.nan
            return loss * jnp.asarray(factor, loss.dtype), (loss, plain, seen)

        graded = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)

        def run(*given: Any) -> Any:
            (_, told), pulled = graded(*given)
            return told, pulled

        return run


def is_near(traced: Traced, values: Sequence[Any]) -> bool:
    """Whether NumPy may stand in: the program is small, and the arrays lie on the CPU."""
    return all(map(can_host, (*values, *traced.batch))) and is_small(traced.jaxpr)


def forward(
    traced: Traced,
    sites: Mapping[str, Site],
    given: Sequence[Any],
    zeros: Mapping[str, Any],
    change: Change | None = None,
) -> tuple[Any, Values]:
    """The loss, and the values at the sites that have a gradient."""
    run = Evaluation(sites, zeros, change)
    (loss,), seen = run.evaluate(traced.jaxpr.jaxpr, traced.jaxpr.consts, given)
    return loss, {k: v for k, v in seen.items() if jnp.issubdtype(v.dtype, jnp.floating)}


def by_numpy(
    traced: Traced, sites: Mapping[str, Site], values: list[Any], change: Change | None = None
) -> Run | None:
    """A pass by NumPy; None where the change does what is left to the compiler."""
    closed, shape = jax.make_jaxpr(
        lambda given: forward(traced, sites, given, {}, change), return_shape=True
    )((*values, *traced.batch))
    if not is_small(closed):
        return None
    tape, keys = Tape(closed, len(values)), sorted(shape[1])

    def run(values: list[Any], batch: Sequence[Any], factor: float) -> Told:
        given = list(map(hosted, (*values, *batch)))
        (loss, *seen), adjoints, gradients = tape.run(given, factor)
        values_of = dict(zip(keys, seen, strict=True))
        return Told(loss, math.nan, values_of, dict(zip(keys, adjoints, strict=True)), gradients)

    return run
