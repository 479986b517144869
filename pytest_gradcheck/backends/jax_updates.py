"""The first step of an optax transformation over the size of what it moves."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from pytest_gradcheck.backends.jax_arrays import hosted
from pytest_gradcheck.backends.jax_clips import is_transformation
from pytest_gradcheck.backends.jax_modules import flatten
from pytest_gradcheck.backends.jax_tape import Program, is_small
from pytest_gradcheck.backends.layers import rms
from pytest_gradcheck.backends.protocol import Flat
from pytest_gradcheck.errors import UsageError

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these


class Updates:
    """A transformation, asked for its first update.

    Args:
        transformation: Of optax.
        flat: The parameters taken apart.

    Raises:
        UsageError: It is none.
    """

    def __init__(self, transformation: Any, flat: Flat) -> None:
        if not is_transformation(transformation):
            kind = type(transformation).__name__
            raise UsageError(f"optimizer= must be an optax transformation for JAX, not a {kind}")
        self._transformation, self._flat = transformation, flat
        self._step: Callable[..., list[Any]] | None = None

    def ratios(self, values: Sequence[Any], gradients: Sequence[Any]) -> list[float]:
        """Norm of the first update over that of the parameter, one for each."""
        if self._step is None:
            self._step = self._made(values, gradients)
        given = [hosted(x) for x in (*values, *gradients)]
        with np.errstate(all="ignore"):
            steps = self._step(*given)
        return [_ratio(u, v) for u, v in zip(steps, values, strict=True)]

    def _made(self, values: Sequence[Any], gradients: Sequence[Any]) -> Callable[..., list[Any]]:
        count = len(values)

        def step(*given: Any) -> list[Any]:
            params, pulled = self._shaped(given[:count]), self._shaped(given[count:])
            state = self._transformation.init(params)
            made = _by_path(self._transformation.update(pulled, state, params)[0])
            return [made[path] for path in _by_path(params)]  # a pytree forgets the order of keys

        try:
            closed = jax.make_jaxpr(step)(*values, *gradients)
        except Exception as error:  # whatever the transformation raises, told with its own words
            raise UsageError(
                f"optimizer= must be an optax transformation of the parameters whose update needs "
                f"nothing besides; it raised {type(error).__name__}: {error}"
            ) from error
        return Program(closed.jaxpr, closed.consts) if is_small(closed) else jax.jit(step)

    def _shaped(self, values: Sequence[Any]) -> Any:
        """The values as the user nests them, for masks and labels; a list where that is a module.

        What is no parameter is None, as ``equinox.filter`` has it.
        """
        filled = iter(values)
        tree = self._flat.rebuild([next(filled) if y.dtype else None for y in self._flat.leaves])
        return tree if len(jax.tree.leaves(tree)) == len(values) else list(values)


def _by_path(tree: Any) -> dict[str, Any]:
    return {leaf.path: leaf.value for leaf in flatten(tree).leaves if leaf.dtype}


def _ratio(update: Any, value: Any) -> float:
    size = rms(np.asarray(value))
    return rms(np.asarray(update)) / size if size else math.nan
