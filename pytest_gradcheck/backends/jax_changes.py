"""Interventions on the values of a JAX function: activations replaced, sizes and inputs mended."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from pytest_gradcheck.backends.layers import BOUNDED, RECTIFIERS, Change

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

CHANGES = ("activation", "smooth", "leak", "bias", "init", "input", "layer", "normalise", "skip")
FUNCTIONS = {"relu": jax.nn.relu, "elu": jax.nn.elu, "leaky_relu": jax.nn.leaky_relu}


def replaced(op: str, change: Change | None) -> str:
    """The activation that stands in the place of one under an intervention, by name."""
    kind = change[0] if change else ""
    if kind == "activation" and op not in RECTIFIERS:
        return "relu"
    if kind == "smooth" and op in BOUNDED | RECTIFIERS | {"exp"}:
        return "elu"
    return "leaky_relu" if kind == "leak" and op in RECTIFIERS else op


def size(x: Any) -> Any:
    """Root mean square, through which no gradient goes; one for zeros."""
    size = jnp.sqrt(jnp.mean(jnp.square(jax.lax.stop_gradient(x))))
    return jnp.where(size > 0, size, 1).astype(x.dtype)


def standardised(x: Any) -> Any:
    """Features at mean 0 and standard deviation 1 over the first axis."""
    if jnp.ndim(x) < 2:
        return x
    spread = jnp.std(x, axis=0, keepdims=True)
    return (x - jnp.mean(x, axis=0, keepdims=True)) / jnp.where(spread > 0, spread, 1)


def normalised(x: Any) -> Any:
    """Units at mean 0 and standard deviation 1 over the last axis."""
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    return centred / jnp.sqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + 1e-5)
