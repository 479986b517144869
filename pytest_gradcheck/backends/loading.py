"""Which backend a training is of, and the loop that its backend makes of it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

from pytest_gradcheck.backends.state import StateGuard, global_generators
from pytest_gradcheck.backends.steps import Loop, Training
from pytest_gradcheck.errors import UsageError

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these


def framework(training: Training) -> str:
    """Name of the backend of a training."""
    if training.model is not None or _is_torch(training.optimizer):
        return "torch"
    return "jax" if _has_jax(training) else "numpy"


def generators_held() -> AbstractContextManager[Any]:
    """Hold the global generators: Python's, NumPy's, and those of torch if it is there."""
    if "torch" not in sys.modules:
        return StateGuard(global_generators())
    state = importlib.import_module("pytest_gradcheck.backends.torch_state")
    return StateGuard(state.generators_of(()))


def _top(value: Any) -> str:
    return str(type(value).__module__).partition(".")[0]


def _is_torch(value: Any) -> bool:
    first = next(iter(value), None) if isinstance(value, (list, tuple)) else value
    return any(c.__module__.partition(".")[0] == "torch" for c in type(first).__mro__)


def _has_jax(training: Training) -> bool:
    tops = {"jax", "jaxlib", "flax", "equinox", "optax"}
    pending = [training.params, training.opt_state, training.optimizer, training.step]
    for _ in range(1000):
        if not pending:
            return False
        value = pending.pop()
        if _top(value) in tops:
            return True
        if isinstance(value, Mapping):
            pending += list(value.values())
        elif isinstance(value, (list, tuple)):
            pending += list(value)
        elif hasattr(value, "__dict__") and not callable(value):
            pending += list(vars(value).values())
    return False


def load(name: str, training: Training, others: Sequence[Any] = ()) -> Loop:
    """The loop of a training, its backend imported now.

    Args:
        name: Name of the backend.
        training: The parts.
        others: torch: optimizers of the same step with losses of their own.

    Raises:
        UsageError: No such backend, its framework is not installed, or a part is missing.
    """
    if name not in ("torch", "jax", "numpy"):
        raise UsageError(f"backend={name!r} has no training steps; known: torch, jax, numpy")
    try:
        module = importlib.import_module(f"pytest_gradcheck.backends.{name}_steps")
    except ModuleNotFoundError as error:
        raise UsageError(_missing(name, training, str(error.name))) from error
    made: Loop = module.loop(training, others) if others else module.loop(training)
    return made


def _missing(name: str, training: Training, needed: str) -> str:
    """That a framework is missing, which may not be the one that is meant."""
    if _has_jax(replace(training, params=training.model)):
        return (
            "Training.model is for modules of torch; hand over what JAX trains as params=, with "
            "opt_state= and optimizer= (the transformation of optax)"
        )
    why = "Training.model is given" if name == "torch" else "arrays of it are given"
    return (
        f"backend={name!r} ({why}) needs {needed}, which is not installed: "
        f"pip install 'pytest-gradcheck[{name}]'"
    )
