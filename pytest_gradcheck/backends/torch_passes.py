"""Other passes of a PyTorch model: of other samples, of a copy that was changed, more precise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from pytest_gradcheck.backends import (
    torch_flow,
    torch_input,
    torch_loss,
    torch_samples,
    torch_seeds,
    torch_sizes,
)
from pytest_gradcheck.backends.layers import Pass
from pytest_gradcheck.backends.torch_loss import Loss
from pytest_gradcheck.errors import UsageError

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these


def bare(model: nn.Module, loss: Loss, batch: Any, factor: float = 1.0) -> Pass:
    """Loss and parameters of a pass that nobody watches, with the loss times a factor.

    Raises:
        UsageError: The loss raises, or is no scalar tensor.
    """
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    torch_seeds.seed(0)
    with torch.inference_mode(False), torch.enable_grad():
        try:
            value = torch_loss.value_of(loss, model, batch)
            found = torch_loss.pulled(value * factor, [*named.values()])
        except torch_loss.ReentrantError:
            value = torch_loss.value_of(loss, model, batch)
            found = torch_loss.accumulated(value * factor, [*named.values()])
    gradients = dict(zip(named, found, strict=True))
    return Pass(
        loss=float(value.detach()),
        layers=(),
        parameters=torch_sizes.parameters(model, gradients),
    )


def shuffled(model: nn.Module, loss: Loss, batch: Any, number: int) -> Pass | None:
    """A pass with other samples; None where the batch has none, or the loss refuses them."""
    other = torch_samples.shuffled(batch, number)
    if other is None:
        return None
    torch_seeds.seed(number)
    try:
        return torch_flow.measure(model, loss, other)[0]
    except UsageError:
        return None


def rescaled(model: nn.Module, loss: Loss, batch: Any, factors: Mapping[str, float]) -> Pass | None:
    """A pass of a copy with parameters times factors, by name; None where it has no copies."""
    try:
        fresh: nn.Module = torch_input.copied(model)
    except UsageError:
        return None
    with torch.no_grad():
        for name, factor in factors.items():
            fresh.get_parameter(name).mul_(factor)
    torch_seeds.seed(0)
    return torch_flow.measure(fresh, loss, batch)[0]


def forgetful(model: nn.Module, loss: Loss, batch: Any, name: str) -> Pass | None:
    """A pass in which a module is given no graph, a cell none of its states; None without one.

    None for fused layers too: what they fade by already leaves out what the loss places.
    """
    part = dict(model.named_modules()).get(name)
    if part is None or isinstance(part, nn.RNNBase):
        return None
    is_cell = isinstance(part, nn.RNNCellBase)

    def enter(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        cut, by_name = torch_input.detached(args), torch_input.detached(named)
        if is_cell and args:
            cut = (args[0], *cut[1:])
        elif is_cell:
            by_name["input"] = named["input"]
        return cut, by_name

    handle = part.register_forward_pre_hook(enter, with_kwargs=True)
    try:
        torch_seeds.seed(0)
        return torch_flow.measure(model, loss, batch)[0]
    finally:
        handle.remove()


def precise(model: nn.Module, loss: Loss, batch: Any, dtype: torch.dtype) -> dict[str, float]:
    """Sizes of the gradients of parameters in a precision; nothing where they cannot be had."""
    try:
        fresh = torch_input.copied(model).to(dtype)
        torch_seeds.seed(0)
        seen = torch_flow.measure(fresh, loss, torch_input.cast(batch, dtype))[0]
    except UsageError:  # it has no copies, or insists on its own precision
        return {}
    return {p.name: p.gradient for p in seen.parameters}
