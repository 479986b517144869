"""The programs of a traced loss: with adjoints, with one thing changed, with an answer of zero.

A small one is run by NumPy, any other is compiled in one piece; which one it is changes the last
digits at most.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pytest_gradcheck.backends import samples
from pytest_gradcheck.backends.jax_arrays import can_host, hosted
from pytest_gradcheck.backends.jax_eval import RAN, Evaluation
from pytest_gradcheck.backends.jax_hurry import QUICK_SIZE, quickly
from pytest_gradcheck.backends.jax_loss import Loss, Traced, value_of
from pytest_gradcheck.backends.jax_modules import flatten
from pytest_gradcheck.backends.jax_sites import Around, Site, ends
from pytest_gradcheck.backends.jax_tape import Tape, is_small
from pytest_gradcheck.backends.layers import Change, rms
from pytest_gradcheck.backends.protocol import Flat

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
        ran: By the prefix of what may not run, numbers of the turns that did; zero for none.
    """

    loss: Any
    plain: float
    seen: Values
    adjoints: Values
    gradients: list[Any]
    ran: Values = field(default_factory=dict)

    def without_idle(self, around: Mapping[str, Around]) -> Told:
        """Only what ran at least once."""
        seen = {
            k: v for k, v in self.seen.items() if k not in around or self.runs(around[k].branch)
        }
        adjoints = {k: v for k, v in self.adjoints.items() if k in seen}
        return replace(self, seen=seen, adjoints=adjoints)

    def runs(self, branch: str) -> bool:
        """Whether what has this prefix ran."""
        return branch not in self.ran or bool(np.any(self.ran[branch]))

    def turns(self, around: Around) -> Any:
        """Numbers of the turns of what lies in there; None where it runs every time."""
        numbers = self.ran.get(around.branch)
        return None if numbers is None else np.asarray(numbers)


class Programs:
    """A traced loss, run in any of its forms.

    Args:
        traced: The loss.
        sites: The values that are looked at.
        values: Parameters of the shapes that are to come.
    """

    def __init__(self, traced: Traced, sites: Mapping[str, Site], values: Sequence[Any]) -> None:
        self._traced, self._sites = traced, sites
        self._around = {k: s.around for k, s in sites.items()}
        self._ends = ends(sites)
        self._is_quick = sum(x.size for x in values) <= QUICK_SIZE
        self._is_near = is_near(traced.jaxpr, (*values, *traced.batch))
        self._made: dict[Any, Run] = {}

    def run(
        self,
        values: list[Any],
        change: Change | None = None,
        factor: float = 1.0,
        batch: Sequence[Any] | None = None,
    ) -> Told:
        """One pass forward and backward, where given with another batch."""
        batch = self._traced.batch if batch is None else batch
        return self._program(values, change)(values, batch, factor).without_idle(self._around)

    def answer(self, told: Told) -> Any:
        """What the last product with weights gave; None where there is none, or one in a loop."""
        found = [told.seen[s.key] for s in self._ends if s.key in told.seen]
        return found[-1] if found and not any(s.around.stacks for s in self._ends) else None

    def answers(self, values: list[Any]) -> tuple[Any, Any] | None:
        """What the last product with weights gives for the batch, and with a sample replaced.

        None where it has no axis of samples, as far as can be told.
        """
        batch = self._traced.batch
        answer = self.answer(self.run(values))
        if answer is None:
            return None
        answer = np.asarray(answer)
        rows = len(answer) if answer.ndim else 0
        other = samples.exchanged([np.asarray(x) for x in batch], rows)
        if other is None:
            return None
        moved = self.answer(self.run(values, batch=[jnp.asarray(x) for x in other]))
        is_alike = moved is not None and moved.shape == answer.shape
        return (answer, np.asarray(moved)) if is_alike else None

    def _program(self, values: list[Any], change: Change | None) -> Run:
        if change not in self._made:
            self._made[change] = self._tape(values, change) or self._compiled(values, change)
        return self._made[change]

    def _tape(self, values: list[Any], change: Change | None) -> Run | None:
        if not self._is_near:
            return None
        run = by_numpy(self._traced, self._sites, values, change)
        if run is None or change is not None or not self._ends:
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
        zeros = {k: jnp.zeros(s.shape, s.dtype) for k, s in shapes.items() if self._has_adjoint(k)}
        program = jax.jit(self._both(change), **(quickly() if self._is_quick else {}))

        def run(values: list[Any], batch: Sequence[Any], factor: float) -> Told:
            told, (gradients, adjoints) = program(values, zeros, list(batch), factor)
            loss, plain, seen, ran = told
            return Told(loss, float(plain), seen, adjoints, gradients, ran)

        return run

    def _has_adjoint(self, key: str) -> bool:
        return key in self._around and self._around[key].has_adjoint

    def _both(self, change: Change | None) -> Callable[..., Any]:
        wants_plain = change is None and bool(self._ends)

        def total(values: Any, zeros: Any, batch: Any, factor: Any) -> Any:
            loss, seen, ran = forward(self._traced, self._sites, (*values, *batch), zeros, change)
            plain = self._plain(values, batch) if wants_plain else math.nan
            return loss * jnp.asarray(factor, loss.dtype), (loss, plain, seen, ran)

        graded = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)

        def run(*given: Any) -> Any:
            (_, told), pulled = graded(*given)
            return told, pulled

        return run


def is_near(closed: Any, given: Sequence[Any]) -> bool:
    """Whether NumPy may stand in: the program is small, and what it is given lies on the CPU."""
    return all(map(can_host, given)) and is_small(closed)


def forward(
    traced: Traced,
    sites: Mapping[str, Site],
    given: Sequence[Any],
    zeros: Mapping[str, Any],
    change: Change | None = None,
) -> tuple[Any, Values, Values]:
    """The loss, the values at the sites that may have a gradient, and what ran."""
    run = Evaluation(sites, zeros, change)
    (loss,), seen = run.evaluate(traced.jaxpr.jaxpr, traced.jaxpr.consts, given)
    ran = {k.removeprefix(RAN): seen.pop(k) for k in list(seen) if k.startswith(RAN)}
    return loss, {k: v for k, v in seen.items() if jnp.issubdtype(v.dtype, jnp.floating)}, ran


def by_numpy(
    traced: Traced, sites: Mapping[str, Site], values: list[Any], change: Change | None = None
) -> Run | None:
    """A pass by NumPy; None where the change does what is left to the compiler."""
    closed, shape = jax.make_jaxpr(
        lambda given: forward(traced, sites, given, {}, change), return_shape=True
    )((*values, *traced.batch))
    if not is_small(closed):
        return None
    keys = sorted(shape[1])
    has_adjoint = {k for k in keys if k in sites and sites[k].around.has_adjoint}
    still = {n for n, k in enumerate(keys, 1) if k not in has_adjoint}
    tape = Tape(closed, len(values), still)

    def run(values: list[Any], batch: Sequence[Any], factor: float) -> Told:
        given = list(map(hosted, (*values, *batch)))
        (loss, *seen), adjoints, gradients = tape.run(given, factor)
        values_of = dict(zip(keys, seen, strict=True))
        known = (n for n in range(1, len(keys) + 1) if n not in still)
        pulled = {keys[n - 1]: adjoints[n - 1] for n in known}
        return Told(loss, math.nan, values_of, pulled, gradients)

    return run


def gradient_sizes(
    loss: Loss, flat: Flat, values: Sequence[Any], batch: Any, dtype: str
) -> list[float]:
    """Size of the gradient of each parameter with a batch in some precision; none if it raises."""
    opened = flatten(batch)
    every = [jnp.asarray(y.value, dtype) if y.dtype else y.value for y in opened.leaves]

    def total(values: Sequence[Any]) -> Any:
        return value_of(loss, flat, values, opened.rebuild(every))

    try:
        closed = jax.make_jaxpr(total)(list(values))
        if is_near(closed, values):
            found = Tape(closed, len(values)).run(list(map(hosted, values)), 1.0)[2]
        else:
            found = jax.grad(total)(list(values))
    except Exception:  # the user's code may insist on its own precision
        return []
    return [rms(np.asarray(g)) for g in found]
