"""Loops and choices of JAX that keep what is computed inside them.

A ``while`` may turn any number of times: the first turns are kept one by one, and of all others
the first with a value that is not finite, else the latest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

Values = dict[str, Any]
KEPT = 16  # turns of a while whose values are kept


def turned(
    turn: Callable[[list[Any]], tuple[list[Any], Values]],
    goes_on: Callable[[list[Any]], Any],
    start: Sequence[Any],
) -> tuple[list[Any], Values, Any]:
    """What is carried at the end, the values of the turns, and which turns these are.

    Args:
        turn: From what is carried to what is carried on, and the values on the way.
        goes_on: Whether there is another turn.
        start: What is carried into the first turn.

    Returns:
        What is carried out of the last; values with an axis of turns before their own; numbers of
        the turns from 1 on, zero where there was none.
    """
    shapes = jax.eval_shape(turn, list(start))[1]
    blank = {k: jnp.zeros((KEPT, *s.shape), s.dtype) for k, s in shapes.items()}

    def step(state: Any) -> Any:
        number, is_done, carried, kept, numbers = state
        carried, values = turn(carried)
        spot = jnp.minimum(number, KEPT - 1)

        def put(old: Any, new: Any) -> Any:
            return old.at[spot].set(jnp.where(is_done, old[spot], new))

        kept = {k: put(kept[k], v) for k, v in values.items()}
        numbers = put(numbers, number + 1)
        is_done = is_done | ((spot == KEPT - 1) & is_bad(values))
        return number + 1, is_done, carried, kept, numbers

    first = (jnp.int32(0), jnp.bool_(False), list(start), blank, jnp.zeros(KEPT, jnp.int32))
    end = jax.lax.while_loop(lambda state: goes_on(state[2]), step, first)
    return end[2], end[3], end[4]


def is_bad(values: Values) -> Any:
    """Whether any value is not finite."""
    floats = [v for v in values.values() if jnp.issubdtype(v.dtype, jnp.floating)]
    found = [~jnp.all(jnp.isfinite(v)) for v in floats]
    return jnp.any(jnp.stack(found)) if found else jnp.bool_(False)


def chosen(
    index: Any,
    runs: Sequence[Callable[[list[Any], Values], tuple[list[Any], Values]]],
    given: Sequence[Any],
    zeros: Values,
) -> tuple[list[Any], Values]:
    """Outputs and values of the branch that an index selects; zeros for values of the others."""
    shapes: dict[str, Any] = {}
    for run in runs:
        shapes |= jax.eval_shape(run, list(given), zeros)[1]

    def filled(run: Callable[..., Any]) -> Callable[..., Any]:
        def whole(given: list[Any], zeros: Values) -> Any:
            outs, values = run(given, zeros)
            blank = {k: jnp.zeros(s.shape, s.dtype) for k, s in shapes.items() if k not in values}
            return outs, values | blank

        return whole

    outs, values = jax.lax.switch(
        jnp.asarray(index, jnp.int32), [filled(run) for run in runs], list(given), zeros
    )
    return outs, values
