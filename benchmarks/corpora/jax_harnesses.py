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

        def outputs(*inputs: Any) -> list[Any]:
            filled = list(arguments)
            for spot, x in zip(spots, inputs, strict=True):
                filled[spot] = x
            return jax.tree.leaves(harness.dyn_fun(*filled))

        inputs = [arguments[i] for i in spots]
        first = outputs(*inputs)
        # By place and not by type, which changes where the function is asked for in float64.
        kept = [k for k, y in enumerate(first) if y.dtype == dtype and y.size]
    except Exception:  # a harness for other platforms or modes
        return None

    def function(*inputs: Any) -> Any:
        found = outputs(*inputs)
        real = [found[k] for k in kept]
        return real[0] if len(real) == 1 else real

    sizes = sum(x.size for x in inputs), sum(first[k].size for k in kept)
    if not all(0 < size <= MOST_ELEMENTS for size in sizes):
        return None
    return Case(harness.fullname[:60], "jax", dtype, function, inputs)
