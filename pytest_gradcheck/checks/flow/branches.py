"""The branches of a network, and how much of the flow arrives at the beginning of each.

A branch is what one first layer feeds, or what one last layer alone is fed by. Layers of two
branches are never compared: an auxiliary head, a critic or a second network may have any weight
in the loss. Where a backend does not know who feeds whom, the layers are one chain.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pytest_gradcheck.backends.layers import Layer, Pass
from pytest_gradcheck.checks.flow.flows import in_squares, log_flow, power
from pytest_gradcheck.numerics import depth, paths
from pytest_gradcheck.numerics.intervals import Interval, of_mean

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

JOINED = 5.0  # times what layers before it put out, for a sum with something else

Rows = dict[str, tuple[float, float]]  # what arrives at each layer of a branch, and its gain


@dataclass(frozen=True, slots=True)
class Branch:
    """Layers from one beginning to its ends, over all passes.

    Args:
        layers: Their names, in the order of the data.
        profiles: What arrives at each of the flow at the ends, one row a pass.
        attenuations: Log10 of what arrives at the first ones, one for each pass.
        attenuation: Their interval, dead networks left out.
        depth: Layers with weights; all layers where none is known to have any.
    """

    layers: tuple[str, ...]
    profiles: tuple[tuple[float, ...], ...]
    attenuations: tuple[float, ...]
    attenuation: Interval
    depth: int


def branches(passes: Sequence[Pass]) -> tuple[Branch, ...]:
    """The branches that every pass has, each set of layers once."""
    tables, ends = zip(*map(_rows, passes), strict=True) if passes else ((), ())
    widths = {name: w for one in passes[:1] for name, w in _widths(one).items()}
    hidden = {name: w for name, w in widths.items() if name not in set().union(*ends)}
    narrow = _narrow(passes[0]) if passes else {}
    found: dict[tuple[str, ...], Branch] = {}
    for key in tables[0] if tables else ():
        rows = [table[key] for table in tables if key in table]
        if len(rows) < len(tables):
            continue
        names = tuple(name for name in rows[0] if all(name in row for row in rows))
        if names and names not in found:
            counted = [name for name in names if name in hidden]
            passed = [name for name in counted if name in narrow.get(key, names)]
            spread = depth.spread([hidden[name] for name in passed])
            spread = max(spread, depth.ROUND) if len(passed) < len(counted) else spread
            found[names] = _branch(names, rows, sum(name in widths for name in names), spread)
    return tuple(found.values())


def base(name: str) -> str:
    """The name of a layer without the number of a call."""
    return name.partition("#")[0]


def _widths(one: Pass) -> dict[str, float]:
    """Units of the layers with weights, of all layers where none is known to have any.

    Those of a convolution count once for each place of the kernel, since it multiplies so many.
    """
    shapes = {p.name: p.shape for p in one.parameters}
    known = [y for y in one.layers if y.kind == "linear"] or list(one.layers)
    found: dict[str, float] = {}
    for layer in known:
        name = base(layer.name)
        places = shapes.get(f"{name}.weight", ())[2:]
        kernel = shapes.get(f"{name}.kernel", ())  # of Flax; of three axes it is that of attention
        places = kernel[:-2] if len(kernel) > 3 else places
        found[name] = layer.width * math.prod(places)
    return found


def _branch(names: tuple[str, ...], rows: Sequence[Rows], count: int, spread: float) -> Branch:
    attenuations = []
    for row in rows:
        arrived, more = (_ends([row[name][k] for name in names]) for k in (0, 1))
        attenuations.append(paths.changed(arrived, more) if arrived == arrived else math.nan)
    alive = [a for a in attenuations if math.isfinite(a)]
    return Branch(
        layers=names,
        profiles=tuple(tuple(power(row[name][0]) for name in names) for row in rows),
        attenuations=tuple(attenuations),
        attenuation=of_mean(alive, spread),
        depth=count,
    )


def _ends(logs: Sequence[float]) -> float:
    return depth.profile([power(x) for x in logs]).attenuation


def _rows(one: Pass) -> tuple[dict[str, Rows], set[str]]:
    """The branches of one pass by what makes them, calls of a layer put together; and the ends."""
    nodes = graph(one)
    if nodes is None:
        return _chain(one.layers, _may_end(one))
    logs = {n: log_flow(one.layers[n]) for n in nodes.parents}
    kept, grown = paths.kept(nodes, logs, _joined(one, nodes)), paths.grown(nodes, logs)
    if all(logs[n] == -math.inf for n in nodes.ends):  # nothing leaves, so nothing can arrive
        kept = grown = logs
    names = {n: base(one.layers[n].name) for n in nodes.parents}
    made = {key: _put(some, names, kept, grown) for key, some in _sections(nodes, names).items()}
    return made, {names[n] for n in nodes.ends}


def _joined(one: Pass, nodes: paths.Graph) -> set[int]:
    """Layers that are given far more than those before them put out: inputs go round these."""
    fed = {n: [one.layers[p].activation for p in own] for n, own in nodes.parents.items() if own}
    joined = {n: sizes for n, sizes in fed.items() if one.layers[n].is_joined}
    return {n for n, sizes in joined.items() if one.layers[n].given > JOINED * max(sizes)}


def graph(one: Pass) -> paths.Graph | None:
    """The layers that a gradient reaches, up to the last products; None for a chain."""
    parents = [y.parents for y in one.layers if y.parents is not None]
    if len(parents) < len(one.layers):
        return None
    return paths.graph(parents, [not math.isnan(log_flow(y)) for y in one.layers], _may_end(one))


def _narrow(one: Pass) -> dict[str, frozenset[str]]:
    """Names of the layers that no path of a branch goes round, by what makes the branch."""
    nodes = graph(one)
    if nodes is None:
        return {}
    names = {n: base(one.layers[n].name) for n in nodes.parents}
    return {
        key: frozenset(names[n] for n in nodes.narrow(some))
        for key, some in _sections(nodes, names).items()
    }


def _may_end(one: Pass) -> list[bool]:
    # What follows the last product (a softmax, a sigmoid) belongs to the loss: the gradient with
    # respect to a probability near zero is as large as its inverse.
    has_product = any(y.kind == "linear" for y in one.layers)
    return [y.kind == "linear" or not has_product for y in one.layers]


def bypassed(one: Pass) -> frozenset[str]:
    """Names of rectifiers that another path goes round, as those of a gate or a residual branch."""
    nodes = graph(one)
    if nodes is None:
        return frozenset()
    names = {n: base(one.layers[n].name) for n in nodes.parents}
    dead = dict.fromkeys(name for n, name in names.items() if one.layers[n].dead > 0)
    return frozenset(
        d for d in dead if nodes.has_way_round({n for n, name in names.items() if name == d})
    )


def has_way_round(one: Pass, name: str) -> bool:
    """Whether another path goes round all calls of a layer; not where who feeds whom is unknown."""
    nodes = graph(one)
    calls = {n for n in nodes.parents if base(one.layers[n].name) == name} if nodes else set()
    return nodes is not None and bool(calls) and nodes.has_way_round(calls)


def _sections(nodes: paths.Graph, names: Mapping[int, str]) -> dict[str, tuple[int, ...]]:
    """What each beginning feeds; and what feeds one end alone, where there are several."""
    found = {}
    for name in dict.fromkeys(names[n] for n in nodes.starts):
        found[f"from {name}"] = nodes.after([n for n in nodes.starts if names[n] == name])
    ends = dict.fromkeys(names[n] for n in nodes.ends)
    for name in ends if len(ends) > 1 else ():
        own = sum(1 << k for k, n in enumerate(nodes.ends) if names[n] == name)
        found[f"to {name}"] = tuple(n for n, bits in nodes.reach.items() if not bits & ~own)
    return found


def _put(
    some: Sequence[int],
    names: Mapping[int, str],
    kept: Mapping[int, float],
    grown: Mapping[int, float],
) -> Rows:
    """What arrives at all calls of each layer, in squares, and the largest that comes on top."""
    calls: dict[str, list[int]] = {}
    for n in some:
        calls.setdefault(names[n], []).append(n)
    return {
        name: (in_squares([kept[n] for n in those]), max(grown[n] for n in those))
        for name, those in calls.items()
    }


def _chain(layers: Sequence[Layer], may_end: Sequence[bool]) -> tuple[dict[str, Rows], set[str]]:
    """Every layer up to the last product, each against the last one; calls add up in squares."""
    last = max((n for n, is_end in enumerate(may_end) if is_end), default=-1)
    flows: dict[str, list[float]] = {}
    for layer in layers[: last + 1]:
        flows.setdefault(base(layer.name), []).append(log_flow(layer))
    logs = {name: x for name, f in flows.items() if not math.isnan(x := in_squares(f))}
    top = max(logs.values(), default=-math.inf)
    start = top if top > -math.inf else 0.0  # where all are zero
    made = {name: (x - start, x - start) for name, x in logs.items()}
    return {"all": made}, {base(y.name) for y in layers[last : last + 1]}
