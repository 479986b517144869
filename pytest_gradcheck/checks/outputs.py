"""The outputs of a probe as one flat row of numbers, and single ones among them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pytest_gradcheck.backends import Array, Flat, Leaf
from pytest_gradcheck.checks.probe import OUTSIDE_DOMAIN, Probe
from pytest_gradcheck.checks.projection import Cotangents
from pytest_gradcheck.numerics.ladder import Floats

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these


def values(probe: Probe) -> Floats:
    """(outputs,) every real number of the output at the point, flat."""
    return _flat(probe, probe.outputs)


def sides(probe: Probe, direction: Sequence[Array | None], step: float) -> Floats:
    """(2, outputs) slopes of every output number before and after the point."""
    try:
        up, down = (probe.rerun(probe.shifted(direction, h)) for h in (step, -step))
    except OUTSIDE_DOMAIN:
        return np.full((2, len(values(probe))), np.nan)
    centre = values(probe)
    return np.stack([centre - _flat(probe, down), _flat(probe, up) - centre]) / step


def unit_cotangents(probe: Probe, m: int) -> Cotangents:
    """Cotangents that pick one output number, counted flat."""
    backend, unit = probe.problem.backend, []
    for leaf in probe.outputs.leaves:
        mask = np.zeros(leaf.size)
        if leaf.dtype and 0 <= m < leaf.size:
            mask[m] = 1.0
        unit.append(
            backend.convert(mask.reshape(leaf.shape), leaf.dtype, leaf.device)
            if leaf.dtype
            else None
        )
        m -= leaf.size if leaf.dtype else 0
    return unit


def _flat(probe: Probe, outputs: Flat) -> Floats:
    to_numpy = probe.problem.backend.to_numpy
    parts = [np.ravel(to_numpy(leaf.value)) for leaf in outputs.leaves if leaf.dtype]
    flat = np.concatenate(parts)
    return flat.astype(np.complex128 if np.iscomplexobj(flat) else np.float64)


def leaf_name(leaf: Leaf, m: int) -> str:
    """Path and index of one number of an output or input, such as ``loss[3, 1]``."""
    if not leaf.shape:
        return leaf.path
    index = np.unravel_index(m, leaf.shape)
    return f"{leaf.path}[{', '.join(str(int(i)) for i in index)}]"
