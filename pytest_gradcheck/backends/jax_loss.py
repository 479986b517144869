"""The user's loss as a jaxpr of the parameters and, where it can be traced, of the batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from pytest_gradcheck.backends.jax_modules import flatten
from pytest_gradcheck.backends.protocol import Flat
from pytest_gradcheck.backends.raised import loss_raised
from pytest_gradcheck.errors import UsageError

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

Loss = Callable[[Any, Any], Any]


@dataclass(frozen=True, slots=True)
class Traced:
    """A traced loss.

    Args:
        jaxpr: Closed; its inputs are the parameters, then the arrays of the batch.
        names: Paths of the parameters.
        batch: Arrays of floats in the batch; none where the loss looks at their values.
    """

    jaxpr: Any
    names: tuple[str, ...]
    batch: tuple[Any, ...]

    @property
    def inputs(self) -> list[str]:
        """Path of each input that is a parameter, and nothing for those of the batch."""
        return [*self.names, *[""] * len(self.batch)]


def traced(loss: Loss, flat: Flat, batch: Any) -> Traced:
    """The loss with its batch as an input, else with the batch inside.

    Raises:
        UsageError: The loss raises, or gives no real number.
    """
    values = [leaf.value for leaf in flat.leaves if leaf.dtype]
    names = tuple(leaf.path or "params" for leaf in flat.leaves if leaf.dtype)
    opened = flatten(batch)
    spots = [n for n, leaf in enumerate(opened.leaves) if leaf.dtype and leaf.shape]
    arrays = tuple(jnp.asarray(opened.leaves[n].value) for n in spots)

    def of_both(values: Sequence[Any], arrays: Sequence[Any]) -> Any:
        every = [leaf.value for leaf in opened.leaves]
        for n, x in zip(spots, arrays, strict=True):
            every[n] = x
        return value_of(loss, flat, values, opened.rebuild(every))

    try:
        return Traced(jax.make_jaxpr(of_both)(values, arrays), names, arrays)
    except Exception:  # it may look at the values of its batch, which a traced one has not
        return Traced(_alone(loss, flat, values, batch), names, ())


def _alone(loss: Loss, flat: Flat, values: Sequence[Any], batch: Any) -> Any:
    try:
        return jax.make_jaxpr(lambda v: value_of(loss, flat, v, batch))(values)
    except UsageError:
        raise
    except Exception as error:  # whatever the user's code raises, told with its own words
        first = flat.rebuild(list(values))
        raise loss_raised("loss(model, batch)", first, batch, error) from error


@contextmanager
def differentiable(loss: Loss, flat: Flat, values: Sequence[Any], batch: Any) -> Iterator[None]:
    """Tell in words of an error that JAX's own gradient of the loss raises too.

    Raises:
        UsageError: It does, as for a ``while`` or a callback that has no derivative backward.
    """
    try:
        yield
    except Exception as error:
        try:
            jax.grad(lambda v: value_of(loss, flat, v, batch))(list(values))
        except Exception as own:  # whatever the user's code raises, told with its own words
            told = " ".join(str(own).split())
            raise UsageError(
                f"jax.grad of loss(model, batch) raises {type(own).__name__}: {told}"
            ) from error
        raise


def value_of(loss: Loss, flat: Flat, values: Sequence[Any], batch: Any) -> Any:
    """The loss of parameters put in the place of a model's own.

    Raises:
        UsageError: It is no real number.
    """
    filled = iter(values)
    every = [next(filled) if leaf.dtype else leaf.value for leaf in flat.leaves]
    out = loss(flat.rebuild(every), batch)
    if not hasattr(out, "dtype") or jnp.size(out) != 1 or jnp.iscomplexobj(out):
        shape = jnp.shape(out) if hasattr(out, "dtype") else type(out).__name__
        raise UsageError(
            f"loss(model, batch) must give a real number, it gave {shape}; try jnp.mean or jnp.sum"
        )
    return jnp.reshape(out, ())
