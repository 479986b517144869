"""What JAX asks of a hand-written rule: the same gradient plain, under jit and under vmap."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from pytest_gradcheck.backends.jax_arrays import handed, hosted
from pytest_gradcheck.backends.jax_runs import differentiable
from pytest_gradcheck.backends.protocol import Function, Variant

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

# A rule by custom_jvp is transposed by JAX itself, and where it comes from cannot be seen.
_RULES = ("custom_vjp_call", "custom_vjp_call_jaxpr")
_OWN = ("jax", "jaxlib", "flax", "optax")  # libraries whose rules are not the user's to mend


def variants(f: Function, point: Sequence[Any], cotangents: Sequence[Any]) -> Iterator[Variant]:
    """The gradient in every other way, where a rule that somebody wrote takes part in it."""
    x = [handed(value) for value in point]
    flat = differentiable(f)
    try:
        program = jax.make_jaxpr(flat)(*x)
    except Exception:  # no tracing, no jit and no vmap: there is nothing to ask
        return
    if not any(_has_rule(equation) for equation in equations(program.jaxpr)):
        return
    weights = [handed(w) for w in cotangents if w is not None]

    def pulled(weights: list[Any], *x: Any) -> Any:
        return jax.vjp(flat, *x)[1](weights)

    plain = pulled(weights, *x)
    yield _asked("backward-jit", "under jax.jit", plain, lambda: jax.jit(pulled)(weights, *x))
    stacked = [jnp.stack([w, 2 * w]) for w in weights]
    axes = (0, *(None for _ in x))
    yield _asked(
        "backward-vmap",
        "under jax.vmap over cotangents",
        plain,
        lambda: [g[0] for g in jax.vmap(pulled, axes)(stacked, *x)],
    )
    together = [jnp.stack([value, value]) for value in x]
    yield _asked(
        "backward-vmap",
        "under jax.vmap over inputs",
        plain,
        lambda: [g[1] for g in jax.vmap(pulled)([jnp.stack([w, w]) for w in weights], *together)],
    )


def _asked(code: str, what: str, plain: Sequence[Any], got: Callable[[], Any]) -> Variant:
    try:
        found = [hosted(g) for g in got()]
    except Exception as error:  # the user's own rule; told, not hidden
        told = " ".join(str(error).split())[:80]
        return Variant(
            code, what, breach=f"{what} the gradient raises {type(error).__name__}: {told}"
        )
    return Variant(code, what, [hosted(g) for g in plain], found)


def equations(jaxpr: Any) -> Iterator[Any]:
    """Every equation of a program, those of its inner programs too."""
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for inner in value if isinstance(value, (list, tuple)) else [value]:
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from equations(inner)


def scan_counts(params: Mapping[str, Any]) -> tuple[int, int]:
    """How many arguments of a ``scan`` are the same in every turn, and how many are carried on."""
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    fixed, carried, _ = params["ft_in"].unpack()  # since JAX 0.11
    return len(fixed), len(carried)


def _has_rule(equation: Any) -> bool:
    if equation.primitive.name not in _RULES:
        return False
    return _module(equation.params.get("bwd")).partition(".")[0] not in _OWN


def _module(rule: Any) -> str:
    """Where a rule was written; empty where JAX has wrapped it beyond recognition."""
    seen = rule
    for _ in range(8):
        inner = getattr(seen, "f", None) or getattr(seen, "__wrapped__", None)
        inner = inner or getattr(seen, "func", None)
        if inner is None:
            break
        seen = inner
    return getattr(seen, "__module__", "") or ""
