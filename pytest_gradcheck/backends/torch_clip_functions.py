"""PyTorch: functions from gradients to gradients, or over a list of them in place."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pytest_gradcheck.backends import tree
from pytest_gradcheck.backends.numpy_clips import NumpyClipper
from pytest_gradcheck.backends.protocol import Flat, Leaf

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these


class TorchFunction(NumpyClipper):
    """A function of a list or a dictionary of gradients, and not of parameters that have them.

    Args:
        clip: The user's function.
        params: A module (its gradients come in a dictionary) or tensors, nested or not.
        shapes: Shapes of the gradients to make.
    """

    name = "torch"

    def __init__(self, clip: Any, params: Any, shapes: tuple[tuple[int, ...], ...]) -> None:
        super().__init__(clip, params, shapes)
        if isinstance(params, nn.Module):
            self.names = tuple(n for n, p in params.named_parameters() if p.requires_grad)

    def trees(self, params: Any) -> list[Any]:
        """Of a module a dictionary by name, or a list."""
        if not isinstance(params, nn.Module):
            return [params]
        named = {n: p for n, p in params.named_parameters() if p.requires_grad}
        return [named, list(named.values())]

    def flatten(self, value: Any) -> Flat:
        """A nested value taken apart."""
        return tree.flatten(value, _describe, lambda node: None)

    def array(self, value: np.ndarray, dtype: str) -> Tensor:
        """A tensor."""
        return torch.tensor(np.asarray(value), dtype=getattr(torch, dtype))

    def wide(self, value: Any) -> np.ndarray:
        """A tensor in float64."""
        wide: np.ndarray = torch.as_tensor(value).detach().to("cpu", torch.float64).numpy().copy()
        return wide

    def copied(self, value: Tensor) -> Tensor:
        """A tensor of its own."""
        return value.clone()


def _describe(path: str, value: Any) -> Leaf:
    if isinstance(value, Tensor) and value.is_floating_point():
        name = str(value.dtype).removeprefix("torch.")
        return Leaf(path, value, name, tuple(value.shape), str(value.device))
    if isinstance(value, np.ndarray):  # a shape that stands for a tensor of it
        return Leaf(path, value, value.dtype.name, value.shape, "cpu")
    return Leaf(path, value)
