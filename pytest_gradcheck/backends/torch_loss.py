"""The loss of a PyTorch model as the user computes it, its gradients, and that of a zero answer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pytest_gradcheck.errors import UsageError

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

Loss = Callable[[Any, Any], Any]


def value_of(loss: Loss, model: nn.Module, batch: Any) -> Tensor:
    """The loss as a tensor of one element.

    Raises:
        UsageError: The loss raises, or is no scalar tensor.
    """
    try:
        value = loss(model, batch)
    except Exception as error:  # whatever the user's code raises, told with its own words
        raise UsageError(f"loss(model, batch) raised {type(error).__name__}: {error}") from error
    if not isinstance(value, Tensor) or value.numel() != 1 or value.is_complex():
        given = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        told = f"{given} of {value.dtype}" if given == () else given  # one number, but complex
        raise UsageError(
            f"loss(model, batch) must give a real tensor of one element, it gave {told}; "
            f"try .mean() or .sum()"
        )
    return value.reshape(())


class ReentrantError(Exception):
    """A checkpoint of the older kind, which only ``backward`` can go through."""


def pulled(value: Tensor, wanted: Sequence[Tensor]) -> list[Tensor | None]:
    """Gradients without touching ``.grad`` and the hooks that wait for it.

    Raises:
        ReentrantError: A checkpoint asks for ``backward``; the graph is used up.
        UsageError: The loss ran ``backward`` itself, or a backward of the user's raises.
    """
    if not value.requires_grad or not wanted:
        return [None] * len(wanted)
    try:
        return list(torch.autograd.grad(value, list(wanted), allow_unused=True))
    except Exception as error:  # whatever the user's code raises, told with its own words
        if "checkpoint" in str(error).lower():
            raise ReentrantError from error
        raise _refused(error) from error


def accumulated(value: Tensor, wanted: Sequence[Tensor]) -> list[Tensor | None]:
    """Gradients by ``backward``; ``.grad`` is set back by the guard around."""
    for p in wanted:
        p.grad = None
    try:
        value.backward()
    except Exception as error:  # likewise
        raise _refused(error) from error
    return [p.grad for p in wanted]


def _refused(error: Exception) -> UsageError:
    if "second time" in str(error):
        return UsageError(
            "the graph of the loss is used up: loss(model, batch) must return the loss and leave "
            "backward and the optimizer's step to the check"
        )
    return UsageError(f"the backward pass raised {type(error).__name__}: {error}")


def plain(model: nn.Module, loss: Loss, batch: Any) -> tuple[float, Tensor | None]:
    """The loss of a model that answers zero, and what it does answer.

    NaN and None where the answer is no single tensor.
    """
    changed: list[Tensor] = []

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        is_inside = torch._C._functorch.is_functorch_wrapped_tensor  # of vmap: no value of its own
        if isinstance(output, Tensor) and output.is_floating_point() and not is_inside(output):
            changed.append(output.detach())
            return torch.zeros_like(output)
        return None

    handle = model.register_forward_hook(hook)
    try:
        with torch.no_grad():
            value = float(value_of(loss, model, batch))
    except UsageError:
        return math.nan, None
    finally:
        handle.remove()
    return (value, changed[0]) if len(changed) == 1 else (math.nan, None)
