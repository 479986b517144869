"""JAX: what a loss holds back by ``stop_gradient``, held still while parameters move.

As ``torch_cuts.py`` does it: held at the values that they had where the gradient was taken, the
parts that were held back are constants, and autodiff's gradient must be the slope again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from pytest_gradcheck.backends.jax_contracts import equations
from pytest_gradcheck.backends.jax_eval import bound
from pytest_gradcheck.backends.jax_leaves import is_trained
from pytest_gradcheck.backends.jax_sites import inlined, is_of_user, operation, place_of

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

STOP = "stop_gradient"


class Cuts:
    """A loss as a jaxpr of the leaves of its parameters that are trained.

    Args:
        closed: The jaxpr; None for a loss that cannot be traced.
        values: The leaves at which parts are held back.
    """

    def __init__(self, closed: Any, values: Sequence[Any]) -> None:
        self._closed, self._kept = closed, list[Any]()
        self._at: int | None = None
        self.places: tuple[str, ...] = ()
        self.functions: tuple[str, ...] = ()
        if closed is None:
            return
        inner = list(equations(closed.jaxpr))
        stops = [eqn for eqn in inner if eqn.primitive.name == STOP and is_of_user(eqn, STOP)]
        self.places = tuple(dict.fromkeys(f"{STOP}() at {place_of(eqn)}" for eqn in stops))
        custom = [eqn for eqn in inner if eqn.primitive.name.startswith("custom_vjp_call")]
        self.functions = tuple(dict.fromkeys(map(_name, custom)))
        self._run(closed.jaxpr, closed.consts, values)

    def again(self, params: Any) -> float:
        """The loss at other parameters; what was held back is what it was."""
        self._at = 0
        closed = self._closed
        return float(self._run(closed.jaxpr, closed.consts, _leaves(params))[0])

    def _run(self, jaxpr: Any, consts: Sequence[Any], given: Sequence[Any]) -> list[Any]:
        env = dict(zip(map(id, (*jaxpr.constvars, *jaxpr.invars)), (*consts, *given), strict=True))
        for eqn in jaxpr.eqns:
            values = [v.val if hasattr(v, "val") else env[id(v)] for v in eqn.invars]
            inner = inlined(eqn)
            if inner is not None:
                found = self._run(inner, (), values)
            elif eqn.primitive.name == STOP:
                found = [self._held(values[0])]
            else:
                found = bound(eqn, values)
            env |= dict(zip(map(id, eqn.outvars), found, strict=True))
        return [v.val if hasattr(v, "val") else env[id(v)] for v in jaxpr.outvars]

    def _held(self, value: Any) -> Any:
        if self._at is None:
            self._kept.append(value)
            return value
        self._at += 1
        return self._kept[self._at - 1]


def _name(eqn: Any) -> str:
    """Name of a function whose backward is written by the user."""
    inner = eqn.params.get("call_jaxpr", eqn.params.get("fun_jaxpr"))
    told = getattr(getattr(inner, "jaxpr", inner), "debug_info", None)
    return str(getattr(told, "func_name", "")) or operation(eqn)


def traced(loss: Callable[[Any], Any], params: Any) -> Cuts:
    """A loss with what it holds back at some parameters."""
    leaves, tree = jax.tree.flatten(params)
    spots = [i for i, x in enumerate(leaves) if is_trained(x)]

    def of_values(values: Sequence[Any]) -> Any:
        given = dict(zip(spots, values, strict=True))
        return loss(tree.unflatten([given.get(i, x) for i, x in enumerate(leaves)]))

    values = [jnp.asarray(leaves[i]) for i in spots]
    try:
        closed = jax.make_jaxpr(of_values)(values)
    except Exception:  # a loss that looks at its numbers holds back what nobody sees
        closed = None
    return Cuts(closed, values)


def _leaves(params: Any) -> list[Any]:
    return [jnp.asarray(x) for x in jax.tree.leaves(params) if is_trained(x)]
