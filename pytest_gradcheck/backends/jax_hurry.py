"""JAX programs that run a few times only: compiled in a hurry, since compiling is what takes time.

XLA spends several times as long on the kernels of a small network as all its runs take. Without
fused kernels and optimisation a program is compiled in a third of the time or less, and runs at
half the speed (``benchmarks/steps.py``), so this is for what is small, on the CPU.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

HURRIED = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
# Measured on a sine of 64 numbers: 22 ms to compile as usual, 16 with the first two, 6 with all.
QUICKLY = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_use_fusion_emitters": False,
    "xla_cpu_parallel_codegen_split_count": 1,
}
# Inputs with more elements take longer to compute with than the compiler takes to optimise.
QUICK_SIZE = 10_000
MOST = 1_000_000  # elements of arguments: beyond, slow kernels cost more than compiling saves


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function compiled at first use for each form of its arguments, in a hurry if small."""
    plain: Callable[..., Any] = jax.jit(function)
    if not can_hurry():
        return plain
    # Another function object: programs of the same one would share a cache, whatever the options.
    hurried = jax.jit(lambda *args, **named: function(*args, **named), compiler_options=HURRIED)

    @functools.wraps(function)
    def chosen(*args: Any, **named: Any) -> Any:
        return (hurried if _is_small((args, named)) else plain)(*args, **named)

    return chosen


@functools.cache
def can_hurry() -> bool:
    """Whether this release and device take the options."""
    return jax.default_backend() == "cpu" and _is_known(HURRIED)


@functools.cache
def quickly() -> dict[str, Any]:
    """Arguments of ``jit`` that make compiling quick; none where this JAX does not know them."""
    return {"compiler_options": QUICKLY} if _is_known(QUICKLY) else {}


def _is_known(options: dict[str, Any]) -> bool:
    try:
        jax.jit(lambda: 0, compiler_options=options)()
    except (TypeError, RuntimeError):  # no such argument, no such option
        return False
    return True


def _is_small(args: Any) -> bool:
    return sum(np.size(leaf) for leaf in jax.tree.leaves(args) if hasattr(leaf, "size")) <= MOST
