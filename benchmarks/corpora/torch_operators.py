"""PyTorch's operator database: the first two samples of each differentiable operator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.testing._internal.common_methods_invocations import op_db

from corpora.case import MOST_ELEMENTS, Case

SAMPLES = 2


def cases(dtype: str, device: str = "cpu") -> Iterator[Case]:
    """Every sample that has elements, and not too many."""
    kind = getattr(torch, dtype)
    for op in op_db:
        if not op.supports_autograd or kind not in op.supported_dtypes(device):
            continue
        taken = 0
        torch.manual_seed(0)
        for sample in op.sample_inputs(device, kind, requires_grad=True):
            function, inputs = _split(op, sample)
            if not 0 < sum(tensor.numel() for tensor in inputs) <= MOST_ELEMENTS:
                continue
            if not _is_usable(function, inputs):
                continue
            taken += 1
            name = f"{op.name}.{op.variant_test_name}".rstrip(".")
            yield Case(f"{name} #{taken}", "torch", dtype, function, inputs)
            if taken == SAMPLES:
                break


def _split(op: Any, sample: Any) -> tuple[Callable[..., Any], list[torch.Tensor]]:
    flat, spec = torch.utils._pytree.tree_flatten((sample.input, sample.args, sample.kwargs))
    spots = [i for i, x in enumerate(flat) if isinstance(x, torch.Tensor) and x.requires_grad]
    # Not the record of the operator itself: it holds whole test suites.
    operator, wrapper, process = op.get_op(), op.gradcheck_wrapper, sample.output_process_fn_grad

    def function(*tensors: torch.Tensor) -> Any:
        filled = list(flat)
        for spot, tensor in zip(spots, tensors, strict=True):
            filled[spot] = tensor
        first, args, kwargs = torch.utils._pytree.tree_unflatten(filled, spec)
        return process(wrapper(operator, first, *args, **kwargs))

    return function, [flat[i] for i in spots]


def _is_usable(function: Callable[..., Any], inputs: list[torch.Tensor]) -> bool:
    try:
        outputs = torch.utils._pytree.tree_leaves(function(*inputs))
    except RuntimeError:  # there is no kernel for this device
        if inputs[0].device.type == "cpu":
            raise
        return False
    real = [y for y in outputs if isinstance(y, torch.Tensor) and y.requires_grad]
    return 0 < sum(y.numel() for y in real) <= MOST_ELEMENTS
