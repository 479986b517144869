"""True gradients made wrong, one kind at a time; on arrays of NumPy, whatever the framework."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Gradients = list[np.ndarray]


@dataclass(frozen=True)
class Kind:
    """A way of being wrong.

    Args:
        name: As printed.
        code: The finding that names it.
        change: (gradients, inputs, seed) -> wrong gradients, or None where it does not apply.
        in_float32: Whether the error has 1 % or more.
        frameworks: Where it can happen.
        place: ``input`` or ``element``: what a finding should name.
    """

    name: str
    code: str
    change: Callable[[Gradients, Gradients, int], Gradients | None]
    in_float32: bool = True
    frameworks: tuple[str, ...] = ("torch", "jax", "numpy")
    place: str = "input"


def largest(gradients: Gradients) -> int:
    """The input with the largest gradient."""
    return int(np.argmax([np.linalg.norm(g) for g in gradients]))


def element(g: np.ndarray, seed: int) -> int:
    """An element that is not small beside the others."""
    sizes = np.abs(g).ravel()
    return int(np.random.default_rng(seed).choice(np.flatnonzero(sizes >= 0.1 * sizes.max())))


def _with(gradients: Gradients, i: int, g: np.ndarray) -> Gradients:
    return [g if k == i else other for k, other in enumerate(gradients)]


def _scaled(factor: float) -> Callable[[Gradients, Gradients, int], Gradients]:
    return lambda gs, xs, seed: _with(gs, seed % len(gs), gs[seed % len(gs)] * factor)


def _one(factor: float) -> Callable[[Gradients, Gradients, int], Gradients | None]:
    def change(gs: Gradients, xs: Gradients, seed: int) -> Gradients | None:
        i = seed % len(gs)
        if xs[i].size < 2:
            return None
        # The element is chosen by the input, so that it is the same for every cotangent.
        spot = int(np.random.default_rng(seed).integers(xs[i].size))
        wrong = gs[i].copy()
        wrong.reshape(-1)[spot] *= factor
        return _with(gs, i, wrong)

    return change


def _rolled(gs: Gradients, xs: Gradients, seed: int) -> Gradients | None:
    i = seed % len(gs)
    return _with(gs, i, np.roll(gs[i].reshape(-1), 1).reshape(gs[i].shape))


def _transposed(gs: Gradients, xs: Gradients, seed: int) -> Gradients | None:
    square = [i for i, g in enumerate(gs) if g.ndim == 2 and g.shape[0] == g.shape[1] > 1]
    return _with(gs, square[0], gs[square[0]].T.copy()) if square else None


def _offset(gs: Gradients, xs: Gradients, seed: int) -> Gradients:
    i = seed % len(gs)
    return _with(gs, i, gs[i] + 0.1)


def _negative(gs: Gradients, xs: Gradients, seed: int) -> Gradients | None:
    i = seed % len(gs)
    mask = np.real(xs[i]) < 0
    # All of them are a factor, and one of them is an element: mistakes of other names.
    if not 1 < mask.sum() < mask.size:
        return None
    return _with(gs, i, np.where(mask, 1.5 * gs[i], gs[i]))


def _swapped(gs: Gradients, xs: Gradients, seed: int) -> Gradients | None:
    for i in range(len(gs)):
        for k in range(i + 1, len(gs)):
            if gs[i].shape == gs[k].shape and gs[i].dtype == gs[k].dtype:
                return _with(_with(gs, i, gs[k]), k, gs[i])
    return None


def _same(gs: Gradients, xs: Gradients, seed: int) -> Gradients:
    return gs  # wrong in another way: see checkers.py


HERE = ("torch", "jax")
KINDS = (
    Kind("sign", "gradient-sign", _scaled(-1.0)),
    Kind("x2", "gradient-factor", _scaled(2.0)),
    Kind("1 %", "gradient-factor", _scaled(1.01)),
    Kind("0.1 %", "gradient-factor", _scaled(1.001), in_float32=False),
    Kind("1e-5", "gradient-factor", _scaled(1 + 1e-5), in_float32=False),
    Kind("zeroed input", "gradient-zero", _scaled(0.0)),
    Kind("one element x1.5", "gradient-element", _one(1.5), place="element"),
    Kind("one element x1.05", "gradient-element", _one(1.05), place="element"),
    Kind("one element zero", "gradient-element", _one(0.0), place="element"),
    Kind("rolled", "gradient-rolled", _rolled),
    Kind("transposed", "gradient-transposed", _transposed),
    Kind("constant added", "gradient-offset", _offset),
    Kind("cotangent ignored", "gradient-cotangent", _same),
    Kind("not contiguous", "backward-layout", _same, frameworks=("torch",)),
    Kind("negative inputs", "gradient-masked", _negative),
    Kind("second order", "wrong-second-order", _same, frameworks=HERE),
    Kind("swapped inputs", "gradient-swapped", _swapped),
)
