"""By how much each product with weights changes the size of the data, and which one is odd."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pytest_gradcheck.checks.flow.passes import Grouped, Statistics
from pytest_gradcheck.numerics import depth

ODD = 5.0  # times its due size is what an input or a layer's gain may be
Sizes = tuple[bool, float, float]  # whether a layer counts, the sizes of its output and input


def gains(seen: Statistics, source: float) -> dict[int, float]:
    """Log10 of each gain that is known, by the position of the layer."""
    return _logs(
        [(y.kind == "linear", _middle(y.activations), _middle(y.given)) for y in seen.layers],
        source,
    )


def total(layers: Sequence[Sizes], source: float) -> float:
    """Log10 of what all layers that count do together, where they follow one another."""
    return math.fsum(_logs(layers, source).values())


def _logs(layers: Sequence[Sizes], source: float) -> dict[int, float]:
    found = depth.gains(layers, source)
    return {n: math.log10(g) for n, g in found.items() if g > 0 and math.isfinite(g)}


def _middle(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]


def middle(logs: dict[int, float]) -> float:
    """The middle one of the gains."""
    return sorted(logs.values())[len(logs) // 2] if logs else 0.0


def odd(seen: Statistics, source: float) -> Grouped | None:
    """The layer whose gain stands out among others that are as they should be."""
    logs = gains(seen, source)
    centre, far = middle(logs), math.log10(ODD)
    if len(logs) < 3 or abs(centre) > far:
        return None
    worst = max(logs, key=lambda n: abs(logs[n] - centre))
    return seen.layers[worst] if abs(logs[worst] - centre) > far else None
