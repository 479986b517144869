"""PyTorch: what a model puts out in a step, kept to answer the same calls once more."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pytest_gradcheck.backends import torch_moments, torch_values, tree
from pytest_gradcheck.backends.torch_arrivals import Arrivals
from pytest_gradcheck.backends.torch_holdings import Holdings
from pytest_gradcheck.backends.torch_patches import replaced

MOST = 1 << 24  # numbers that are kept, for a copy of a moment takes memory that the step may need


class UnlikeError(Exception):
    """A model is asked for something else than it was before."""


@dataclass(frozen=True, slots=True, eq=False)
class Forward:
    """One forward pass of a model.

    Args:
        model: The model, or one of a list of them.
        given: What it was given: positional and by name.
        output: A copy of what it put out, without a graph; its tensors are leaves of the next.
        has_graph: Whether the output has one.
        mark: The state of the generators after it.
        own: The output itself, without its graph.
    """

    model: nn.Module
    given: Any
    output: Any
    has_graph: bool
    mark: Any
    own: Any


class Forwards:
    """The forward passes of a model until ``end`` is called.

    Args:
        loop: The training.
        model: Its model.
        start: The parameters before the call of the step.
    """

    def __init__(self, loop: Any, model: nn.Module, start: Sequence[np.ndarray]) -> None:
        self._loop, self._start = loop, start
        parts = list(model.modules())
        self._tops, self._parts = torch_moments.called(model), {id(m) for m in parts}
        self._made: list[Forward] = []
        self.arrivals = Arrivals()
        self._held = Holdings(parts)
        self._depth = 0  # of forward passes inside of one another
        self._is_over = False
        self._numbers = 0
        self.is_odd = False  # what cannot be kept, or was made at other parameters

    @contextmanager
    def open(self) -> Iterator[None]:
        """Listen while it is open."""
        with ExitStack() as stack:
            for top in self._tops:
                entering = top.register_forward_pre_hook(torch_moments.Hook(self._entering))
                leaving = top.register_forward_hook(
                    torch_moments.Hook(self._leaving), with_kwargs=True
                )
                stack.callback(entering.remove)
                stack.callback(leaving.remove)
            stack.callback(self.arrivals.end)
            stack.callback(self._held.clear)
            self._held.look()
            yield
        self.end()
        self._made.clear()

    def end(self) -> None:
        """Listen no longer."""
        self._is_over = True

    def _hears(self, model: nn.Module) -> bool:
        """Whether it is the model itself, and no copy that has its hooks."""
        return not self._is_over and any(model is top for top in self._tops)

    def _entering(self, model: nn.Module, *_: Any) -> None:
        if not self._hears(model):
            return
        self._depth += 1
        if self._depth == 1 and not self.is_odd:
            try:
                self.is_odd = not self._is_at_start(model)
            except Exception:  # of tensors that have no numbers now
                self.is_odd = True

    def _is_at_start(self, model: nn.Module) -> bool:
        """Whether a model has its own parameters, as they were before the call of the step."""
        known = {id(p) for p in self._loop.tensors}
        if not all(id(p) in known for p in model.parameters()):  # others stand in for them
            return False
        if not self._made and not self._held.are_there():
            return False
        return not _is_transformed() and are_equal(self._loop.now(), self._start)

    def is_as_left(self) -> bool:
        """Whether what was put out, and what the model holds, are still what they were."""
        is_whole = all(_are_like(f.output, f.own) for f in self._made)
        return is_whole and self._held.are_there() and are_equal(self._loop.now(), self._start)

    def _leaving(self, model: nn.Module, *told: Any) -> None:
        if not self._hears(model):
            return
        self._depth -= 1
        if self._depth:
            return
        try:
            self._made.append(self._forward(model, *told))
            self._held.look()
        except Exception:  # what a model gives may be anything
            self.is_odd = True

    def _forward(self, model: nn.Module, args: Any, kwargs: Any, output: Any) -> Forward:
        leaves = [item.value for item in _flat(output).leaves]
        tensors = [x for x in leaves if isinstance(x, Tensor)]
        self._numbers += sum(x.numel() for x in tensors)
        is_known = all(isinstance(x, (Tensor, *torch_values.PLAIN)) for x in leaves)
        if not is_known or self._numbers > MOST:
            raise UnlikeError
        has_graph = any(x.requires_grad for x in tensors)
        given, kept = _mapped(_detached, (args, kwargs)), _mapped(self.arrivals.copier(), output)
        own = _mapped(_detached, output)
        return Forward(model, given, kept, has_graph, self._loop.mark(), own)

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Let the model answer what it did, once, and leave the generators where it left them.

        Raises:
            UnlikeError: It is asked for what it was not given, or not for all or for nothing, or a
                part of it or another model with parameters is asked, which may take long.
        """
        left, self._made = self._made, []
        if not left:
            raise UnlikeError
        own = nn.Module._call_impl

        def answer(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if not any(module is top for top in self._tops):
                if id(module) in self._parts or next(module.parameters(), None) is not None:
                    raise UnlikeError
                return own(module, *args, **kwargs)
            while left:
                forward = left.pop(0)
                if forward.model is module and _are_like(forward.given, (args, kwargs)):
                    self._loop.rewind(forward.mark)
                    return _mapped(_written, forward.output)
                if forward.has_graph:
                    break
            raise UnlikeError

        # Not __call__, which takes long to replace in a class of which there are many.
        with replaced(nn.Module, "_call_impl", answer):
            yield
        if any(forward.has_graph for forward in left):
            raise UnlikeError


def are_equal(some: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> bool:
    """Whether arrays are the same, or hold the same numbers."""
    pairs = zip(some, others, strict=True)
    return all(a is b or bool(np.array_equal(a, b, equal_nan=True)) for a, b in pairs)


def _flat(value: Any) -> Any:
    return tree.flatten(value, torch_values.leaf, torch_values.closed)


def _mapped(function: Callable[[Any], Any], value: Any) -> Any:
    flat = _flat(value)
    return flat.rebuild([function(item.value) for item in flat.leaves])


def _detached(x: Any) -> Any:
    return x.detach() if isinstance(x, Tensor) else x


def _written(x: Any) -> Any:
    """A leaf as a tensor that may be written."""
    return x.clone() if isinstance(x, Tensor) and x.requires_grad else x


def _are_like(one: Any, other: Any) -> bool:
    """Whether two values hold equal tensors and numbers, and otherwise the same objects."""
    some, others = _flat(one).leaves, _flat(other).leaves
    if len(some) != len(others):
        return False
    return all(torch_values.is_like(a.value, b.value) for a, b in zip(some, others, strict=True))


def _is_transformed() -> bool:
    """Whether a transformation of ``torch.func`` is under way, in which tensors have no numbers."""
    return torch._C._functorch.peek_interpreter_stack() is not None
