"""What PyTorch asks of a hand-written backward, beside right numbers.

Cotangents come in any layout, some inputs are frozen, a graph is walked twice; a backward must
give the same gradients then, and leave alone what it was handed (torch documentation, "Extending
torch.autograd").
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from pytest_gradcheck.backends.protocol import Array, Flat, Variant
from pytest_gradcheck.backends.torch_sparse import dense
from pytest_gradcheck.errors import brief

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

Flattened = Callable[[Sequence[Any]], Flat]
MOST_NODES = 10_000  # of a graph that is searched for custom functions
MOST_INPUTS = 8  # that are differentiated alone, evenly chosen among more
WRITES = "the backward writes into {}"
REGISTERED = "torch._library.autograd"  # where torch.library puts the user's own backward


def variants(f: Flattened, point: Sequence[Any], cotangents: Sequence[Any]) -> Iterator[Variant]:
    """The gradient in every other way, where a custom function takes part in it."""
    run = _Run(f, point, cotangents)
    nodes = custom_nodes(run.outputs)
    if not nodes:
        return
    yield from _twice(run, nodes)
    yield from _layouts(run)
    yield from _alone(run)


def custom_nodes(outputs: Sequence[Any]) -> list[Any]:
    """The steps of the graph behind outputs that somebody wrote, outside of torch itself."""
    pending = [getattr(y, "grad_fn", None) for y in outputs]
    seen: set[Any] = set()
    found = []
    while pending and len(seen) < MOST_NODES:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        pending.extend(parent for parent, _ in node.next_functions)
        if _is_custom(node):
            found.append(node)
    return found


class _Run:
    """A function with cotangents for those of its outputs that have a graph."""

    def __init__(self, f: Flattened, point: Sequence[Any], cotangents: Sequence[Any]) -> None:
        self.f, self.point = f, point
        self.inputs, leaves = self._ran(range(len(point)))
        self.spots = [
            m
            for m, (y, w) in enumerate(zip(leaves, cotangents, strict=True))
            if w is not None and isinstance(y, Tensor) and y.requires_grad
        ]
        self.outputs = [leaves[m] for m in self.spots]
        self.weights: list[Tensor] = [cotangents[m].contiguous().clone() for m in self.spots]

    def _ran(self, recorded: Sequence[int]) -> tuple[list[Tensor], list[Any]]:
        with torch.inference_mode(False), torch.enable_grad():
            inputs = [x.detach().clone() for x in self.point]
            for i in recorded:
                inputs[i].requires_grad_()
            return inputs, [leaf.value for leaf in self.f(inputs).leaves]

    def again(self, weights: Sequence[Tensor]) -> list[Array | None]:
        """Gradients from the graph that is there; it stays."""
        grads = torch.autograd.grad(
            self.outputs, self.inputs, list(weights), retain_graph=True, allow_unused=True
        )
        return [None if g is None else dense(g).detach() for g in grads]

    def fresh(self, weights: Sequence[Tensor], recorded: Sequence[int]) -> list[Array | None]:
        """Gradients from a new graph in which only some inputs are recorded."""
        inputs, leaves = self._ran(recorded)
        pairs = [
            (leaves[m], w)
            for m, w in zip(self.spots, weights, strict=True)
            if leaves[m].requires_grad
        ]
        wanted = [inputs[i] for i in recorded]
        if not pairs:
            return [None] * len(wanted)
        outputs, kept = zip(*pairs, strict=True)
        grads = torch.autograd.grad(outputs, wanted, kept, allow_unused=True)
        return [None if g is None else dense(g).detach() for g in grads]


def _is_custom(node: Any) -> bool:
    if isinstance(node, torch.autograd.function.BackwardCFunction):
        owner = getattr(node, "_forward_cls", type(node))
        module = owner.__module__
        return not module.startswith("torch.") or module == REGISTERED
    return "CppNode" in type(node).__name__


def _twice(run: _Run, nodes: Sequence[Any]) -> Iterator[Variant]:
    """Two walks over one graph: equal, and nothing that they were handed has changed."""
    kept = [w.clone() for w in run.weights]
    saved = [tensor for node in nodes for tensor in _saved(node)]
    copies = [tensor.detach().clone() for tensor in saved]
    points = [x.detach().clone() for x in run.inputs]
    with _watched(nodes) as told:
        first = run.again(run.weights)
    yield from told
    for what, code, before, after in (
        ("its cotangent", "backward-mutates-cotangent", kept, run.weights),
        ("an input", "backward-mutates-input", points, run.inputs),
        ("a saved tensor", "backward-mutates-saved", copies, saved),
    ):
        if not all(map(_identical, before, after)):
            yield Variant(code, "", breach=WRITES.format(what))
    try:
        second = run.again(kept)
    except Exception as error:  # the user's own backward; told, not hidden
        yield Variant(
            "backward-second-call",
            "",
            breach=f"the backward {_raised(error, 'when it runs a second time over one graph')}",
        )
        return
    yield Variant("backward-second-call", "from a second backward over one graph", first, second)


def _saved(node: Any) -> list[Tensor]:
    try:
        return [t for t in node.saved_tensors if isinstance(t, Tensor) and t.numel()]
    except (AttributeError, RuntimeError):  # a node of C++, or freed
        return []


def _identical(a: Tensor, b: Tensor) -> bool:
    same = a.shape == b.shape and a.layout == b.layout
    return bool(same and (a.layout != torch.strided or torch.allclose(a, b, 0, 0, equal_nan=True)))


def _raised(error: BaseException, what: str) -> str:
    return f"raises {type(error).__name__} {what}: {brief(str(error), 80)}"


@contextmanager
def _watched(nodes: Sequence[Any]) -> Iterator[list[Variant]]:
    """Sees the gradients as a backward returns them, before the engine casts them."""
    told: list[Variant] = []
    owners = {node._forward_cls for node in nodes if hasattr(node, "_forward_cls")}
    kept = {owner: owner.__dict__.get("backward") for owner in owners}
    try:
        for owner in (owner for owner, backward in kept.items() if backward is not None):
            owner.backward = staticmethod(_telling(owner, owner.backward, told))
        yield told
    finally:
        for owner, backward in kept.items():
            if backward is not None:
                owner.backward = backward


def _telling(owner: Any, backward: Any, told: list[Variant]) -> Any:
    def seen(ctx: Any, *weights: Any) -> Any:
        kept = [w.detach().clone() if isinstance(w, Tensor) else None for w in weights]
        grads = backward(ctx, *weights)
        pairs = [(v, w) for v, w in zip(kept, weights, strict=True) if v is not None]
        if not all(_identical(v, w) for v, w in pairs):
            told.append(
                Variant("backward-mutates-cotangent", "", breach=WRITES.format("its cotangent"))
            )
        wanted = [edge for edge in ctx.next_functions if edge[0] is not None]
        needed = [
            g
            for g, is_needed in zip(_listed(grads), ctx.needs_input_grad, strict=False)
            if is_needed
        ]
        for g, (node, index) in zip(needed, wanted, strict=False):
            breach = _coarser(g, node, index)
            if breach:
                told.append(Variant("backward-dtype", "", breach=f"{owner.__name__} {breach}"))
        return grads

    return seen


def _listed(grads: Any) -> list[Any]:
    return list(grads) if isinstance(grads, (tuple, list)) else [grads]


def _coarser(g: Any, node: Any, index: int) -> str:
    variable = getattr(node, "variable", None)
    metadata = variable if variable is not None else node._input_metadata[index]
    if not isinstance(g, Tensor) or torch.promote_types(g.dtype, metadata.dtype) == g.dtype:
        return ""
    names = [str(dtype).removeprefix("torch.") for dtype in (g.dtype, metadata.dtype)]
    return f"returns a gradient of {names[0]} for an input of {names[1]}"


def _layouts(run: _Run) -> Iterator[Variant]:
    try:
        expected = run.again(run.weights)
    except Exception:  # told by the second walk over the graph
        return
    for what, made in (
        ("for a cotangent that starts inside its memory", _offset),
        ("for a cotangent that is not contiguous", _strided),
        ("for a cotangent with its axes stored in another order", _transposed),
    ):
        weights = [made(w) for w in run.weights]
        if any(not w.is_contiguous() or w.storage_offset() for w in weights):
            yield _compared(run, "backward-layout", what, expected, weights)
    for what, made in (
        ("for an expanded cotangent (that of a sum)", _expanded),
        ("for a cotangent whose elements overlap in memory", _overlapping),
    ):
        weights = [made(w) for w in run.weights]
        if any(not w.is_contiguous() for w in weights):
            plain = run.again([w.contiguous() for w in weights])
            yield _compared(run, "backward-layout", what, plain, weights)


def _compared(
    run: _Run, code: str, what: str, expected: Sequence[Any], weights: Sequence[Tensor]
) -> Variant:
    try:
        return Variant(code, what, expected, run.again(weights))
    except Exception as error:  # the user's own backward; told, not hidden
        return Variant(code, what, breach=f"the backward {_raised(error, what)}")


def _offset(w: Tensor) -> Tensor:
    # What lies before the first element is no number: who reads from the start gets it.
    wide = torch.full((w.numel() + 3,), float("nan"), dtype=w.dtype, device=w.device)
    wide[3:] = w.reshape(-1)
    return wide[3:].view(w.shape)


def _strided(w: Tensor) -> Tensor:
    # What lies between the elements is no number: who reads past the strides gets it.
    wide = torch.full((*w.shape, 2), float("nan"), dtype=w.dtype, device=w.device)
    wide[..., 0] = w
    return wide[..., 0]


def _transposed(w: Tensor) -> Tensor:
    if w.dim() < 2:
        return w
    return w.transpose(-1, -2).contiguous().transpose(-1, -2)


def _expanded(w: Tensor) -> Tensor:
    return torch.full((), 0.75, dtype=w.dtype, device=w.device).expand(w.shape)


def _overlapping(w: Tensor) -> Tensor:
    # That of overlapping windows: neighbouring rows share all but one of their elements.
    return w if w.dim() < 2 else w.reshape(-1).as_strided(w.shape, [1] * w.dim())


def _alone(run: _Run) -> Iterator[Variant]:
    count = len(run.inputs)
    if count == 1:
        return
    together = run.fresh(run.weights, range(count))
    for i in sorted({k * count // MOST_INPUTS for k in range(MOST_INPUTS)}):
        what = "where the other inputs are frozen"
        try:
            (got,) = run.fresh(run.weights, [i])
        except Exception as error:  # the user's own backward; told, not hidden
            breach = f"the backward {_raised(error, what)}"
            yield Variant("backward-input-alone", what, breach=breach)
            continue
        expected: list[Any] = [None] * count
        found: list[Any] = [None] * count
        expected[i], found[i] = together[i], got
        yield Variant("backward-input-alone", what, expected, found)
