"""One forward and backward pass of a PyTorch model, seen layer by layer.

Hooks stand on modules after their forward and on output tensors, never on inputs or on the
backward of a module. Compiled modules are seen at their boundary, checkpointed ones in their first
forward; what they compute again in the backward is not counted twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from pytest_gradcheck.backends import torch_gates, tree
from pytest_gradcheck.backends.layers import (
    BOUNDED,
    FLAT,
    RECTIFIERS,
    SIGMOIDS,
    Change,
    Kind,
    Pass,
)
from pytest_gradcheck.backends.protocol import Leaf
from pytest_gradcheck.backends.torch_loss import Loss, ReentrantError, accumulated, pulled, value_of
from pytest_gradcheck.backends.torch_ops import Ops
from pytest_gradcheck.backends.torch_records import Seen, read
from pytest_gradcheck.backends.torch_sizes import contrast, parameters, size, sizes
from pytest_gradcheck.backends.torch_slopes import TWO_SIDED, unit_axis
from pytest_gradcheck.backends.torch_time import Times

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these


class Watch:
    """Follows one forward and backward pass.

    Args:
        model: The model; its modules give the names.
        change: The intervention, if any.
        last: Number of the last product with weights, where a change needs to know.
    """

    def __init__(self, model: nn.Module, change: Change | None = None, last: int = -1) -> None:
        self.seen: list[Seen] = []
        self._model = model
        self._path: list[tuple[str, bool]] = []
        self._latest: Any = None
        self._is_backward = False
        self._again: Iterator[Seen] = iter(())
        self._ops = Ops(self._operation, change, last)
        self._stack = ExitStack()
        self._has_compiled = any(hasattr(part, "_orig_mod") for part in model.modules())
        self._change = change
        self.source: Tensor | None = None
        self.is_learned = False
        self.is_half = False
        self._answer: tuple[Tensor, int] | None = None  # of the last product, and axis of units
        self.times = Times()

    def __enter__(self) -> Watch:
        for name, part, is_leaf in watched(self._model):
            enter, leave = self._entering(name, is_leaf), self._leaving(name, part, is_leaf)
            self._stack.callback(part.register_forward_pre_hook(enter).remove)
            self._stack.callback(part.register_forward_hook(leave).remove)
            if isinstance(part, nn.RNNCellBase):
                hook = part.register_forward_hook(self._stepping, with_kwargs=True)
                self._stack.callback(hook.remove)
            if isinstance(part, nn.RNNBase):
                self._stack.callback(self.times.watch(name, part))
        if not self._has_compiled:
            self._stack.enter_context(self._ops)
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()
        self._latest = None

    @property
    def contrast(self) -> float:
        """Spread of the answers over the samples, over their size."""
        return math.nan if self._answer is None else contrast(*self._answer)

    def backward(self) -> None:
        """The forward pass is over: what is called from now on is computed again."""
        self._is_backward = True
        self._again = (seen for seen in list(self.seen) if not seen.gradients)
        self._path.clear()
        if self._change is None:
            self._ops.restart()

    def _entering(self, name: str, is_leaf: bool) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any) -> None:
            self._path.append((name, is_leaf))
            is_first = self.source is None and not self._is_backward
            if is_first and isinstance(module, nn.RNNBase) and isinstance(args[0], Tensor):
                self.source = size(args[0])

        return hook

    def _leaving(self, name: str, part: nn.Module, is_leaf: bool) -> Callable[..., None]:
        kind = type(getattr(part, "_orig_mod", part)).__name__

        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if self._path:
                self._path.pop()
            if not self._is_backward:
                self._module(name, kind, is_leaf, output)
            if not self._is_backward and isinstance(module, nn.RNNBase) and len(args) == 1:
                self.seen[-1].saturated = torch_gates.saturated(module, self._ops.recurrent)

        return hook

    def _stepping(self, cell: nn.RNNCellBase, args: Any, named: Any, output: Any) -> None:
        given = [*args, *(named[key] for key in ("input", "hx") if key in named)]
        if not self._is_backward and self.seen:
            self.seen[-1].saturated = torch_gates.of_cell(cell, *given)

    def _module(self, name: str, kind: str, is_leaf: bool, output: Any) -> None:
        tensors = [output] if isinstance(output, Tensor) else list(_tensors(output))
        tensors = [t for t in tensors if t.is_floating_point() and t.numel()]
        tensors = [t for t in tensors if not torch._C._functorch.is_functorch_wrapped_tensor(t)]
        if not tensors:
            return
        if tensors[0] is self._latest:
            latest = self.seen[-1]
            if is_leaf and latest.is_op and latest.name == f"{name}.{latest.op}".lstrip("."):
                latest.name, latest.is_op = name or kind, False
            return
        seen = self._noted(name or kind, "other", kind, tensors[0], -1)
        for extra in tensors[1:]:
            self._hook(seen, extra, sizes(extra, extra.ndim - 1), extra.ndim - 1)

    def _operation(
        self, kind: Kind, op: str, given: Any, output: Any, index: int, share: Tensor | None
    ) -> None:
        if self._is_backward or not isinstance(output, Tensor) or not output.numel():
            return
        if torch._C._functorch.is_functorch_wrapped_tensor(output):
            return  # inside vmap or a transform of torch.func: no number can be read there
        # A function has no name of its own: it goes by the layer that feeds it, else by its place.
        fed_by = None
        if isinstance(given, Tensor) and given is not output:
            is_latest = bool(self.seen) and given is self._latest
            with torch._C.DisableTorchFunction():
                fed_by = self.seen[-1].activation if is_latest else size(given)
            if (kind, index) == ("linear", 0) and self.source is None:
                self.source = fed_by
                self.is_learned = given.requires_grad and not given.is_leaf
        path = self._path[-1][0] if self._path else ""
        is_leaf = bool(self._path) and self._path[-1][1]
        fed = bool(self.seen) and (given is self._latest or self.seen[-1].kind == "linear")
        feeder = self.seen[-1].name if kind == "activation" and fed else ""
        if feeder and not is_leaf:
            path = feeder
        seen = self._noted(f"{path}.{op}".lstrip("."), kind, op, output, index)
        seen.is_op, seen.given, seen.feeder = True, fed_by, feeder
        if share is not None and (op in TWO_SIDED or op == "softmax"):
            seen.saturated = share
        elif share is not None:
            seen.dead = share

    def _noted(self, name: str, kind: Kind, op: str, x: Tensor, index: int) -> Seen:
        axis = unit_axis(kind, op, x)
        with torch._C.DisableTorchFunction(), torch.no_grad():
            here = sizes(x, axis)
            width = x.shape[axis] if x.ndim else 1
            seen = Seen(name, kind, op, x.numel(), width, index, size(here))
            others = [a for a in range(x.ndim) if a != axis]
            if op in RECTIFIERS and others:
                seen.dead = (~(x != 0).any(others)).double().mean()
            elif op in BOUNDED and others:
                slope = 4 * x * (1 - x) if op in SIGMOIDS else 1 - x * x
                seen.saturated = (slope.double().mean(others) < FLAT).double().mean()
        self.seen.append(seen)
        self._answer = (x.detach(), axis) if kind == "linear" else self._answer
        self._hook(seen, x, here, axis)
        self._latest = x
        return seen

    def _hook(self, seen: Seen, x: Tensor, here: Tensor, axis: int) -> None:
        if not x.requires_grad:
            return
        self.is_half |= x.dtype == torch.float16
        if x.grad_fn is not None:
            seen.nodes.append(x.grad_fn)

        def hook(gradient: Tensor) -> None:
            with torch.no_grad():
                there = sizes(gradient, axis)
                seen.gradients.append(size(there))
                seen.flows.append(size(here * there))

        x.register_hook(hook)


def measure(
    model: nn.Module,
    loss: Loss,
    batch: Any,
    change: Change | None = None,
    factor: float = 1.0,
    last: int = -1,
) -> tuple[Pass, dict[str, Tensor | None]]:
    """One pass, and the gradients of the parameters by name.

    Raises:
        UsageError: The loss raises, or is no scalar tensor.
    """
    try:
        return _measured(model, loss, batch, change, factor, last, pulled)
    except ReentrantError:
        return _measured(model, loss, batch, change, factor, last, accumulated)


def _measured(
    model: nn.Module,
    loss: Loss,
    batch: Any,
    change: Change | None,
    factor: float,
    last: int,
    pull: Callable[[Tensor, Sequence[Tensor]], list[Tensor | None]],
) -> tuple[Pass, dict[str, Tensor | None]]:
    with torch.inference_mode(False), torch.enable_grad(), Watch(model, change, last) as watch:
        value = value_of(loss, model, batch)
        watch.backward()
        names = [name for name, p in model.named_parameters() if p.requires_grad]
        wanted = [p for p in model.parameters() if p.requires_grad]
        scaled = value * factor if factor != 1.0 else value
        gradients = pull(scaled, [*wanted, *watch.times.leaves])
    by_name: dict[str, Tensor | None] = dict(zip(names, gradients, strict=False))
    return Pass(
        loss=float(value.detach()),
        layers=tuple(read(watch.seen)),
        parameters=parameters(model, by_name),
        fades=watch.times.fades(),
        contrast=watch.contrast,
        is_half=watch.is_half,
        source=math.nan if watch.source is None else float(watch.source),
        is_learned=watch.is_learned,
    ), by_name


def watched(model: nn.Module) -> Iterator[tuple[str, nn.Module, bool]]:
    """Modules by path, nothing inside a compiled one; and whether each has no children."""
    inside: set[int] = set()
    for name, part in model.named_modules():
        if id(part) in inside or isinstance(part, (nn.ModuleList, nn.ModuleDict)):
            continue
        if hasattr(part, "_orig_mod"):
            inside |= {id(p) for p in part.modules()} - {id(part)}
            yield name, part, True
        else:
            yield name, part, not any(True for _ in part.children())


def _tensors(output: Any) -> Iterator[Tensor]:
    leaves = tree.flatten(output, Leaf, lambda node: None).leaves
    return (leaf.value for leaf in leaves if isinstance(leaf.value, Tensor))
