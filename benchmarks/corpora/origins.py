"""Operations at which NaN or infinity is born, and ones that are harmless.

Each case is a function of a hidden value ``h`` of shape (8, 6) inside a small network; what is born
and where was written down before a check was run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Case:
    """One case.

    Args:
        name: What is done.
        backend: Where.
        run: The function of ``h``.
        op: Names of the operation that are right; empty where nothing is to be found.
        phase: Forward or backward.
    """

    name: str
    backend: str
    run: Callable[[Any], Any]
    op: tuple[str, ...] = ()
    phase: str = "forward"


def _zeroed(h: Tensor) -> Tensor:
    return h - h


def _half(h: Tensor, factor: float) -> Tensor:
    return (h.abs() + 1).half() * factor


def _masked(h: Any) -> Any:
    return jnp.where(h == jnp.max(h, 1, keepdims=True), -jnp.inf, h)


def _lost(h: Any) -> Any:
    return jnp.log(-1 - jnp.abs(jax.lax.stop_gradient(h)))


def _turned(h: Any) -> Any:
    """A loop beside the path of the gradient, in whose fourth turn a root is taken of -0.5."""
    turn = lambda c: (c[0] + 1, jnp.sqrt(2.5 - c[0]) + 0 * c[1])  # noqa: E731  # short
    return h * jax.lax.while_loop(lambda c: c[0] < 9, turn, (0, jax.lax.stop_gradient(h)))[1]


@jax.custom_vjp
def _ruled(h: Any) -> Any:
    return 2 * jnp.log(-1 - jnp.abs(h)) + 1


_ruled.defvjp(lambda h: (_ruled(h), None), lambda _, g: (g,))


TORCH: tuple[tuple[str, Callable[[Tensor], Tensor], str, str], ...] = (
    ("log of a negative", lambda h: torch.log(-1 - h.abs()), "log", "forward"),
    ("log of zero", lambda h: torch.log(_zeroed(h)), "log", "forward"),
    ("sqrt of a negative", lambda h: torch.sqrt(-1 - h.abs()), "sqrt", "forward"),
    ("divided by zero", lambda h: h / _zeroed(h), "div", "forward"),
    ("0 / 0", lambda h: _zeroed(h) / _zeroed(h), "div", "forward"),
    ("reciprocal of zero", lambda h: _zeroed(h).reciprocal(), "reciprocal", "forward"),
    ("exp of 200", lambda h: torch.exp(200 + h), "exp", "forward"),
    ("power", lambda h: (10 + h.abs()) ** 60, "pow", "forward"),
    ("root of a negative", lambda h: torch.pow(-1 - h.abs(), 0.5), "pow", "forward"),
    ("acos of 2", lambda h: torch.acos(2 + h.abs()), "acos", "forward"),
    ("log1p of -2", lambda h: torch.log1p(-2 - h.abs()), "log1p", "forward"),
    ("inf - inf", lambda h: torch.exp(h * 0 + 100) - torch.exp(h * 0 + 100), "exp", "forward"),
    ("cosh", lambda h: torch.cosh(500 + h), "cosh", "forward"),
    ("atanh of 2", lambda h: torch.atanh(2 + h.abs()), "atanh", "forward"),
    ("half overflow", lambda h: (_half(h, 300.0) * _half(h, 300.0)).float(), "mul", "forward"),
    ("half cast", lambda h: (1e6 + h).half().float(), "half", "forward"),
    ("half square", lambda h: _half(h, 400.0).square().float(), "square", "forward"),
    (
        "masked softmax",
        lambda h: torch.softmax(h.masked_fill(h == h, -torch.inf), -1),
        "softmax",
        "forward",
    ),
    ("std of one", lambda h: h / h[:, :1].std(1, keepdim=True), "std", "forward"),
    ("rsqrt of zero", lambda h: h * torch.rsqrt(_zeroed(h)), "rsqrt", "forward"),
    ("sqrt at zero", lambda h: torch.sqrt(_zeroed(h)), "sqrt", "backward"),
    ("power 0.5 at zero", lambda h: _zeroed(h) ** 0.5, "pow", "backward"),
    ("masked sqrt", lambda h: torch.where(h > 0, torch.sqrt(h), h * 0), "sqrt", "backward"),
    (
        "masked division",
        lambda h: torch.where(h > 9, 1 / _zeroed(h), h),
        "div reciprocal",
        "backward",
    ),
    (
        "masked log of zero",
        lambda h: torch.where(h > 9, torch.log(_zeroed(h)), h),
        "log",
        "backward",
    ),
    ("masked exp", lambda h: torch.where(h > 9, torch.exp(200 + h), h), "exp", "backward"),
    ("masked acos", lambda h: torch.where(h > 9, torch.acos(2 + h.abs()), h), "acos", "backward"),
    (
        "norm by hand",
        lambda h: h + _zeroed(h).square().sum(1, keepdim=True).sqrt(),
        "sqrt",
        "backward",
    ),
    ("asin at 1", lambda h: torch.asin(1 + _zeroed(h)), "asin", "backward"),
    ("cube root at zero", lambda h: _zeroed(h).pow(1 / 3), "pow", "backward"),
)

TORCH_FINE: tuple[tuple[str, Callable[[Tensor], Tensor]], ...] = (
    (
        "masked attention",
        lambda h: torch.softmax(h.masked_fill(h == h.max(), -torch.inf), -1),
    ),
    ("logsumexp of a mask", lambda h: torch.logsumexp(h.masked_fill(h > 2, -torch.inf), -1, True)),
    ("max with -inf", lambda h: torch.maximum(h, torch.full_like(h, -torch.inf))),
    ("detached NaN", lambda h: torch.where(h > 9, torch.log(-1 - h.detach().abs()), h)),
    ("nan_to_num", lambda h: h + torch.nan_to_num(torch.log(_zeroed(h).detach())) * 0),
    ("clamp of inf", lambda h: h + torch.exp(h.detach() + 200).clamp(max=1)),
    ("1 / inf", lambda h: h + 1 / torch.exp(h.detach() + 200)),
    ("safe log", lambda h: torch.log(torch.where(h > 0, h, torch.ones_like(h)))),
    ("unused NaN", lambda h: (torch.log(-1 - h.detach().abs()), h)[1]),
    ("empty memory", lambda h: torch.empty_like(h).copy_(h)),
)

JAX: tuple[tuple[str, Callable[[Any], Any], str, str], ...] = (
    ("log of a negative", lambda h: jnp.log(-1 - jnp.abs(h)), "log", "forward"),
    ("divided by zero", lambda h: h / (h - h), "div", "forward"),
    ("exp of 200", lambda h: jnp.exp(200 + h), "exp exp2", "forward"),
    ("sqrt of a negative", lambda h: jnp.sqrt(-1 - jnp.abs(h)), "sqrt", "forward"),
    ("rsqrt of zero", lambda h: h * jax.lax.rsqrt(h - h), "rsqrt", "forward"),
    ("log1p of -2", lambda h: jnp.log1p(-2 - jnp.abs(h)), "log1p", "forward"),
    (
        "half overflow",
        lambda h: (jnp.abs(h).astype(jnp.float16) + 300) ** 2 * 1.0,
        "integer_pow square mul",
        "forward",
    ),
    ("inside jit", jax.jit(lambda h: jnp.log(-1 - jnp.abs(h))), "log", "forward"),
    (
        "inside scan",
        lambda h: jax.lax.scan(lambda c, x: (jnp.log(c - 1), c), h, None, 3)[0],
        "log",
        "forward",
    ),
    (
        "inside cond",
        lambda h: jax.lax.cond(h.sum() > 1e9, jnp.sin, lambda h: jnp.log(-1 - jnp.abs(h)), h),
        "log",
        "forward",
    ),
    ("inside while", _turned, "sqrt", "forward"),
    ("inside a rule by hand", _ruled, "log", "forward"),
    ("sqrt at zero", lambda h: jnp.sqrt(h - h), "sqrt", "backward"),
    ("masked sqrt", lambda h: jnp.where(h > 0, jnp.sqrt(h), 0), "sqrt", "backward"),
    ("masked log of zero", lambda h: jnp.where(h > 9, jnp.log(h - h), h), "log", "backward"),
    ("masked division", lambda h: jnp.where(h > 9, 1 / (h - h), h), "div", "backward"),
    (
        "norm of zero",
        lambda h: h + jnp.linalg.norm(h - h, axis=1, keepdims=True),
        "sqrt",
        "backward",
    ),
    ("masked in jit", jax.jit(lambda h: jnp.where(h > 9, jnp.log(h - h), h)), "log", "backward"),
)

JAX_FINE: tuple[tuple[str, Callable[[Any], Any]], ...] = (
    ("masked attention", lambda h: jax.nn.softmax(_masked(h))),
    ("stopped NaN", lambda h: jnp.where(h > 9, jnp.log(-1 - jnp.abs(jax.lax.stop_gradient(h))), h)),
    ("double where", lambda h: jnp.where(h > 0, jnp.log(jnp.where(h > 0, h, 1.0)), 0.0)),
    ("max with -inf", lambda h: jnp.maximum(h, -jnp.inf)),
    ("1 / inf", lambda h: h + 1 / jnp.exp(jax.lax.stop_gradient(h) + 200)),
    ("clip of inf", lambda h: h + jnp.clip(jnp.exp(jax.lax.stop_gradient(h) + 200), None, 1.0)),
    ("nan_to_num", lambda h: h + 0 * jnp.nan_to_num(_lost(h))),
    (
        "logsumexp of a mask",
        lambda h: jax.nn.logsumexp(_masked(h), -1, keepdims=True),
    ),
    ("unused NaN", lambda h: (jnp.log(-1 - jnp.abs(h)), h)[1]),
    ("masked log of negatives", lambda h: jnp.where(h > 0, jnp.log(h), 0.0)),
)


class Around(nn.Module):
    """The function between two layers."""

    def __init__(self, run: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.one, self.two, self._run = nn.Linear(4, 6), nn.Linear(6, 3), run

    def forward(self, x: Tensor) -> Tensor:
        """The answer."""
        h = self._run(self.one(x))
        return self.two(h.expand(-1, 6) if h.shape[1] == 1 else h)


def cases() -> Iterator[Case]:
    """Every case."""
    for name, run, op, phase in TORCH:
        yield Case(name, "torch", run, tuple(op.split()), phase)
    for name, run, op, phase in JAX:
        yield Case(name, "jax", run, tuple(op.split()), phase)
    for name, run in TORCH_FINE:
        yield Case(name, "torch", run)
    for name, run in JAX_FINE:
        yield Case(name, "jax", run)


def asked(case: Case) -> dict[str, Any]:
    """The arguments of a check."""
    x = np.random.default_rng(3).normal(size=(32, 4)).astype(np.float32)
    if case.backend == "torch":
        return {
            "model": None,
            "make": lambda: Around(case.run),
            "loss": lambda m, b: m(b).square().mean(),
            "batch": torch.tensor(x),
        }

    def make(seed: int) -> Any:
        rng = np.random.default_rng(seed)
        draw = lambda *shape: jnp.asarray(rng.normal(0, 0.5, shape), jnp.float32)  # noqa: E731
        return {"one": {"w": draw(4, 6), "b": draw(6)}, "two": {"w": draw(6, 3), "b": draw(3)}}

    def loss(params: Any, batch: Any) -> Any:
        h = case.run(batch @ params["one"]["w"] + params["one"]["b"])
        h = jnp.broadcast_to(h, (len(h), 6)).astype(jnp.float32)
        return jnp.mean(jnp.square(h @ params["two"]["w"] + params["two"]["b"]))

    return {"model": None, "make": make, "loss": loss, "batch": jnp.asarray(x)}
