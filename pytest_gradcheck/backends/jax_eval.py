"""A traced JAX function run again with a zero added to every value that is looked at.

The gradient with respect to such a zero is the adjoint of the value. In a ``scan`` the zeros are
scanned over, so that each iteration has its own. Calls by ``jit`` and ``remat`` are opened, which
changes no value, and so is the branch that a ``cond`` selects. Rules of ``custom_jvp`` and
``custom_vjp`` are run as they are, and so is a ``while``, which has no derivative backward: what
they compute on the way is computed beside it, without a derivative.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from pytest_gradcheck.backends.jax_changes import (
    FUNCTIONS,
    normalised,
    replaced,
    size,
    standardised,
)
from pytest_gradcheck.backends.jax_contracts import scan_counts
from pytest_gradcheck.backends.jax_sites import Site, branches, ends, inlined, is_loop, ruled, turn
from pytest_gradcheck.backends.jax_turns import chosen, turned
from pytest_gradcheck.backends.layers import FLAT, Change

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

Values = dict[str, Any]  # by the key of a site
SOURCE = "source"  # key of what the first product with weights is given
RAN = "ran/"  # before a prefix: numbers of the turns that ran of what lies in it, zero for none
OFF = "off/"  # before the key of a smooth rectifier: share of its units that are off
ONE_SIDED = frozenset({"silu", "elu", "celu", "selu", "mish", "softplus", "hard_silu"})


class Evaluation:
    """One run of a jaxpr.

    Args:
        sites: The values that are looked at.
        zeros: What is added to them, by key; nothing is where a key is missing.
        change: An intervention.
    """

    def __init__(
        self, sites: Mapping[str, Site], zeros: Mapping[str, Any], change: Change | None = None
    ) -> None:
        self._sites, self._zeros = sites, zeros
        self._kind, self._at = change or ("", -1)
        self._forgotten = [*sites.values()][self._at].name if self._kind == "forget" else ""
        self._ends = {s.index for s in ends(sites)}
        self._owners = {s.owner: s for s in sites.values() if s.owner}
        self._previous: Any = None
        self._is_loss = False

    def evaluate(
        self,
        jaxpr: Any,
        consts: Sequence[Any],
        args: Sequence[Any],
        zeros: Mapping[str, Any] | None = None,
        prefix: str = "",
    ) -> tuple[list[Any], Values]:
        """Outputs of a jaxpr, and the values at its sites."""
        zeros = self._zeros if zeros is None else zeros
        env: dict[int, Any] = {}
        seen: Values = {}

        def read(var: Any) -> Any:
            return var.val if hasattr(var, "val") else env[id(var)]

        for var, value in zip(jaxpr.constvars, consts, strict=True):
            env[id(var)] = value
        for var, value in zip(jaxpr.invars, args, strict=True):
            env[id(var)] = value
        for number, eqn in enumerate(jaxpr.eqns):
            key = f"{prefix}{number}"
            given = [read(var) for var in eqn.invars]
            outs = self._equation(eqn, key, given, zeros, seen)
            for var, out in zip(eqn.outvars, outs, strict=True):
                env[id(var)] = out
        return [read(var) for var in jaxpr.outvars], seen

    def _equation(
        self, eqn: Any, key: str, given: list[Any], zeros: Mapping[str, Any], seen: Values
    ) -> list[Any]:
        inner = inlined(eqn)
        if inner is not None:
            outs, more = self.evaluate(inner, (), given, zeros, f"{key}/")
            seen.update(more)
            return outs
        if eqn.primitive.name == "scan":
            return self._scan(eqn, key, given, zeros, seen)
        if (choices := branches(eqn)) is not None:
            return self._cond(choices, key, given, zeros, seen)
        if is_loop(eqn):
            return self._while(eqn, key, given, zeros, seen)
        self._rule(eqn, key, given, seen)
        site = self._sites.get(key)
        owned = self._owners.get(key)
        product = owned or (site if site is not None and not site.owner else None)
        if product is not None and product.kind == "linear" and product.index == 0:
            seen[SOURCE] = given[product.operand]
        if self._kind and (site is not None or owned is not None):
            outs = self._changed(eqn, site or owned, given, is_product=site is None)
        else:
            outs = bound(eqn, given)
        if site is None:
            return outs
        if key in zeros:
            outs = [outs[0] + zeros[key], *outs[1:]]
        if site.kind == "activation" and site.index >= 0:
            self._previous = outs[0]  # with its zero, through which the next skip has a gradient
        seen[key] = outs[0]
        if site.op in ONE_SIDED and site.index >= 0 and not self._kind:
            seen[OFF + key] = _off(eqn, given)
        return outs

    def _scan(
        self, eqn: Any, key: str, given: list[Any], zeros: Mapping[str, Any], seen: Values
    ) -> list[Any]:
        params = eqn.params
        fixed, carried = scan_counts(params)
        inner = params["jaxpr"]
        own = {k: z for k, z in zeros.items() if k.startswith(f"{key}/")}
        inside = (s.name for k, s in self._sites.items() if k.startswith(f"{key}/"))
        forgets = bool(self._forgotten) and self._forgotten in inside

        def body(carry: Any, slices: Any) -> Any:
            xs, mine = slices
            self._previous = None
            carry = [jax.lax.stop_gradient(x) for x in carry] if forgets else carry
            args = [*given[:fixed], *carry, *xs]
            outs, more = self.evaluate(inner.jaxpr, inner.consts, args, mine, f"{key}/")
            return outs[:carried], (outs[carried:], more)

        start, xs = given[fixed : fixed + carried], given[fixed + carried :]
        carry, (ys, more) = jax.lax.scan(
            body, start, (xs, own), length=params["length"], reverse=params["reverse"]
        )
        self._previous = None
        seen.update(more)
        return [*carry, *ys]

    def _cond(
        self,
        choices: Sequence[Any],
        key: str,
        given: list[Any],
        zeros: Mapping[str, Any],
        seen: Values,
    ) -> list[Any]:
        def branch(n: int) -> Any:
            def run(args: list[Any], mine: Values) -> tuple[list[Any], Values]:
                self._previous = None
                closed, prefix = choices[n], f"{key}/{n}/"
                outs, more = self.evaluate(closed.jaxpr, closed.consts, args, mine, prefix)
                return outs, _floats(more) | {RAN + prefix: jnp.int32(1)}

            return run

        own = {k: z for k, z in zeros.items() if k.startswith(f"{key}/")}
        outs, more = chosen(given[0], [branch(n) for n in range(len(choices))], given[1:], own)
        self._previous = None
        seen.update(more)
        return self._merged(outs, f"{key}/{len(choices)}", zeros, seen)

    def _while(
        self, eqn: Any, key: str, given: list[Any], zeros: Mapping[str, Any], seen: Values
    ) -> list[Any]:
        outs = bound(eqn, given)
        if self._looks_into(key):
            held = [jax.lax.stop_gradient(x) for x in given]
            closed, fixed, start = turn(eqn, held)
            until, prefix = eqn.params["cond_jaxpr"], f"{key}/1/"
            tested = held[: len(until.jaxpr.invars) - len(start)]

            def run(carried: list[Any]) -> tuple[list[Any], Values]:
                args = [*fixed, *carried]
                outs, more = self.evaluate(closed.jaxpr, closed.consts, args, {}, prefix)
                return outs, _floats(more)

            def goes_on(carried: list[Any]) -> Any:
                args = [*tested, *carried]
                return self.evaluate(until.jaxpr, until.consts, args, {}, f"{key}/0/")[0][0]

            _, more, numbers = turned(run, goes_on, start)
            seen.update(more)
            seen[RAN + prefix] = numbers
        return self._merged(outs, f"{key}/2", zeros, seen)

    def _rule(self, eqn: Any, key: str, given: list[Any], seen: Values) -> None:
        """What a function with a rule by hand computes on its way forward."""
        inner = ruled(eqn)
        if inner is not None and self._looks_into(key):
            held = [jax.lax.stop_gradient(x) for x in given]
            _, more = self.evaluate(inner.jaxpr, inner.consts, held, {}, f"{key}/0/")
            more.pop(SOURCE, None)
            seen.update(more)

    def _looks_into(self, key: str) -> bool:
        return any(k.startswith(f"{key}/") for k in self._sites)

    def _merged(
        self, outs: list[Any], prefix: str, zeros: Mapping[str, Any], seen: Values
    ) -> list[Any]:
        """Outputs of a choice or a loop, with their own zeros."""
        made = []
        for n, out in enumerate(outs):
            key = f"{prefix}/{n}"
            if key in self._sites:
                out = out + zeros[key] if key in zeros else out
                seen[key] = out
            made.append(out)
        return made

    def _changed(self, eqn: Any, site: Any, given: list[Any], is_product: bool) -> list[Any]:
        if site.kind == "activation":
            return self._activation(eqn, site, given)
        if site.kind != "linear":
            return bound(eqn, given)
        if is_product or not site.owner:
            given = list(given)
            given[site.operand] = self._operand(site, given[site.operand])
        if is_product:
            return bound(eqn, given)
        if self._kind == "bias" and site.owner and self._at in (-1, site.index):
            wide = given[0] if jnp.size(given[0]) >= jnp.size(given[1]) else given[1]
            outs = [wide]
        else:
            outs = bound(eqn, given)
        if self._kind == "zero" and site.index in self._ends:
            return [jnp.zeros_like(outs[0])]
        if self._kind in ("init", "layer") and self._at in (-1, site.index):
            return [outs[0] / size(outs[0])]
        if self._kind == "normalise" and site.index not in self._ends:
            return [normalised(outs[0])]
        return outs

    def _operand(self, site: Site, x: Any) -> Any:
        """What a product is given."""
        if self._kind == "forget" and self._forgotten == site.name:
            return jax.lax.stop_gradient(x)
        return standardised(x) if self._kind == "input" and site.index == 0 else x

    def _activation(self, eqn: Any, site: Site, given: list[Any]) -> list[Any]:
        if site.index < 0:
            return bound(eqn, given)
        wide = max(given, key=jnp.size)
        other = replaced(site.op, (self._kind, self._at))
        if other != site.op:
            return [FUNCTIONS[other](wide)]
        outs = bound(eqn, given)
        if self._kind == "skip":
            before, out = self._previous, outs[0]
            if before is not None and before.shape == out.shape:
                outs = [(out + before) / 2**0.5]
        return outs


def _floats(seen: Values) -> Values:
    """What can be kept of a branch or a turn: no source, and nothing that has no zero."""
    return {
        k: v
        for k, v in seen.items()
        if k != SOURCE and (k.startswith(RAN) or jnp.issubdtype(v.dtype, jnp.floating))
    }


def _off(eqn: Any, given: list[Any]) -> Any:
    """Share of the units of an activation whose mean slope is under 1 % of the largest."""
    spot = max(range(len(given)), key=lambda n: jnp.size(given[n]))
    held = [jax.lax.stop_gradient(x) for x in given]
    x = held[spot]
    of_one = lambda z: bound(eqn, [*held[:spot], z, *held[spot + 1 :]])[0]  # noqa: E731  # short
    slope = jax.jvp(of_one, (x,), (jnp.ones_like(x),))[1]
    rows = jnp.abs(slope).reshape(-1, x.shape[-1] if x.ndim else 1)
    return jnp.mean((jnp.mean(rows, 0) < FLAT).astype(x.dtype))


def bound(eqn: Any, given: list[Any]) -> list[Any]:
    """Outputs of an equation by its own primitive."""
    params = eqn.primitive.get_bind_params(eqn.params)
    functions, params = ((), params) if isinstance(params, dict) else params  # latter before 0.8
    outs = eqn.primitive.bind(*functions, *given, **params)
    return list(outs) if eqn.primitive.multiple_results else [outs]
