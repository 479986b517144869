"""Starts that are small on purpose: gates beside the data, tables of embeddings, adapters.

LayerScale gates each branch of a residual network by a vector of 1e-4 to 1e-6 (Touvron et al. 2021,
arXiv 2103.17239), hash grids and recommenders draw their tables within 1e-4 (Mueller et al. 2022,
arXiv 2201.05989), adapters start near the identity (Houlsby et al. 2019, arXiv 1902.00751), and so
does the last layer of an actor before its critic (Lillicrap et al. 2016, arXiv 1509.02971). A model
learns how large they are to be; that they are what the gradient fades by shows where it does not
with them at size 1.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet

from pytest_gradcheck.backends.layers import Parameter
from pytest_gradcheck.checks.flow import gains
from pytest_gradcheck.checks.flow.branches import base, has_way_round
from pytest_gradcheck.checks.flow.passes import Passes, Statistics, statistics
from pytest_gradcheck.checks.flow.symptom import Symptom
from pytest_gradcheck.checks.flow.symptoms import fading, still_fades
from pytest_gradcheck.limits import Limits

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

SMALL = 0.1  # size of what is small beside a size of 1
MARGIN = 1.0  # decades
BIAS = re.compile(r"b\d*|.*bias.*")
TABLES = ("Embedding", "EmbeddingBag", "gather")


def small(
    passes: Passes, found: Sequence[Symptom], limits: Limits, frozen: Sequence[str]
) -> tuple[Symptom, ...]:
    """The symptoms, a gradient that fades by gates or tables alone as a note."""
    fades = fading(found)
    sizes = _chosen(passes) if fades else {}
    if not sizes:
        return tuple(found)
    factors = {name: 1.0 / size for name, size in sizes.items()}
    made = [passes.probe.rescaled(state, factors) for state in passes.states]
    finite = [one for one in made if one is not None and one.is_finite]
    if not finite or len(finite) < len(made):
        return tuple(found)
    if still_fades(passes, finite, limits, frozen):
        return tuple(found)
    if _lost(statistics(passes.finite)) < _lost(statistics(finite)) + _once(sizes):
        return tuple(found)
    first, *others = sizes
    and_more = f" and {len(others)} more" if others else ""
    told = (
        f"{first}{and_more} {'start' if others else 'starts'} at a size of {sizes[first]:.1g}, by "
        f"which alone the gradient fades: with a size of 1 it does not"
    )
    note = Symptom("small-start", first, told, (("size", sizes[first]),), "note")
    return (*(s for s in found if s not in fades), note)


def _chosen(passes: Passes) -> dict[str, float]:
    """Small vectors of one number that are no norm's, and small tables, by name; their sizes."""
    one = passes.finite[0]
    norms = {base(y.name) for y in one.layers if "norm" in y.op.lower()}
    tables = {base(y.name) for y in one.layers if y.op in TABLES}
    return {
        p.name: p.value
        for p in one.parameters
        if (_is_gate(p, norms) or _is_table(p, tables)) and p.trainable and 0 < p.value < SMALL
    }


def _lost(seen: Statistics) -> float:
    """Decades by which the gradient fades in the worst branch; 0 where it does not."""
    known = [b.attenuation.mean for b in seen.branches if not math.isnan(b.attenuation.mean)]
    return min([0.0, *known])


def _once(sizes: Mapping[str, float]) -> float:
    """Decades that the smallest takes once; what several in a row take is no choice."""
    return math.log10(min(sizes.values())) - MARGIN


def _is_gate(p: Parameter, norms: AbstractSet[str]) -> bool:
    owner, _, name = p.name.rpartition(".")
    is_bias = BIAS.fullmatch(name) is not None  # which may well start at one number
    return p.uniform and owner not in norms and not is_bias


def _is_table(p: Parameter, tables: AbstractSet[str]) -> bool:
    return len(p.shape) == 2 and not tables.isdisjoint({p.name, p.name.rpartition(".")[0]})


def is_meant(passes: Passes, seen: Statistics, where: str) -> bool:
    """Whether the layer by which a gradient fades may well be small on purpose.

    It is the last of its branch, or the last that learns, or the data go round it.
    """
    odd = gains.odd(seen, passes.finite[0].source)
    name = where if odd is None else odd.name
    if name in {b.layers[-1] for b in seen.branches}:
        return True
    if odd is None:
        return False
    one = passes.finite[0]
    owners = {p.name.rpartition(".")[0] for p in one.parameters if p.trainable}
    learns = [base(y.name) for y in one.layers if y.kind == "linear" and base(y.name) in owners]
    return learns[-1:] == [name] or all(has_way_round(p, name) for p in passes.finite)
