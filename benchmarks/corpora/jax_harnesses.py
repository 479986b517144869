"""The primitive harnesses that ship with JAX: two of each primitive, with real numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from corpora.case import MOST_ELEMENTS, Case

SAMPLES = 1


def cases(dtype: str) -> Iterator[Case]:
    """The first harnesses of each primitive whose inputs and outputs are real and not too many."""
    from jax._src.internal_test_util import test_harnesses

    taken: Counter[str] = Counter()
    for harness in test_harnesses.all_harnesses:
        if taken[harness.group_name] >= SAMPLES or np.dtype(harness.dtype).name != dtype:
            continue
        case = _case(harness, dtype)
        if case is not None:
            taken[harness.group_name] += 1
            yield case


def _case(harness: Any, dtype: str) -> Case | None:
    try:
        arguments = harness.dyn_args_maker(np.random.RandomState(0))
        spots = [i for i, x in enumerate(arguments) if getattr(x, "dtype", None) == dtype]
        arguments = [jax.numpy.asarray(x) if i in spots else x for i, x in enumerate(arguments)]

        def function(*inputs: Any) -> Any:
            filled = list(arguments)
            for spot, x in zip(spots, inputs, strict=True):
                filled[spot] = x
            outputs = jax.tree.leaves(harness.dyn_fun(*filled))
            real = [y for y in outputs if y.dtype == dtype and y.size]
            return real[0] if len(real) == 1 else real

        inputs = [arguments[i] for i in spots]
        outputs = jax.tree.leaves(function(*inputs))
    except Exception:  # a harness for other platforms or modes
        return None
    sizes = sum(x.size for x in inputs), sum(y.size for y in outputs)
    if not all(0 < size <= MOST_ELEMENTS for size in sizes):
        return None
    if any(y.dtype != dtype for y in outputs):
        return None
    return Case(harness.fullname[:60], "jax", dtype, function, inputs)
