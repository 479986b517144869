"""The records of the layers of a JAX function, from what one run of it shows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from pytest_gradcheck.backends import layers
from pytest_gradcheck.backends.jax_changes import replaced
from pytest_gradcheck.backends.jax_eval import OFF
from pytest_gradcheck.backends.jax_programs import Told
from pytest_gradcheck.backends.jax_sites import Site
from pytest_gradcheck.backends.jax_walk import Walk, parents
from pytest_gradcheck.backends.layers import FLAT, Change, Layer, Turn

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these


_SHARES = {"gelu": lambda x: (1 + x) / 2, "erfc": lambda x: x / 2}


def records(
    sites: Mapping[str, Site], walk: Walk, told: Told, change: Change | None
) -> list[Layer]:
    """The records in the order of the data; iterations over stacked layers one by one."""
    made: list[tuple[tuple[Any, ...], Layer]] = []
    shown = [key for key, site in sites.items() if key in told.seen and not site.around.is_held]
    for number, key in enumerate(shown):
        site = sites[key]
        op = replaced(site.op, change) if site.index >= 0 else site.op
        op = "gelu" if op == "erfc" else op
        is_stack = site.around.stacks[:1] == (True,)
        for i, (x, g) in enumerate(_of_turns(told, site, is_stack)):
            if x is None:
                continue
            name = f"{site.name}[{i}]" if is_stack else site.name
            layer = layers.of_arrays(name, site.kind, op, x, g, site.index)
            layer = replace(layer, dead=_off(site, told, x, i if is_stack else None, layer.dead))
            made.append(((_first(key), -i if site.around.is_reverse else i, number), layer))
    ordered = [layer for _, layer in sorted(made, key=lambda pair: pair[0])]
    names = layers.numbered(layer.name for layer in ordered)
    named = [replace(layer, name=n) for n, layer in zip(names, ordered, strict=True)]
    fed = parents(walk, shown, told.runs)
    if fed is None:
        return named
    return [replace(layer, parents=before) for layer, before in zip(named, fed, strict=True)]


def _off(site: Site, told: Told, x: Any, i: int | None, dead: float) -> float:
    """Share of units that are off, also those of a smooth rectifier, whose slope tells.

    Of a GELU the values are those of the distribution function that it multiplies by, which is
    nearly zero where its slope is.
    """
    if site.kind == "other" and site.op in _SHARES and x.ndim:
        share = _SHARES[site.op](x.astype(np.float64)).reshape(-1, x.shape[-1])
        return float(np.mean(share.mean(axis=0) < FLAT))
    if OFF + site.key not in told.seen:
        return dead
    found = np.asarray(told.seen[OFF + site.key], np.float64)
    ran = told.turns(site.around)
    found, ran = (found, ran) if i is None else (found[i], None if ran is None else ran[i])
    did = np.ones(found.shape, bool) if ran is None else np.broadcast_to(ran > 0, found.shape)
    return float(found[did].mean())


def _of_turns(told: Told, site: Site, is_stack: bool) -> list[tuple[Any, Any]]:
    """Value and adjoint of a site where it ran: as a whole, or of each of stacked layers.

    None for what did not run, and for an adjoint that there is not.
    """
    both = [told.seen[site.key], told.adjoints.get(site.key)]
    x, g = (_array(a) for a in both)
    ran = told.turns(site.around)
    did = None if ran is None or not ran.ndim else ran > 0
    if is_stack:
        count = len(told.seen[site.key])
        columns = [[_where(a, did, i) for i in range(count)] for a in (x, g)]
        return list(zip(*columns, strict=True))
    return [(x, g)] if did is None else [(x[did], None if g is None else g[did])]


def _where(a: Any, did: Any, i: int) -> Any:
    """What an array has in a turn of a scan, and there where it ran; None where it did not."""
    if a is None or (did is not None and not np.any(did[i])):
        return None
    return a[i] if did is None or did.ndim == 1 else a[i][did[i]]


def _first(key: str) -> int:
    return int(key.partition("/")[0])


def fades(sites: Mapping[str, Site], told: Told, change: Change | None) -> list[tuple[str, float]]:
    """How the adjoint changes from the last to the first iteration of a scan over time.

    To the largest, where none is carried from one to the other.
    """
    is_forgetful = change is not None and change[0] == "forget"
    found = []
    for key, site in sites.items():
        if site.around.stacks[:1] != (False,) or key not in told.adjoints:
            continue
        g = np.asarray(_of_turns(told, site, False)[0][1], np.float64)
        g = g[::-1] if site.around.is_reverse else g
        sizes = [float(np.linalg.norm(each)) for each in (g if is_forgetful else g[[0, -1]])]
        ends = [max(sizes) if is_forgetful else sizes[0], sizes[-1]]
        if len(g) > 3 and all(ends):
            found.append((site.name, math.log10(ends[0] / ends[1])))
    return found


def turns(sites: Mapping[str, Site], told: Told) -> Iterator[Turn]:
    """What layers put out inside a ``while``, turn by turn."""
    for key, site in sites.items():
        numbers = told.turns(site.around)
        if not site.around.is_held or key not in told.seen or numbers is None:
            continue
        for number, x in zip(numbers.ravel(), _each(told.seen[key], numbers.ndim), strict=True):
            if number:
                yield Turn(site.name, int(number), layers.rms(x))


def _each(x: Any, axes: int) -> np.ndarray:
    values = np.asarray(x)
    return values.reshape(-1, *values.shape[axes:])


def _array(a: Any) -> Any:
    return None if a is None else np.asarray(a)
