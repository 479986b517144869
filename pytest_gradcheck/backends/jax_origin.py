"""Where the first value that is not finite is born in JAX, forward or backward.

Every value of the jaxpr is looked at once. Forward: the value is followed back from the loss to
the equation whose inputs are finite. Backward: from the latest value whose adjoint is not finite
to the equation that used it and was handed a finite one. ``jax_debug_nans`` stops at values that
never reach the loss (jax#5698).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pytest_gradcheck.backends.jax_loss import Traced
from pytest_gradcheck.backends.jax_programs import Told, by_numpy, forward, is_near
from pytest_gradcheck.backends.jax_sites import Around, Site, number
from pytest_gradcheck.backends.jax_walk import Walk, walked
from pytest_gradcheck.backends.layers import Origin

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

# What puts an infinity somewhere on purpose: a mask, whose infinity is born of nothing.
_BY_HAND = frozenset({"select_n", "_where", "convert_element_type", "broadcast_in_dim", "copy"})


def origin(traced: Traced, walk: Walk, values: Sequence[Any]) -> Origin | None:
    """The first birth, and how far it reaches; None where every value is finite."""
    around = walk.around
    sites = {
        k: Site(k, op[2], "other", op[0], place=op[1], around=around[k])
        for k, op in walk.ops.items()
    }
    told = _told_of(traced, sites, list(values)).without_idle(around)
    loss, seen, gradients, adjoints = told.loss, told.seen, told.gradients, told.adjoints
    bad = {k: word for k, v in seen.items() if (word := _bad(v))}
    is_lost = bool(_bad(loss))
    reaches = "loss" if is_lost else "gradient" if any(map(_bad, gradients)) else "nothing"
    if is_lost:
        (end,) = walked(traced)[1]
        when = {k: _when(v, around[k].stacks) for k, v in seen.items()}
        birth = _followed(walk, bad, end.maker, when, set())
        turn = _turn(told, around[birth], when[birth]) if birth in when else 0
        return _told(walk, birth, "forward", bad.get(birth, "nan"), "loss", turn)
    if reaches == "gradient":
        return _backward(walk, adjoints, {k for k in walk.ops if told.runs(around[k].branch)})
    first = min(bad, key=number, default="")
    return _told(walk, first, "forward", bad[first], reaches) if first else None


def _told_of(traced: Traced, sites: Mapping[str, Site], values: list[Any]) -> Told:
    """Every value and adjoint, each primitive by itself: a compiler may simplify a birth away."""
    run = (
        by_numpy(traced, sites, values) if is_near(traced.jaxpr, (*values, *traced.batch)) else None
    )
    if run is not None:
        return run(values, traced.batch, 1.0)
    loss, seen, ran = forward(traced, sites, (*values, *traced.batch), {})
    may_have = (k for k in seen if k in sites and sites[k].around.has_adjoint)
    zeros = {k: jnp.zeros_like(seen[k]) for k in may_have}
    of_both = lambda v, z: forward(traced, sites, (*v, *traced.batch), z)[0]  # noqa: E731  # short
    gradients, adjoints = jax.grad(of_both, argnums=(0, 1))(values, zeros)
    return Told(loss, math.nan, seen, adjoints, gradients, ran)


def _when(x: Any, stacks: tuple[bool, ...]) -> int:
    """The first iteration of a scan in which a value is not finite."""
    if not stacks or not _bad(x):
        return 0
    wide = np.asarray(x).astype(np.float64)
    return int(np.argmin(np.isfinite(wide).reshape(len(wide), -1).all(axis=1)))


def _turn(told: Told, around: Around, when: int) -> int:
    """The turn of the outermost loop, from 1 on; zero outside any."""
    if not around.stacks:
        return 0
    numbers = told.turns(around)
    return when + 1 if numbers is None or not around.is_held else int(np.max(numbers[when]))


def _followed(
    walk: Walk, bad: Mapping[str, str], key: str, when: Mapping[str, int], seen: set[str]
) -> str:
    """The equation that a value which is not finite comes from, through those that pass it on."""
    seen.add(key)
    sources = [k for k in walk.sources.get(key, ()) if k in bad and k not in seen]
    loop = walk.around[key].loop if key in walk.around else ""
    # Within one loop a cause is no later than its effect.
    sources = [k for k in sources if walk.around[k].loop != loop or when[k] <= when[key]]
    for earlier in sorted(sources, key=number):
        first = _followed(walk, bad, earlier, when, seen)
        if bad[first] == "nan" or walk.ops[first][0] not in _BY_HAND:
            return first
    return key


def _backward(walk: Walk, adjoints: Mapping[str, Any], ran: Collection[str]) -> Origin:
    bad = {k: word for k, v in adjoints.items() if (word := _bad(v))}
    latest = max(bad, key=number, default="")
    users = [k for k, sources in walk.sources.items() if latest and latest in sources]
    if not latest:  # born on the way to a parameter itself
        users = [k for k, s in walk.sources.items() if any(x.startswith("parameter") for x in s)]
    users = [k for k in users if k in ran and not walk.around[k].is_held]
    fine = [k for k in users if k not in bad]
    key = max(fine or users or [latest], key=number) if (fine or users or latest) else ""
    return _told(walk, key, "backward", bad.get(latest, "nan"), "gradient")


def _told(walk: Walk, key: str, phase: Any, value: str, reaches: str, turn: int = 0) -> Origin:
    op, place, layer = walk.ops.get(key, ("", "", ""))
    return Origin(
        where=layer, op=op, phase=phase, value=value, place=place, reaches=reaches, turn=turn
    )


def _bad(x: Any) -> str:
    values = np.asarray(x)
    if values.dtype.kind not in "f" and str(values.dtype) != "bfloat16":
        return ""
    wide = values.astype(np.float64)
    if np.all(np.isfinite(wide)):
        return ""
    return "nan" if np.any(np.isnan(wide)) else "inf"
