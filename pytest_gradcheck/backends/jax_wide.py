"""JAX: a loss in float64 for a while, to see a slope that float32 is too coarse for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pytest_gradcheck.backends import jax_cuts, jax_draws, jax_modes
from pytest_gradcheck.backends.jax_arrays import enable_x64
from pytest_gradcheck.backends.jax_contracts import equations
from pytest_gradcheck.backends.jax_leaves import is_key
from pytest_gradcheck.backends.protocol import Flat
from pytest_gradcheck.backends.steps import Stopped
from pytest_gradcheck.errors import UsageError

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

Loss = Callable[[Any, Any], Any]


class Wide:
    """A loss of parameters and batches in float64, in 64-bit mode.

    Args:
        loss: The loss of parameters and of what is given beside them.
        given: What that is, of a batch.
        flat: The parameters, taken apart.
        drawn_from: Opens what a mark of the generators holds.
    """

    def __init__(
        self,
        loss: Loss,
        given: Callable[[Any], Any],
        flat: Flat,
        drawn_from: Callable[[Any], AbstractContextManager[None]],
    ) -> None:
        self._loss, self._given, self._flat, self._from = loss, given, flat, drawn_from
        self._program = jax.jit(loss)
        self._is_known = False  # whether nothing in it is rounded

    def value(self, batch: Any, at: Sequence[np.ndarray], mark: Any) -> float:
        """The loss at other parameters.

        Raises:
            UsageError: It is rounded inside, or cannot be had.
        """
        with self._handed(batch, at, mark) as (params, handed):
            try:
                return float(self._program(params, handed))
            except TypeError:  # a batch holds what is no argument of a program
                return float(self._loss(params, handed))

    def stopped(self, batch: Any, at: Sequence[np.ndarray], mark: Any) -> Stopped:
        """The loss with what its ``stop_gradient`` holds back held still.

        Raises:
            UsageError: It is rounded inside, or cannot be had.
        """
        with self._handed(batch, at, mark) as (params, handed):
            cuts = jax_cuts.traced(lambda params: self._loss(params, handed), params)

        def value(there: Sequence[np.ndarray]) -> float:
            with enable_x64(True):
                return cuts.again(self._placed(there))

        return Stopped(value, cuts.places, cuts.functions)

    @contextmanager
    def _handed(self, batch: Any, at: Sequence[np.ndarray], mark: Any) -> Iterator[tuple[Any, Any]]:
        """Parameters and batch in float64, in 64-bit mode, of a loss that rounds nothing inside."""
        with self._from(mark), enable_x64(True), jax_draws.narrow():
            params, handed = self._placed(at), jax.tree.map(_widened, self._given(batch))
            self._require_unrounded(params, handed)
            yield params, handed

    def _placed(self, at: Sequence[np.ndarray]) -> Any:
        values = iter(at)
        return self._flat.rebuild(
            [
                _put(next(values), leaf.value) if leaf.dtype else leaf.value
                for leaf in self._flat.leaves
            ]
        )

    def _require_unrounded(self, params: Any, batch: Any) -> None:
        if self._is_known:
            return
        try:
            closed = jax.make_jaxpr(lambda params: self._loss(params, batch))(params)
        except Exception as error:  # whatever the user's code does not take in float64
            raise UsageError(f"Training.loss cannot be traced in float64: {error}") from error
        if any(True for e in equations(closed.jaxpr) for _ in jax_modes.lowered_by(e)):
            raise UsageError("Training.loss rounds to a lower precision inside")
        self._is_known = True


def _put(x: np.ndarray, like: Any) -> Any:
    return jax.device_put(np.asarray(x, np.float64), getattr(like, "sharding", None))


def _widened(x: Any) -> Any:
    """A copy, in float64 where it is an array of real numbers."""
    if is_key(x) or not isinstance(x, (jax.Array, np.ndarray)):
        return x
    is_real = jnp.issubdtype(x.dtype, jnp.floating)
    if isinstance(x, np.ndarray):
        return x.astype(np.float64) if is_real else x.copy()
    return jax.device_put(np.array(x, np.float64 if is_real else None), x.sharding)
