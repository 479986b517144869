"""A JAX function of parameters, its batch, and what one pass through it shows."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pytest_gradcheck.backends import (
    drawn,
    jax_given,
    jax_loss,
    jax_origin,
    jax_records,
    layers,
    samples,
    targets,
    widths,
)
from pytest_gradcheck.backends.descent import descent
from pytest_gradcheck.backends.jax import BACKEND
from pytest_gradcheck.backends.jax_arrays import enable_x64, moved
from pytest_gradcheck.backends.jax_changes import CHANGES
from pytest_gradcheck.backends.jax_eval import SOURCE
from pytest_gradcheck.backends.jax_modules import flatten, widened
from pytest_gradcheck.backends.jax_programs import Programs, Told, gradient_sizes
from pytest_gradcheck.backends.jax_sites import ordered
from pytest_gradcheck.backends.jax_updates import Updates
from pytest_gradcheck.backends.jax_walk import walked
from pytest_gradcheck.backends.layers import Change, Origin, Pass
from pytest_gradcheck.backends.protocol import Flat
from pytest_gradcheck.errors import UsageError

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these


class JaxProbe:
    """A pytree of parameters, or an Equinox or Flax module, as the checks of flow see it.

    Args:
        model: The parameters; None where ``make`` gives them.
        loss: ``loss(model, batch)``, a scalar.
        batch: What ``loss`` is given.
        make: ``make(seed)`` gives fresh parameters.
        optimizer: An optax transformation.
        device: Device to move batch and parameters to.

    Raises:
        UsageError: The model has no parameters, or the loss cannot be traced or is no scalar.
    """

    backend = "jax"
    changes: tuple[str, ...] = CHANGES
    can_scale = True
    most = 0

    def __init__(
        self,
        model: Any,
        loss: Callable[[Any, Any], Any],
        batch: Any,
        make: Callable[..., Any] | None = None,
        optimizer: Any = None,
        device: str = "",
    ) -> None:
        self._loss, self._make, self._optimizer = loss, make, optimizer
        self._user_mode = bool(jax.config.jax_enable_x64)
        self._device = device
        self._given, self._batch = model, moved(batch, device)
        self.count = 0
        self.replicates = "make" if make is not None else ""
        self._shapes: dict[str, tuple[int, ...]] = {}
        model = self.draw(0) if make is not None else model
        self._flat = self._opened(model)
        self._shapes = _shapes(self._flat)
        spots = [leaf for leaf in self._flat.leaves if leaf.dtype]
        if not spots:
            raise UsageError("the model has no parameters: nothing can be trained")
        self.dtype, self.device = spots[0].dtype, spots[0].device
        self.label = type(model).__name__ if callable(model) else getattr(loss, "__name__", "loss")
        self._updates = None if optimizer is None else Updates(optimizer, self._flat)
        with self.guard(), enable_x64(self._user_mode):
            self._traced = jax_loss.traced(self._loss, self._flat, self._batch)
        self._names = self._traced.names
        self._walk, _ = walked(self._traced)
        self._sites = ordered(self._walk.sites)
        self._programs = Programs(self._traced, self._sites, [leaf.value for leaf in spots])

    def _opened(self, model: Any) -> Flat:
        return flatten(model)

    def guard(self) -> AbstractContextManager[Any]:
        """Hold generators and modules that loss, make and model carry."""
        return BACKEND.guard(self._given, self._loss, self._make, self._batch, self._optimizer)

    def draw(self, seed: int) -> Any:
        """What ``make`` gives; the model itself without one."""
        if self._make is None:
            return self._given
        with enable_x64(self._user_mode):
            np.random.seed(seed % 2**32)
            takes = len(inspect.signature(self._make).parameters) > 0
            made = drawn.made(self._make, seed) if takes else drawn.made(self._make)
        self._require_alike(made)
        return moved(made, self._device)

    def _require_alike(self, made: Any) -> None:
        """Refuse parameters that the traced loss does not fit.

        Raises:
            UsageError: Names or shapes are others than those of the first seed.
        """
        if not self._shapes:
            return  # the first
        one, other = self._shapes, _shapes(self._opened(made))
        for path in other | one:
            here, there = (shapes.get(path, "missing") for shapes in (other, one))
            if here != there:
                raise UsageError(
                    f"make must give parameters of the same names and shapes for every seed: "
                    f"{path or 'params'} is {here} for one, and {there} for another"
                )

    def own(self) -> Any:
        """The given parameters where others like them are made."""
        if self._make is None or _shapes(self._opened(self._given)) != self._shapes:
            return None
        return moved(self._given, self._device)

    def same(self, a: Any, b: Any) -> bool:
        """Whether two initialisations have the same parameters."""
        pairs = zip(self._values(a), self._values(b), strict=True)
        return all(np.array_equal(np.asarray(x), np.asarray(y)) for x, y in pairs)

    def _values(self, state: Any) -> list[Any]:
        if isinstance(state, _Stepped):
            return state.values
        return [jnp.asarray(y.value) for y in self._opened(state).leaves if y.dtype]

    def measure(self, state: Any, change: Change | None = None, factor: float = 1.0) -> Pass:
        """One pass; beside a plain one, what a zero answer costs."""
        self.count += 1
        with enable_x64(self._user_mode):
            values = self._values(state)
            told = self._told(values, change, factor)
        is_plain = change is None and factor == 1.0
        made = replace(
            self._bare(values, told),
            layers=tuple(jax_records.records(self._sites, self._walk, told, change)),
            plain_loss=told.plain if is_plain else math.nan,
            constant=self._constant(told) if is_plain else None,
            source=layers.rms(np.asarray(told.seen[SOURCE])) if SOURCE in told.seen else math.nan,
            contrast=self._contrast(told),
            is_half=any(str(x.dtype) == "float16" for x in told.adjoints.values()),
            turns=tuple(jax_records.turns(self._sites, told)),
            fades=tuple(jax_records.fades(self._sites, told, change)),
        )
        if self._updates is not None and is_plain:
            return self._updated(made, values, told.gradients)
        return made

    def bare(self, state: Any, factor: float = 1.0) -> Pass:
        """Loss and parameters of one pass, with the loss times a factor, and no layers."""
        self.count += 1
        with enable_x64(self._user_mode):
            values = self._values(state)
            return self._bare(values, self._told(values, None, factor))

    def _bare(self, values: Sequence[Any], told: Told) -> Pass:
        return Pass(loss=float(told.loss), layers=(), parameters=self._parameters(values, told))

    def _told(self, values: list[Any], change: Change | None = None, factor: float = 1.0) -> Told:
        with jax_loss.differentiable(self._loss, self._flat, values, self._batch):
            return self._programs.run(values, change, factor)

    def _contrast(self, told: Told) -> float:
        answer = self._programs.answer(told)
        return math.nan if answer is None else layers.contrast(np.asarray(answer))

    def _constant(self, told: Told) -> targets.Constant | None:
        answer = self._programs.answer(told)
        if answer is None or answer.size > targets.MOST:
            return None
        leaves = (y.value for y in flatten(self._batch).leaves)
        known = [np.asarray(x) for x in leaves if isinstance(x, (jax.Array, np.ndarray))]
        return targets.constant(float(told.loss), np.asarray(answer), known)

    def _parameters(self, values: Sequence[Any], told: Told) -> tuple[layers.Parameter, ...]:
        drawn = {n: np.asarray(v) for n, v in zip(self._names, values, strict=True)}
        pulled = {n: np.asarray(g) for n, g in zip(self._names, told.gradients, strict=True)}
        return tuple(map(self._detached, layers.of_parameters(drawn, pulled)))

    def _detached(self, p: layers.Parameter) -> layers.Parameter:
        """JAX gives zeros where a parameter is not used; what no equation uses has no gradient."""
        position = self._names.index(p.name)
        var = self._traced.jaxpr.jaxpr.invars[position]
        used = any(v is var for eqn in self._traced.jaxpr.jaxpr.eqns for v in eqn.invars)
        return p if used else replace(p, gradient=math.nan)

    def _updated(self, seen: Pass, values: list[Any], gradients: list[Any]) -> Pass:
        assert self._updates is not None
        with enable_x64(self._user_mode):
            ratios = self._updates.ratios(values, gradients)
        pairs = zip(seen.parameters, ratios, strict=True)
        return replace(seen, parameters=tuple(replace(p, update=u) for p, u in pairs))

    def repeated(self, state: Any) -> tuple[str, Mapping[str, float]]:
        """Float64, or float32 for a model in float64, and sizes of the gradients in it."""
        other = "float32" if self.dtype == "float64" else "float64"
        with enable_x64(True):
            values = [v.astype(other) for v in self._values(state)]
            found = gradient_sizes(self._loss, self._flat, values, self._batch, other)
            return other, dict(zip(self._names, found, strict=False))

    def again(self, state: Any, number: int) -> None:
        """Nothing: the loss has its random numbers from its own keys."""

    def rescaled(self, state: Any, factors: Mapping[str, float]) -> Pass | None:
        """A pass with parameters times factors, by name."""
        with enable_x64(self._user_mode):
            pairs = zip(self._names, self._values(state), strict=True)
            values = [(v * factors.get(n, 1.0)).astype(v.dtype) for n, v in pairs]
        return self.measure(_Stepped(values))

    def forgetful(self, state: Any, name: str) -> Pass | None:
        """A pass in which what a scan carries, or a product is given, has no gradient."""
        spots = [n for n, site in enumerate(self._sites.values()) if site.name == name]
        return self.measure(state, ("forget", spots[0])) if spots else None

    def shuffled(self, state: Any, number: int) -> Pass | None:
        """A pass with other samples; None where the batch has none of real numbers."""
        other = samples.shuffled([np.asarray(x) for x in self._traced.batch], number)
        if other is None:
            return None
        self.count += 1
        size = self._traced.batch[0].dtype.type(samples.larger(number))
        with enable_x64(self._user_mode):
            values = self._values(state)
            told = self._programs.run(values, batch=[jnp.asarray(x * size) for x in other])
        rows = tuple(jax_records.records(self._sites, self._walk, told, None))
        return replace(self._bare(values, told), layers=rows)

    def widened(self, factor: int) -> JaxProbe | None:
        """The same parameters drawn wider."""
        make = widths.asked(self._make, factor)
        if make is None and widened(self.draw(0), factor, 0) is not None:
            make = lambda seed: widened(self.draw(seed), factor, seed)  # noqa: E731  # short
        if make is None:
            return None
        return JaxProbe(None, self._loss, self._batch, make, device=self._device)

    def stepped(self, state: Any) -> Any:
        """The parameters after a step that takes away a tenth of the loss, to first order."""
        with enable_x64(self._user_mode):
            values = self._values(state)
            told = self._told(values)
            steps = descent([np.asarray(g) for g in told.gradients], float(told.loss))
            pairs = zip(values, steps, strict=True)
            return _Stepped([v + jnp.asarray(step, v.dtype) for v, step in pairs])

    def origin(self, state: Any) -> Origin | None:
        """The first birth of a value that is not finite."""
        with enable_x64(self._user_mode):
            values = self._values(state)
            model = self._given if isinstance(state, _Stepped) else state
            found = jax_given.blamed(self._loss, model, values, self._batch, self._names)
            return found or jax_origin.origin(self._traced, self._walk, values)

    def strangers(self, state: Any) -> float:
        """Change of the answers for other samples, over their size, when one sample is replaced.

        The answer is what the last product with weights gives.
        """
        with enable_x64(self._user_mode):
            answers = self._programs.answers(self._values(state))
        return math.nan if answers is None else samples.moved(*answers)


def _shapes(flat: Flat) -> dict[str, tuple[int, ...]]:
    return {leaf.path: leaf.shape for leaf in flat.leaves if leaf.dtype}


class _Stepped:
    """Parameters that were moved."""

    def __init__(self, values: list[Any]) -> None:
        self.values = values
