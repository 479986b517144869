"""What is known of a value inside a traced JAX function, and which products have a parameter in."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pytest_gradcheck.backends.jax_contracts import equations
from pytest_gradcheck.backends.jax_sites import PRODUCTS

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

WEIGHTS = ("kernel", "weight", "w", "W", "embedding", "scale", "value", "kernel.value")


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a value.

    Args:
        maker: Key of the equation that made it, or ``parameter`` and its path; empty for an input.
        weight: Path of the parameter that it is, or is computed from; empty if from anything else.
        is_data: Whether the batch, or a product or lookup with weights, is in it.
        is_still: Whether no gradient comes through it to a parameter.
    """

    maker: str = ""
    weight: str = ""
    is_data: bool = False
    is_still: bool = True


def weight_of(eqn: Any, given: Sequence[Known]) -> tuple[str, int]:
    """The largest weight among the inputs, and its position."""
    sizes = [(math.prod(v.aval.shape), -n) for n, v in enumerate(eqn.invars) if given[n].weight]
    if not sizes:
        return "", 0
    position = -max(sizes)[1]
    return given[position].weight, position


def multiplies(eqn: Any, position: int) -> bool:
    """Whether an equation is a product with a weight, or a rule by hand that has one inside."""
    if eqn.primitive.name in PRODUCTS:
        return True
    is_call = eqn.primitive.name.startswith(("custom_vjp", "custom_jvp"))
    is_matrix = len(eqn.invars[position].aval.shape) > 1
    return is_call and is_matrix and any(e.primitive.name in PRODUCTS for e in _inside(eqn))


def _inside(eqn: Any) -> Iterator[Any]:
    inner = eqn.params.get("call_jaxpr", eqn.params.get("fun_jaxpr"))
    return equations(getattr(inner, "jaxpr", inner)) if inner is not None else iter(())


def layer_of(path: str) -> str:
    """Name of the layer that a parameter belongs to."""
    head, _, tail = path.rpartition(".")
    return head if head and tail in WEIGHTS else path
