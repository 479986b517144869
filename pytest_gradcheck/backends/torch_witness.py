"""PyTorch: what a step differentiates, seen without a second gradient.

The loss of the contract is computed once more, from what the model has put out in the step; the
graph that the step differentiates has a shape; what arrives in its backward pass at the outputs of
the model is the gradient of the contract's loss by them; and what that pass leaves for the
parameters is what the optimizer is given, or not.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from pytest_gradcheck.backends import torch_moments, torch_overrides, torch_shape, torch_values
from pytest_gradcheck.backends.seen import Witness
from pytest_gradcheck.backends.steps import Update
from pytest_gradcheck.backends.torch_forwards import Forwards, are_equal
from pytest_gradcheck.backends.torch_patches import replaced

Grads = Sequence["np.ndarray | None"]


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
        self._modules = list(model.modules())
        self._forwards = Forwards(loop, model, start)
        self._passes = 0  # backward
        self._is_odd = self._has_packed = False
        self._found: tuple[str, float, float, str] | None = None
        self._left: Grads = ()
        self._roots: list[int] = []  # what is being differentiated

    @contextmanager
    def open(self) -> Iterator[None]:
        """Watch while it is open, where that is asked for."""
        if not self._loop.is_witnessed:
            yield
            return
        autograd, differentiating = torch.autograd, self._differentiating
        with ExitStack() as stack:
            stack.enter_context(self._forwards.open())
            for owner, name, wrapped in (
                (
                    autograd,
                    "backward",
                    differentiating(autograd.backward, self._kept, self._is_bare),
                ),
                (autograd, "grad", differentiating(autograd.grad, self._returned, lambda: True)),
                (Tensor, "register_hook", self._odd(Tensor.register_hook)),
                (saved_tensors_hooks, "__enter__", self._packing(saved_tensors_hooks.__enter__)),
            ):
                stack.enter_context(replaced(owner, name, wrapped))
            yield

    def witness(self, updates: Sequence[Update]) -> Witness | None:
        """What was seen; None where it says nothing."""
        if self._found is None or self._is_odd or self._forwards.is_odd or len(updates) != 1:
            return None
        pairs = zip(updates[0].received or (), self._left, strict=False)
        given = [(a, b) for a, b in pairs if a is not None]
        has_arrived = all(b is not None and are_equal([a], [b]) for a, b in given)
        is_there = are_equal(updates[0].before, self._start)
        return Witness(*self._found, has_arrived and is_there)

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
            roots = _roots(args, kwargs)
            if self._roots and roots == self._roots:  # under a default device torch asks itself
                return own(*args, **kwargs)
            self._passes += 1
            self._forwards.end()
            self._is_odd |= self._passes > 1
            found, inputs = None, None
            try:
                self._is_odd = self._is_odd or not self._forwards.is_as_left()
                if not self._is_odd and is_fit():
                    given = inspect.signature(own).bind(*args, **kwargs).arguments
                    inputs = given.pop("inputs", None)
                    found = self._seen(*given.values())
            except Exception:  # of a loss as it is, or of a graph that is used up: nothing is said
                self._is_odd = True
            outer, self._roots = self._roots, roots
            try:
                answer = own(*args, **kwargs)
            finally:
                self._roots = outer
            if found is not None and not self._is_odd and self._forwards.arrivals.are_right():
                self._found, self._left = found, left(answer, inputs)
            return answer

        return differentiating

    def _is_bare(self) -> bool:
        """Whether nothing lies at the parameters but zeros."""
        grads = [p.grad for p in self._loop.tensors if p.grad is not None]
        return not any(bool(g.any()) for g in grads)

    def _kept(self, *_: Any) -> Grads:
        """What lies at the parameters."""
        grads: Grads = self._loop.received()
        return grads

    def _returned(self, answer: Any, inputs: Any) -> Grads:
        wanted = [inputs] if isinstance(inputs, Tensor) else inputs
        grads = {id(p): g for p, g in zip(wanted, answer, strict=False)}
        found = [grads.get(id(p)) for p in self._loop.tensors]
        return [None if g is None else torch_values.as_numpy(g) for g in found]

    def _seen(self, tensors: Any, *others: Any) -> tuple[str, float, float, str] | None:
        roots = [tensors] if isinstance(tensors, Tensor) else list(tensors)
        is_plain = all(x is None or x is False for x in others)
        if not is_plain or len(roots) != 1 or roots[0].numel() != 1 or self._has_hooks():
            return None
        leaves = {id(p): i for i, p in enumerate(self._loop.tensors)}
        shape = torch_shape.shape(roots[0].grad_fn, leaves, not self._has_packed)
        if not shape:
            return None
        with torch_overrides.again(), self._forwards.answering():
            meant, grads = self._loop.by_outputs(
                self._batch, self._mark, self._forwards.arrivals.leaves
            )
        self._forwards.arrivals.expect(grads)
        if meant.dtype != roots[0].dtype:
            return None
        modes = "".join(str(int(m.training)) for m in self._modules)
        dtype = str(meant.dtype).removeprefix("torch.")
        return f"{shape} {modes}", float(roots[0].detach()), float(meant), dtype

    # --- what makes it say nothing ------------------------------------------------------------

    def _has_hooks(self) -> bool:
        return bool(torch_moments.backward_hooks((*self._loop.tensors, *self._modules)))

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


def _roots(args: Sequence[Any], kwargs: dict[str, Any]) -> list[int]:
    """The ids of what ``backward`` or ``grad`` is asked to differentiate."""
    given = args[0] if args else kwargs.get("tensors", kwargs.get("outputs"))
    return [id(given)] if isinstance(given, Tensor) else [id(x) for x in given or ()]
