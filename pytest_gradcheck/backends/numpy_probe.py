"""Layers that somebody recorded, or gradients that are already there, as the checks see them.

NumPy has no graph to look into: the user's own code says what a layer put out and what gradient
came back, or hands over gradients alone, of any framework.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import numpy as np

from pytest_gradcheck.backends import drawn, layers, numpy_given, samples, targets, tree, widths
from pytest_gradcheck.backends.descent import descent
from pytest_gradcheck.backends.layers import Change, Origin, Pass
from pytest_gradcheck.backends.numpy import BACKEND
from pytest_gradcheck.backends.numpy_changes import added, gain, scaled, standardised
from pytest_gradcheck.backends.numpy_records import (
    agree,
    entries_of,
    is_record,
    of_record,
    parts,
    records,
    word,
)
from pytest_gradcheck.backends.protocol import Leaf
from pytest_gradcheck.backends.raised import loss_raised
from pytest_gradcheck.errors import UsageError

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

_STEP = "optimizer= must be a function of value and gradient that gives the step of a parameter"


class NumpyProbe:
    """Recorded layers, or gradients alone.

    Args:
        model: Parameters for ``loss``; without a loss the record itself, or a list of records.
        loss: Gives the record; None where the model is one.
        batch: What ``loss`` is given.
        make: ``make(seed)`` gives fresh parameters.
        optimizer: ``optimizer(value, gradient)`` gives the step of one parameter.
        device: Only ``cpu``.

    Raises:
        UsageError: The record has none of the forms, or shapes that do not agree.
    """

    backend = "numpy"
    device = "cpu"
    can_scale = False

    def __init__(
        self,
        model: Any,
        loss: Callable[[Any, Any], Any] | None,
        batch: Any,
        make: Callable[..., Any] | None = None,
        optimizer: Any = None,
        device: str = "",
    ) -> None:
        if device not in ("", "cpu"):
            raise UsageError(f"device={device!r} is not known to NumPy; allowed: cpu")
        self._model, self._loss, self._batch, self._make = model, loss, batch, make
        self._optimizer = optimizer
        self.count = 0
        self.label = getattr(loss, "__name__", "the record")
        self.changes: tuple[str, ...] = ("input", "init") if loss is not None else ()
        self._gain = 1.0
        self._records = [] if loss is not None else records(model)
        self.replicates = "make" if make is not None else "the list" if self._records[1:] else ""
        self.most = len(self._records) if loss is None else 0
        self.dtype = _dtype(model if loss is not None or make is None else None)

    def guard(self) -> AbstractContextManager[Any]:
        """Hold generators and the arrays that loss, make and model carry."""
        return BACKEND.guard(self._model, self._loss, self._make, self._batch, self._optimizer)

    def draw(self, seed: int) -> Any:
        """Fresh parameters; the next record of a list."""
        if self._loss is None:
            self.count += 1
            return self._records[(self.count - 1) % len(self._records)]
        if self._make is None:
            return self._model
        np.random.seed(seed % 2**32)
        takes = len(inspect.signature(self._make).parameters) > 0
        return drawn.made(self._make, seed) if takes else drawn.made(self._make)

    def own(self) -> None:
        """Nothing: what is given is drawn, or left for what is made."""

    def same(self, a: Any, b: Any) -> bool:
        """Whether two initialisations have the same numbers, and any besides zeros."""
        one, other = ([x for x in _flat(state).values() if x is not None] for state in (a, b))
        is_same = len(one) == len(other) and all(map(np.array_equal, one, other))
        return is_same and any(map(np.any, one))

    def measure(self, state: Any, change: Change | None = None, factor: float = 1.0) -> Pass:
        """What the record of one pass shows."""
        if self._loss is None:
            return self._recorded(state)
        self.count += 1
        batch = standardised(self._batch) if change == ("input", -1) else self._batch
        state = scaled(state, 1 / self._gain) if change == ("init", -1) else state
        try:
            told = self._loss(state, batch)
        except Exception as error:  # whatever the user's code raises, told with its own words
            raise loss_raised("loss(params, batch)", state, batch, error) from error
        value, record, gradients = parts(told)
        if self._optimizer is not None and gradients is None:
            raise UsageError(
                "optimizer= needs the gradients of the parameters: let loss(params, batch) return "
                "(value, layers, gradients of the parameters)"
            )
        seen = of_record(record)
        if change is None:
            self._gain = gain(seen.layers)
        if gradients is not None:
            values, pulled = _flat(state), _flat(gradients)
            agree(values, pulled)
            known = {n: v for n, v in values.items() if v is not None}
            parameters = layers.of_parameters(known, pulled)
            parameters = tuple(self._updated(p, known, pulled) for p in parameters)
            seen = replace(seen, parameters=parameters)
        outs = [x for _, x, _ in entries_of(record) if x is not None]
        products = [y.name for y in seen.layers if y.kind == "linear"]
        answers = [
            x for name, x, _ in entries_of(record) if name in products[-1:] and x is not None
        ]
        answer = (answers or outs)[-1:]
        arrays = [y.value for y in tree.flatten(self._batch, Leaf, lambda node: None).leaves]
        numbers = [x for x in arrays if isinstance(x, np.ndarray) and x.dtype.kind in "fiub"]
        constant = targets.constant(value, outs[-1] if outs else None, numbers)
        contrast = layers.contrast(answer[0]) if answer else math.nan
        return replace(seen, loss=value, constant=constant, contrast=contrast)

    def bare(self, state: Any, factor: float = 1.0) -> Pass:
        """The same, once more: what a record tells comes at one cost."""
        return self.measure(state, None, factor)

    def _recorded(self, record: Any) -> Pass:
        seen = of_record(record)
        if self._optimizer is None:
            return seen
        entries = list(entries_of(record))
        if not isinstance(record, Mapping) or any(x is None for _, x, _ in entries):
            raise UsageError("optimizer= needs values too: {name: (value, gradient), ...}")
        values, pulled = ({e[0]: e[n] for e in entries} for n in (1, 2))
        parameters = tuple(self._updated(p, values, pulled) for p in seen.parameters)
        return replace(seen, parameters=parameters)

    def _updated(
        self, p: layers.Parameter, values: Mapping[str, Any], pulled: Mapping[str, Any]
    ) -> layers.Parameter:
        if self._optimizer is None or pulled.get(p.name) is None:
            return p
        try:
            step = np.asarray(self._optimizer(values[p.name], pulled[p.name]))
        except Exception as error:  # whatever the user's code raises, told with its own words
            raise UsageError(
                f"{_STEP}; for {p.name!r} it raised {type(error).__name__}: {error}"
            ) from error
        if step.shape != p.shape or step.dtype.kind not in "fi":
            raise UsageError(f"{_STEP}; for {p.name!r} it gave {step.dtype} of shape {step.shape}")
        return replace(p, update=layers.rms(step) / p.value if p.value else math.nan)

    def repeated(self, state: Any) -> tuple[str, Mapping[str, float]]:
        """No other precision: a record is what it is."""
        return "", {}

    def again(self, state: Any, number: int) -> None:
        """Nothing: the loss has its random numbers from its own keys."""

    def rescaled(self, state: Any, factors: Mapping[str, float]) -> None:
        """Nothing: parameters go by other names than what a record shows of them."""

    def forgetful(self, state: Any, name: str) -> None:
        """Nothing: a record has one gradient for each layer."""

    def shuffled(self, state: Any, number: int) -> None:
        """Nothing: a record is of its own batch."""

    def widened(self, factor: int) -> NumpyProbe | None:
        """The same parameters drawn wider."""
        if self._loss is None:
            return None
        make = widths.asked(self._make, factor)
        if make is None and self._wider(self.draw(0), factor, 0) is not None:
            make = lambda seed: self._wider(self.draw(seed), factor, seed)  # noqa: E731  # short
        return None if make is None else NumpyProbe(None, self._loss, self._batch, make)

    def _wider(self, state: Any, factor: int, seed: int) -> Any:
        flat = tree.flatten(state, Leaf, lambda node: None)
        arrays = {y.path: y.value for y in flat.leaves if _is_floats(y.value)}
        fresh = widths.widened(arrays, factor, seed)
        if fresh is None:
            return None
        return flat.rebuild([fresh.get(leaf.path, leaf.value) for leaf in flat.leaves])

    def stepped(self, state: Any) -> Any:
        """The parameters after a small step, where the loss gives their gradients."""
        if self._loss is None:
            return state
        value, _, gradients = parts(self._loss(state, self._batch))
        if gradients is None or value is None:
            return state
        pulled = _flat(gradients)
        known = {path: g for path, g in pulled.items() if g is not None}
        steps = dict(zip(known, descent(list(known.values()), value), strict=True))
        flat = tree.flatten(state, Leaf, lambda node: None)
        moved = [added(y.value, steps.get(y.path)) for y in flat.leaves]
        return flat.rebuild(moved)

    def origin(self, state: Any) -> Origin | None:
        """The first recorded layer that is not finite; the last whose gradient is not.

        What the loss is given is asked before: a NaN in it makes all layers NaN.
        """
        blamed = None
        if self._loss is not None:
            is_lost = not math.isfinite(self._told(state, self._batch).loss or 0.0)
            reaches = "loss" if is_lost else "gradient"
            is_finite = lambda own, batch: self._told(own, batch).is_finite  # noqa: E731  # short
            blamed = numpy_given.blamed(state, self._batch, is_finite, reaches)
        if blamed is not None:
            return blamed
        record = state if self._loss is None else parts(self._loss(state, self._batch))[1]
        entries = list(entries_of(record))
        for name, x, _ in entries:
            if x is not None and not np.all(np.isfinite(x)):
                return Origin(where=name, op="", phase="forward", value=word(x))
        for name, _, g in reversed(entries):
            if g is not None and not np.all(np.isfinite(g)):
                return Origin(
                    where=name, op="", phase="backward", value=word(g), reaches="gradient"
                )
        return None

    def _told(self, state: Any, batch: Any) -> Pass:
        """Loss and layers with other parameters, or of another batch."""
        assert self._loss is not None
        value, record, _ = parts(self._loss(state, batch))
        return replace(of_record(record), loss=value)

    def strangers(self, state: Any) -> float:
        """Change of the last layer for other samples, over its size, when one is replaced."""
        if self._loss is None:
            return math.nan
        flat = tree.flatten(self._batch, Leaf, lambda node: None)
        spots = [n for n, leaf in enumerate(flat.leaves) if _is_floats(leaf.value)]
        answer = self._answer(state, self._batch)
        other = samples.exchanged([flat.leaves[n].value for n in spots], len(answer))
        if other is None:
            return math.nan
        values = [leaf.value for leaf in flat.leaves]
        for n, x in zip(spots, other, strict=True):
            values[n] = x
        return samples.moved(answer, self._answer(state, flat.rebuild(values)))

    def _answer(self, state: Any, batch: Any) -> np.ndarray:
        """Output of the last layer that is recorded; empty where none is."""
        assert self._loss is not None
        outs = [x for _, x, _ in entries_of(parts(self._loss(state, batch))[1]) if x is not None]
        return np.atleast_1d(outs[-1]) if outs else np.empty(0)


def _is_floats(x: Any) -> bool:
    return isinstance(x, np.ndarray) and x.dtype.kind == "f" and x.ndim > 0


def _flat(state: Any) -> dict[str, np.ndarray | None]:
    if isinstance(state, (list, tuple)) and is_record(state) and len(state):
        return {f"{name}.{n}": g for n, (name, _, g) in enumerate(entries_of(state))}
    flat = tree.flatten(state, Leaf, lambda node: None)
    return {
        y.path: None if y.value is None else np.asarray(y.value)
        for y in flat.leaves
        if y.value is None or isinstance(y.value, (np.ndarray, np.generic, float))
    }


def _dtype(model: Any) -> str:
    found = [x for x in _flat(model).values() if x is not None] if model is not None else []
    return str(found[0].dtype) if found and found[0].dtype.kind == "f" else "float64"
