"""PyTorch: a model in float64 for a while, to see a slope that float32 is too coarse for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pytest_gradcheck.backends import torch_values, tree
from pytest_gradcheck.backends.torch_draws import Draws


class Precision(Protocol):
    """In which precision a loss is computed."""

    def placed(self) -> Any:
        """The tensors in it, while it is open."""

    def batch(self, batch: Any) -> Any:
        """A copy of a batch in it."""

    def drawing(self) -> AbstractContextManager[Any]:
        """What lets a loss draw the numbers that it draws as it is, while it is open."""


class Own:
    """The precision that everything has."""

    @contextmanager
    def placed(self) -> Iterator[None]:
        """Everything as it is."""
        yield

    def batch(self, batch: Any) -> Any:
        """A copy."""
        return torch_values.copied(batch)

    def drawing(self) -> AbstractContextManager[Any]:
        """Nothing."""
        return nullcontext()


class Wide:
    """Float64 for everything that is a real or complex number.

    The tensors stay the same objects, whoever holds them, and get other data for a while.

    Args:
        model: The model.
        tensors: Every parameter, those that optimizers alone hold too.
        draws: Whether the loss draws numbers: to look for them takes longer than a small loss.
    """

    def __init__(self, model: nn.Module, tensors: Sequence[Tensor], draws: bool) -> None:
        found = {id(t): t for t in (*model.parameters(), *model.buffers(), *tensors)}
        self._tensors = list(found.values())
        self._draws, self._default = draws, torch.get_default_dtype()

    @contextmanager
    def placed(self) -> Iterator[None]:
        """Other data in every tensor, set back to the same storage afterwards."""
        kept = [(t, t.data) for t in self._tensors]
        default = torch.get_default_dtype()
        try:
            torch.set_default_dtype(torch.float64)
            for t, data in kept:
                t.data = _wide(data)
            yield
        finally:
            torch.set_default_dtype(default)
            for t, data in kept:
                t.data = data

    def batch(self, batch: Any) -> Any:
        """A copy in float64."""
        flat = tree.flatten(torch_values.copied(batch), torch_values.leaf, torch_values.closed)
        values = [item.value for item in flat.leaves]
        return flat.rebuild([_wide(v) if isinstance(v, Tensor) else v for v in values])

    def drawing(self) -> AbstractContextManager[Any]:
        """Draws float32."""
        return Draws(self._default) if self._draws else nullcontext()


def _wide(x: Tensor) -> Tensor:
    if x.is_complex():
        return x.to(torch.complex128, copy=True)
    return x.to(torch.float64, copy=True) if x.is_floating_point() else x.clone()
