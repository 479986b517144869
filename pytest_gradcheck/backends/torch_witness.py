"""PyTorch: what a step differentiates, seen without a second gradient.

The loss of the contract is computed once more, from what the model has put out in the step; the
graph that the step differentiates has a shape; and what lies at the parameters after its backward
pass is what the optimizer is given, or not.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from pytest_gradcheck.backends import torch_moments, torch_shape, torch_values, tree
from pytest_gradcheck.backends.steps import Update, Witness

Grads = Sequence["np.ndarray | None"]
PLAIN = (bool, int, float, complex, str, bytes, type(None))
HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks", "_backward_pre_hooks")


class UnlikeError(Exception):
    """The loss asks the model for something else than the step did."""


@dataclass(frozen=True, slots=True, eq=False)
class Forward:
    """One forward pass of a model.

    Args:
        model: The model, or one of a list of them.
        given: What it was given: positional and by name.
        output: A copy of what it put out, without a graph.
        has_graph: Whether the output has one.
        mark: The state of the generators after it.
    """

    model: nn.Module
    given: Any
    output: Any
    has_graph: bool
    mark: Any


class Seen:
    """What a call of a step is seen to do.

    Args:
        loop: The training.
        model: Its model.
        batch: What the call is given.
        mark: The state of the generators before it.
        start: The parameters before it.
    """

    def __init__(
        self, loop: Any, model: nn.Module, batch: Any, mark: Any, start: Sequence[np.ndarray]
    ) -> None:
        self._loop, self._batch, self._mark, self._start = loop, batch, mark, start
        self._tops, self._modules = torch_moments.called(model), list(model.modules())
        self._forwards: list[Forward] = []
        self._depth = 0  # of forward passes inside of one another
        self._passes = 0  # backward
        self._is_listening = True
        self._is_odd = self._has_packed = False
        self._found: tuple[str, float, float, str] | None = None
        self._left: Grads = ()

    @contextmanager
    def open(self) -> Iterator[None]:
        """Watch while it is open, where that is asked for."""
        if not self._loop.is_witnessed:
            yield
            return
        autograd, differentiating = torch.autograd, self._differentiating
        with ExitStack() as stack:
            for top in self._tops:
                # Functions, since a step may copy the model with its hooks.
                entering = top.register_forward_pre_hook(lambda *told: self._entering(*told))
                leaving = top.register_forward_hook(
                    lambda *told: self._leaving(*told), with_kwargs=True
                )
                stack.callback(entering.remove)
                stack.callback(leaving.remove)
            for owner, name, wrapped in (
                (
                    autograd,
                    "backward",
                    differentiating(autograd.backward, self._lying, self._lies_nowhere),
                ),
                (autograd, "grad", differentiating(autograd.grad, self._returned, lambda: True)),
                (Tensor, "register_hook", self._odd(Tensor.register_hook)),
                (saved_tensors_hooks, "__enter__", self._packing(saved_tensors_hooks.__enter__)),
            ):
                stack.enter_context(replaced(owner, name, wrapped))
            yield
        self._is_listening = False
        self._forwards.clear()

    def witness(self, updates: Sequence[Update]) -> Witness | None:
        """What was seen; None where it says nothing."""
        if self._found is None or self._is_odd or len(updates) != 1:
            return None
        pairs = zip(updates[0].received or (), self._left, strict=False)
        given = [(a, b) for a, b in pairs if a is not None]
        has_arrived = all(b is not None and _is_equal(a, b) for a, b in given)
        is_there = _are_equal(updates[0].before, self._start)
        return Witness(*self._found, has_arrived and is_there)

    # --- forward ----------------------------------------------------------------------------

    def _entering(self, model: nn.Module, *_: Any) -> None:
        if not self._hears(model):
            return
        if not self._depth and not self._forwards:
            self._is_odd |= not _are_equal(self._loop.now(), self._start)
        self._depth += 1

    def _leaving(self, model: nn.Module, *told: Any) -> None:
        if not self._hears(model):
            return
        self._depth -= 1
        if self._depth:
            return
        try:
            self._forwards.append(self._forward(model, *told))
        except Exception:  # what a model gives may be anything
            self._is_odd = True

    def _hears(self, model: nn.Module) -> bool:
        """Whether a forward pass of a model may be what is differentiated; of a copy it is not."""
        is_before = self._is_listening and not self._passes
        return is_before and any(model is top for top in self._tops)

    def _forward(self, model: nn.Module, args: Any, kwargs: Any, output: Any) -> Forward:
        leaves = _leaves(output)
        self._is_odd |= not all(isinstance(x, (Tensor, *PLAIN)) for x in leaves)
        has_graph = any(isinstance(x, Tensor) and x.requires_grad for x in leaves)
        given, kept = _mapped(_detached, (args, kwargs)), _mapped(_copied, output)
        return Forward(model, given, kept, has_graph, self._loop.mark())

    # --- backward ---------------------------------------------------------------------------

    def _differentiating(
        self, own: Any, left: Callable[[Any, Any], Grads], is_fit: Callable[[], bool]
    ) -> Any:
        """A function that differentiates.

        Args:
            own: The function, ``backward`` or ``grad``.
            left: What its answer leaves for each parameter, by its inputs.
            is_fit: Whether that will be its own, and not be added to what lies there.
        """

        @functools.wraps(own)
        def differentiating(*args: Any, **kwargs: Any) -> Any:
            self._passes += 1
            self._is_odd |= self._passes > 1
            found, inputs = None, None
            try:
                if not self._is_odd and is_fit():
                    given = inspect.signature(own).bind(*args, **kwargs).arguments
                    inputs = given.pop("inputs", None)
                    found = self._seen(*given.values())
            except Exception:  # of a loss as it is, or of a graph that is used up: nothing is said
                self._is_odd = True
            answer = own(*args, **kwargs)
            if found is not None and not self._is_odd:
                self._found, self._left = found, left(answer, inputs)
            return answer

        return differentiating

    def _lying(self, *_: Any) -> Grads:
        grads: Grads = self._loop.received()
        return grads

    def _lies_nowhere(self) -> bool:
        grads = [p.grad for p in self._loop.tensors if p.grad is not None]
        return not any(bool(g.any()) for g in grads)

    def _returned(self, answer: Any, inputs: Any) -> Grads:
        wanted = [inputs] if isinstance(inputs, Tensor) else inputs
        grads = {id(p): g for p, g in zip(wanted, answer, strict=False)}
        found = [grads.get(id(p)) for p in self._loop.tensors]
        return [None if g is None else torch_values.as_numpy(g) for g in found]

    def _seen(self, tensors: Any, *others: Any) -> tuple[str, float, float, str] | None:
        roots = [tensors] if isinstance(tensors, Tensor) else list(tensors)
        is_bare = all(x is None or x is False for x in others)
        if not is_bare or len(roots) != 1 or roots[0].numel() != 1 or self._has_hooks():
            return None
        leaves = {id(p): i for i, p in enumerate(self._loop.tensors)}
        shape = torch_shape.shape(roots[0].grad_fn, leaves, not self._has_packed)
        meant = self._meant() if shape and self._forwards else None
        if meant is None or meant.dtype != roots[0].dtype:
            return None
        modes = "".join(str(int(m.training)) for m in self._modules)
        dtype = str(meant.dtype).removeprefix("torch.")
        return f"{shape} {modes}", float(roots[0].detach()), float(meant), dtype

    def _has_hooks(self) -> bool:
        held = (*self._loop.tensors, *self._modules)
        return any(getattr(x, name, None) for x in held for name in HOOKS)

    def _meant(self) -> Tensor | None:
        """The loss of the contract, from what the model has put out; None where there is more.

        Raises:
            UnlikeError: It asks for what the model was not given, or for another model.
        """
        left = list(self._forwards)
        known = {id(m) for m in self._modules}
        own = nn.Module._call_impl  # not __call__, which is slow to replace

        def answering(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if not any(module is top for top in self._tops):
                if id(module) in known or next(module.parameters(), None) is not None:
                    raise UnlikeError
                return own(module, *args, **kwargs)
            while left:
                forward = left.pop(0)
                if forward.model is module and torch_values.is_same(forward.given, (args, kwargs)):
                    self._loop.rewind(forward.mark)
                    return _mapped(_copied, forward.output)
                if forward.has_graph:
                    break
            raise UnlikeError

        with replaced(nn.Module, "_call_impl", answering):
            value: Tensor = self._loop.without_graph(self._batch, self._mark)
        return None if any(forward.has_graph for forward in left) else value

    # --- what makes it say nothing ------------------------------------------------------------

    def _odd(self, own: Any) -> Any:
        @functools.wraps(own)
        def odd(*args: Any, **kwargs: Any) -> Any:
            self._is_odd = True
            return own(*args, **kwargs)

        return odd

    def _packing(self, own: Any) -> Any:
        """What torch packs (a checkpoint) it unpacks as it was; of others that is not known."""

        @functools.wraps(own)
        def entering(hooks: Any) -> Any:
            self._has_packed = True
            is_known = type(hooks) is not saved_tensors_hooks
            self._is_odd |= not (is_known and type(hooks).__module__.startswith("torch."))
            return own(hooks)

        return entering


@contextmanager
def replaced(owner: Any, name: str, new: Any) -> Iterator[None]:
    """Another attribute while it is open."""
    old = getattr(owner, name)
    setattr(owner, name, new)
    try:
        yield
    finally:
        setattr(owner, name, old)


def _are_equal(some: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> bool:
    return all(_is_equal(a, b) for a, b in zip(some, others, strict=True))


def _is_equal(a: np.ndarray, b: np.ndarray) -> bool:
    return a is b or bool(np.array_equal(a, b, equal_nan=True))


def _leaves(value: Any) -> list[Any]:
    flat = tree.flatten(value, torch_values.leaf, torch_values.closed)
    return [item.value for item in flat.leaves]


def _mapped(function: Callable[[Any], Any], value: Any) -> Any:
    flat = tree.flatten(value, torch_values.leaf, torch_values.closed)
    return flat.rebuild([function(item.value) for item in flat.leaves])


def _detached(x: Any) -> Any:
    return x.detach() if isinstance(x, Tensor) else x


def _copied(x: Any) -> Any:
    return x.detach().clone() if isinstance(x, Tensor) else x
