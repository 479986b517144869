"""Functions whose derivative is wrong in one way, for each framework."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import torch

from corpora.case import Case
from corpora.mutants import Kind

LEAST = {8: 1e-5, 4: 1e-2}  # relative size of an error that counts, by bytes of a real number
Made = tuple[Callable[..., Any], Callable[..., Any] | None, int]


def mutant(case: Case, kind: Kind, seed: int) -> Made | None:
    """Function, hand-written vjp or None, and the wrong input; None where it does not apply."""
    if case.backend not in kind.frameworks:
        return None
    try:
        spot = _spot(case, kind, seed)
    except Exception:  # the true derivative does not exist there
        return None
    if spot is None:
        return None
    made = {"torch": _torch, "jax": _jax, "numpy": _numpy}[case.backend](case, kind, seed)
    return (*made, spot)


def _spot(case: Case, kind: Kind, seed: int) -> int | None:
    """The input whose gradient the mutation changes most; None where it changes too little."""
    outputs = outputs_of(case, case.inputs)
    rng = np.random.default_rng(seed + 1)
    weights = [_random(y, rng) for y in outputs]
    true = true_vjp(case, case.inputs, weights)
    if not all(np.isfinite(g).all() for g in true):
        return None
    least = _least([as_numpy(x) for x in case.inputs] + outputs)
    if kind.name == "not contiguous":
        sizes = [np.linalg.norm(g) for g in true]
        return int(np.argmax(sizes)) if max(y.size for y in outputs) > 1 and any(sizes) else None
    if kind.name == "second order":
        beside = [x * 1.001 + 1e-4 for x in case.inputs]
        moved = true_vjp(case, beside, weights)
        sizes = [np.linalg.norm(b - a) for a, b in zip(true, moved, strict=True)]
        return int(np.argmax(sizes)) if max(sizes) > least * np.linalg.norm(true[0]) else None
    if kind.name == "cotangent ignored":
        wrong = true_vjp(case, case.inputs, [np.ones_like(w) for w in weights])
    else:
        changed = kind.change(true, [as_numpy(x) for x in case.inputs], seed)
        if changed is None:
            return None
        wrong = changed
    shares = [
        np.linalg.norm(b - a) / np.linalg.norm(a) if np.linalg.norm(a) else 0.0
        for a, b in zip(true, wrong, strict=True)
    ]
    return int(np.argmax(shares)) if max(shares) >= 0.99 * least else None


def _least(arrays: list[np.ndarray]) -> float:
    return max(LEAST.get(np.real(x).dtype.itemsize, 1.0) for x in arrays if x.dtype.kind in "fc")


def _random(y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    draw = rng.standard_normal(y.shape)
    if np.iscomplexobj(y):
        draw = draw + 1j * rng.standard_normal(y.shape)
    return draw.astype(y.dtype)


def as_numpy(x: Any) -> np.ndarray:
    """The numbers of an array of any framework."""
    if isinstance(x, torch.Tensor):
        return x.detach().resolve_conj().resolve_neg().cpu().numpy()
    return np.asarray(x)


def outputs_of(case: Case, inputs: Any) -> list[np.ndarray]:
    """The outputs that have a derivative, flat."""
    if case.backend == "torch":
        return [as_numpy(y) for y in _recorded(case, inputs)[1]]
    leaves = jax.tree.leaves(case.function(*inputs))
    return [as_numpy(y) for y in leaves]


def _recorded(case: Case, inputs: Any) -> tuple[list[Any], list[Any]]:
    with torch.enable_grad():
        own = [x.detach().clone().requires_grad_() for x in inputs]
        leaves = torch.utils._pytree.tree_leaves(case.function(*own))
    return own, [y for y in leaves if isinstance(y, torch.Tensor) and y.requires_grad]


def true_vjp(case: Case, inputs: Any, weights: list[np.ndarray]) -> list[np.ndarray]:
    """The true gradient, one array for each input."""
    if case.backend == "numpy":
        w = weights[0] if len(weights) == 1 else weights
        return [np.asarray(g) for g in case.vjp(w, *inputs)]  # type: ignore[misc]
    if case.backend == "jax":
        outputs, pull = jax.vjp(case.function, *inputs)
        shaped = jax.tree.unflatten(
            jax.tree.structure(outputs),
            [
                jax.numpy.asarray(w, y.dtype)
                for w, y in zip(weights, jax.tree.leaves(outputs), strict=True)
            ],
        )
        return [np.asarray(g) for g in pull(shaped)]
    own, outputs = _recorded(case, inputs)
    pairs = zip(weights, outputs, strict=True)
    wide = [torch.from_numpy(np.array(w)).to(y.device) for w, y in pairs]
    grads = torch.autograd.grad(outputs, own, wide, allow_unused=True)
    pulled = zip(grads, own, strict=True)
    return [as_numpy(torch.zeros_like(x) if g is None else g) for g, x in pulled]


def _changed(
    case: Case, kind: Kind, seed: int, inputs: Any, weights: list[np.ndarray], is_strided: bool
) -> list[np.ndarray]:
    if kind.name == "cotangent ignored":
        weights = [np.ones_like(w) for w in weights]
    true = true_vjp(case, inputs, weights)
    if kind.name == "not contiguous":
        return [1.5 * g if is_strided else g for g in true]
    return kind.change(true, [as_numpy(x) for x in inputs], seed) or true


def _torch(case: Case, kind: Kind, seed: int) -> tuple[Callable[..., Any], None]:
    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *xs: Any) -> Any:
            ctx.save_for_backward(*xs)
            _, outputs = _recorded(case, xs)
            detached = tuple(y.detach().clone() for y in outputs)
            return detached if len(detached) > 1 else detached[0]

        @staticmethod
        def backward(ctx: Any, *ws: Any) -> Any:
            strided = any(not w.is_contiguous() for w in ws)
            weights = [as_numpy(w) for w in ws]
            xs = ctx.saved_tensors
            grads = _changed(case, kind, seed, xs, weights, strided)
            return tuple(
                torch.from_numpy(np.array(g)).to(x.device, x.dtype).reshape(x.shape)
                for g, x in zip(grads, xs, strict=True)
            )

    return Wrong.apply, None


def _jax(case: Case, kind: Kind, seed: int) -> tuple[Callable[..., Any], None]:
    wrong = jax.custom_vjp(case.function)

    def backward(xs: Any, w: Any) -> Any:
        if kind.name == "second order":
            fixed = jax.lax.stop_gradient(xs)
            return jax.vjp(case.function, *fixed)[1](w)
        weights = [np.asarray(leaf) for leaf in jax.tree.leaves(w)]
        grads = _changed(case, kind, seed, xs, weights, False)
        return tuple(jax.numpy.asarray(g, x.dtype) for g, x in zip(grads, xs, strict=True))

    wrong.defvjp(lambda *xs: (case.function(*xs), xs), backward)
    return wrong, None


def _numpy(case: Case, kind: Kind, seed: int) -> tuple[Callable[..., Any], Callable[..., Any]]:
    def vjp(w: Any, *xs: Any) -> Any:
        return _changed(case, kind, seed, xs, [np.asarray(w)], False)

    return case.function, vjp
