"""PyTorch: the gradients that arrive at what a model put out."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pytest_gradcheck.backends import torch_loss, torch_values

ROUNDINGS = 16  # of sums in another order, by which the same gradient may differ


class Arrivals:
    """The gradients that arrive at tensors in one backward pass, against those that are meant."""

    def __init__(self) -> None:
        self.leaves: list[Tensor] = []  # copies of the tensors, to differentiate by
        self._nodes: list[Any] = []  # what put out each of them
        self._handles: list[Any] = []
        self._meant: Sequence[Tensor | None] = ()
        self._known: set[int] = set()
        self._are_right: dict[int, bool] = {}

    def copier(self) -> Callable[[Any], Any]:
        """Copies the tensors of one output, and listens to what will arrive at them."""
        copies: dict[int, Tensor] = {}

        def copy(x: Any) -> Any:
            if isinstance(x, Tensor) and id(x) not in copies:
                copies[id(x)] = x.detach().clone()
                if x.grad_fn is not None:
                    self._listen(x.grad_fn, x.output_nr)
                    self.leaves.append(copies[id(x)].requires_grad_())
            return copies.get(id(x), x)

        return copy

    def _listen(self, node: Any, place: int) -> None:
        number = len(self._nodes)
        hears = functools.partial(self._arriving, number, place)
        self._handles.append(node.register_prehook(hears))
        self._nodes.append(node)

    def _arriving(self, number: int, place: int, grads: Sequence[Tensor | None]) -> None:
        if number not in self._known:
            return
        is_right = number not in self._are_right  # that it arrives once
        try:  # in the user's backward pass, which must not end by what cannot be compared
            is_right = is_right and _is_near(grads[place], self._meant[number])
        except Exception:  # of sparse tensors, and those that have no numbers
            is_right = False
        self._are_right[number] = is_right

    def expect(self, meant: Sequence[Tensor | None]) -> None:
        """Say what is to arrive.

        What is computed from one of the tensors and is another of them gives the first what is not
        looked at; then nothing is said of it.
        """
        inner = _inner(self._nodes)
        self._nodes.clear()
        self._meant = meant
        self._known = set(range(len(meant))) - inner
        self._are_right.clear()

    def are_right(self) -> bool:
        """Whether what has arrived is what was to."""
        return all(self._are_right.get(i, _is_nothing(self._meant[i])) for i in self._known)

    def end(self) -> None:
        """Listen no longer."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._nodes.clear()


def _is_nothing(grad: Tensor | None) -> bool:
    return grad is None or not bool(grad.any())


def _is_near(grad: Tensor | None, meant: Tensor | None) -> bool:
    """Whether a gradient is another up to the order of its sums."""
    if grad is None or meant is None:
        return _is_nothing(grad) and _is_nothing(meant)
    if torch_values.is_alike(grad, meant):
        return True
    if (grad.shape, grad.dtype, grad.device) != (meant.shape, meant.dtype, meant.device):
        return False
    wide = torch.promote_types(meant.dtype, torch.float64)
    off = torch.linalg.vector_norm(grad.to(wide) - meant.to(wide))
    bound = ROUNDINGS * torch.finfo(meant.dtype).eps * torch.linalg.vector_norm(meant.to(wide))
    return bool(off <= bound)


def _inner(nodes: Sequence[Any]) -> set[int]:
    """Numbers of the nodes from which others of them come."""
    if len(set(nodes)) < 2:
        return set()
    before = {inner for node in torch_loss.nodes(*nodes) for inner, _ in node.next_functions}
    return {i for i, node in enumerate(nodes) if node in before}
