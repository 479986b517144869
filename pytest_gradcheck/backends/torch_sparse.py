"""Sparse tensors by their stored values; the pattern of indices stays.

The derivative with respect to a sparse tensor is that of its stored numbers (the masked semantics
of torch.autograd.gradcheck with ``masked=True``): what is not stored cannot change.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

_COMPRESSED: dict[torch.layout, tuple[Callable[..., Tensor], str, str]] = {
    torch.sparse_csr: (torch.sparse_csr_tensor, "crow_indices", "col_indices"),
    torch.sparse_csc: (torch.sparse_csc_tensor, "ccol_indices", "row_indices"),
    torch.sparse_bsr: (torch.sparse_bsr_tensor, "crow_indices", "col_indices"),
    torch.sparse_bsc: (torch.sparse_bsc_tensor, "ccol_indices", "row_indices"),
}


def is_sparse(value: Any) -> bool:
    """Whether a value is a sparse tensor of floating-point or complex type."""
    return (
        isinstance(value, Tensor)
        and (value.layout == torch.sparse_coo or value.layout in _COMPRESSED)
        and (value.is_floating_point() or value.is_complex())
    )


def opened(tensor: Tensor) -> tuple[list[tuple[str, Any]], Callable[[Sequence[Any]], Tensor]]:
    """The stored values by name, and what puts them in their places again."""
    if tensor.layout == torch.sparse_coo:
        tensor = tensor.coalesce()
        indices = tensor.indices().detach()
        return [("values", tensor.values())], lambda values: torch.sparse_coo_tensor(
            indices, values[0], tensor.shape, is_coalesced=True, check_invariants=False
        )
    make, outer, inner = _COMPRESSED[tensor.layout]
    first, second = getattr(tensor, outer)().detach(), getattr(tensor, inner)().detach()
    return [("values", tensor.values())], lambda values: make(
        first, second, values[0], tensor.shape, check_invariants=False
    )


def dense(gradient: Tensor) -> Tensor:
    """A gradient as a strided tensor; an embedding may give a sparse one."""
    return gradient if gradient.layout == torch.strided else gradient.to_dense()
