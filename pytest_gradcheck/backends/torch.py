"""PyTorch: tensors on any device, functions, modules with other tensors put in their places."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pytest_gradcheck.backends import (
    torch_contracts,
    torch_modes,
    torch_refused,
    torch_sparse,
    tree,
)
from pytest_gradcheck.backends.protocol import Array, Flat, Function, Guard, Leaf, Variant
from pytest_gradcheck.backends.torch_asserts import asserted
from pytest_gradcheck.backends.torch_functional import Functional
from pytest_gradcheck.backends.torch_state import guard
from pytest_gradcheck.errors import UsageError

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these


class TorchBackend:
    """``torch.Tensor`` and ``torch.nn.Module``."""

    name = "torch"

    def flatten(self, tree_: Any) -> Flat:
        """Take containers apart; a module gives its parameters and rebuilds to a callable."""
        if isinstance(tree_, Tensor) and tree_.layout == torch.strided:  # the most frequent
            return Flat((_describe("", tree_),), lambda values: values[0])
        padded: dict[int, int] = {}
        describe = functools.partial(_described, padded)
        flat = tree.flatten(tree_, describe, functools.partial(_expand, padded))
        return Flat(flat.leaves, flat.rebuild, isinstance(tree_, nn.Module))

    def evaluate(self, f: Function, point: Sequence[Array]) -> Flat:
        """``f(point)`` taken apart without a graph."""
        with torch.no_grad(), asserted(point):
            return self.flatten(f(point))

    def forward(self, f: Function, point: Sequence[Array]) -> Flat:
        """``f(point)`` with a graph; an output outside the graph is not trainable."""
        with torch.inference_mode(False), torch.enable_grad(), asserted(point):
            inputs = _recorded(point)
            flat = self.flatten(f(inputs))
        leaves = tuple(_cut(leaf) if leaf.dtype else leaf for leaf in flat.leaves)
        has_rules = bool(torch_contracts.custom_nodes([leaf.value for leaf in flat.leaves]))
        return Flat(leaves, flat.rebuild, has_rules=has_rules)

    def vjp(
        self, f: Function, point: Sequence[Array], cotangents: Sequence[Array | None]
    ) -> list[Array | None]:
        """Reverse mode; None for an input that the graph does not reach."""
        with torch.inference_mode(False), torch.enable_grad():
            inputs = _recorded(point)
            outputs = [leaf.value for leaf in self.flatten(f(inputs)).leaves]
            pairs = [
                (y, w)
                for y, w in zip(outputs, cotangents, strict=True)
                if w is not None and isinstance(y, Tensor) and y.requires_grad
            ]
            if not pairs:
                return [None] * len(inputs)
            kept, weights = zip(*pairs, strict=True)
            owned = [w.clone() for w in weights]  # a backward may write into them
            try:
                grads = torch.autograd.grad(kept, inputs, owned, allow_unused=True)
            except RuntimeError as error:
                if (told := torch_refused.refused(error, kept, inputs)) is not None:
                    raise told from error
                raise
        return [None if g is None else torch_sparse.dense(g).detach() for g in grads]

    def jvp(
        self, f: Function, point: Sequence[Array], tangents: Sequence[Array]
    ) -> list[Array | None]:
        """Forward mode by dual numbers; None for an output that the tangents do not reach."""
        forward = torch.autograd.forward_ad
        with (
            warnings.catch_warnings(),
            torch.inference_mode(False),
            torch.enable_grad(),
            forward.dual_level(),
        ):
            # torch loads its own deprecated scripting at the first dual number
            warnings.simplefilter("ignore", DeprecationWarning)
            duals = [
                forward.make_dual(x.detach().clone().requires_grad_(), v)
                for x, v in zip(point, tangents, strict=True)
            ]
            outputs = [leaf.value for leaf in self.flatten(f(duals)).leaves]
            parts = [forward.unpack_dual(y).tangent if _is_real(y) else None for y in outputs]
        return [None if t is None else t.detach() for t in parts]

    def vjps(
        self, f: Function, point: Sequence[Array], stacks: Sequence[Array | None]
    ) -> list[Array | None]:
        """Reverse mode under ``vmap``."""
        return torch_modes.batched(lambda x: self.flatten(f(x)), point, stacks)

    def vjps_each(
        self, f: Function, points: Sequence[Array], stacks: Sequence[Array | None]
    ) -> list[Array | None]:
        """Value and reverse mode under ``vmap``."""
        return torch_modes.each(lambda x: self.flatten(f(x)), points, stacks)

    def gradient(self, f: Function, count: int) -> Function:
        """The gradient with a graph of its own."""
        return torch_modes.gradient(lambda x: self.flatten(f(x)), count)

    def variants(
        self, f: Function, point: Sequence[Array], cotangents: Sequence[Array | None]
    ) -> Iterable[Variant]:
        """Layouts of cotangents, inputs alone, a second backward, and what it may not change."""
        return torch_contracts.variants(lambda x: self.flatten(f(x)), point, cotangents)

    def lowered(self, f: Function, point: Sequence[Array]) -> tuple[str, ...]:
        """What operations return in a lower precision than they are given."""
        return torch_modes.lowered(f, point)

    def uncast(self, f: Function) -> Function:
        """The function under a mode that copies instead of casting to a lower precision."""
        return torch_modes.uncast(f)

    def mode(self, point: Sequence[Array]) -> AbstractContextManager[object]:
        """As they are."""
        return nullcontext()

    def normal(self, like: Array, seed: int) -> Array:
        """Standard normal tensor on the device of another one, from a private generator."""
        generator = torch.Generator(device=like.device).manual_seed(seed)
        # 24 bits are plenty for a direction, and drawn four times as fast as 53
        wide = torch.complex64 if like.is_complex() else torch.float32
        draw = torch.randn(like.shape, generator=generator, dtype=wide, device=like.device)
        # torch draws complex numbers of variance 1 in all; here each part has variance 1
        return (draw * 2**0.5 if wide.is_complex else draw).to(like.dtype)

    def moved(self, x: Array, v: Array, step: float) -> Array:
        """``x + step v``."""
        return torch.add(x, v, alpha=step)

    def inner(self, a: Array, b: Array) -> float:
        """Real part of ``sum(conj(a) * b)`` in float64, on the device; one scalar comes back."""
        if type(a) is type(b) is Tensor and a.dtype is b.dtype is torch.float64:
            return float(torch.dot(a.flatten(), b.flatten()))  # by far the most frequent
        with torch.no_grad():
            left, right = _wide(a).reshape(-1), _wide(b).reshape(-1)
            if left.is_complex() or right.is_complex():
                left, right = left.to(torch.complex128), right.to(torch.complex128)
            product = torch.vdot(left, right)
        return float(product.real if product.is_complex() else product)

    def convert(self, x: Any, dtype: str = "", device: str = "") -> Array:
        """A detached copy, in a precision and on a device where named."""
        wanted: Any = getattr(torch, dtype) if dtype else None
        if not isinstance(x, Tensor):
            return torch.as_tensor(x, dtype=wanted, device=device or None).clone()
        if torch.is_inference_mode_enabled():  # what is made there cannot be differentiated
            with torch.inference_mode(False):
                return self.convert(x, dtype, device)
        if not (dtype or device):
            return x.detach().clone()
        return x.detach().to(dtype=wanted, device=device or None, copy=True)

    def to_numpy(self, x: Array) -> np.ndarray:
        """The numbers on the CPU, in float64 where NumPy lacks the precision."""
        x = x.detach().cpu().resolve_conj().resolve_neg()
        wide: np.ndarray = (_wide(x) if x.dtype in _PROMOTED else x).numpy()
        return wide

    def guard(self, *roots: Any) -> AbstractContextManager[Guard]:
        """Hold generators, modules reachable from the roots, default dtype and grad mode."""
        return guard(roots)


def _described(padded: Mapping[int, int], path: str, value: Any) -> Leaf:
    """A leaf, with the padding row that the modules opened so far say it has."""
    leaf = _describe(path, value)
    if isinstance(value, nn.Parameter) and value._backward_hooks:
        leaf = replace(leaf, hooked=True)
    return replace(leaf, padding=(padded[id(value)],)) if id(value) in padded else leaf


def _expand(padded: dict[int, int], node: Any) -> tuple[list[tuple[str, Any]], tree.Rebuild] | None:
    if torch_sparse.is_sparse(node):
        return torch_sparse.opened(node)
    if not isinstance(node, nn.Module):
        return None
    if isinstance(node, torch.jit.ScriptModule):
        raise UsageError(
            "the parameters of a scripted module cannot be exchanged: check the module that was "
            "scripted, or the inputs alone by a function that calls it"
        )
    if any(map(nn.parameter.is_lazy, [*node.parameters(), *node.buffers()])):
        raise UsageError("the module has parameters without a shape: run it once before the check")
    parameters = dict(node.named_parameters())
    parts = list(node.modules())
    embeddings = [p for p in parts if isinstance(p, (nn.Embedding, nn.EmbeddingBag))]
    padded |= {id(p.weight): p.padding_idx for p in embeddings if p.padding_idx is not None}
    return list(parameters.items()), functools.partial(Functional, node, parts, parameters)


def _is_real(value: Any) -> bool:
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())


def _recorded(point: Sequence[Array]) -> list[Tensor]:
    # The copies are made here, so that a function that writes into its input writes into a copy of
    # a leaf, as it would in training.
    return [x.detach().clone().requires_grad_() for x in point]


def _cut(leaf: Leaf) -> Leaf:
    value: Tensor = leaf.value
    return replace(leaf, value=value.detach(), trainable=value.requires_grad)


def _describe(path: str, value: Any) -> Leaf:
    if not _is_real(value) or value.layout != torch.strided:
        return Leaf(path, value)
    if value.is_meta:
        raise UsageError(
            f"{path or 'the input'} is on the meta device and has no numbers; move it to a real one"
        )
    trainable = value.requires_grad or not isinstance(value, nn.Parameter)
    return Leaf(
        path, value, _named(value.dtype), tuple(value.shape), _named(value.device), trainable
    )


@functools.cache
def _named(kind: torch.dtype | torch.device) -> str:
    return str(kind).removeprefix("torch.")


_PROMOTED = {torch.float16: torch.float32, torch.bfloat16: torch.float32}


def _wide(x: Any) -> Tensor:
    x = x.detach() if isinstance(x, Tensor) else torch.as_tensor(x, device="cpu")
    if x.device.type == "mps":  # no float64 there
        return x.to(torch.complex64 if x.is_complex() else torch.float32)
    return x.to(torch.complex128 if x.is_complex() else torch.float64)


BACKEND = TorchBackend()
