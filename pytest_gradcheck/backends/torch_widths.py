"""A copy of a torch model with wider hidden layers, where all its layers are linear."""

from __future__ import annotations

import copy

import torch
from torch import nn

from pytest_gradcheck.backends import widths

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these


def widened(model: nn.Module, factor: int, seed: int) -> nn.Module | None:
    """The copy; None where anything but ``nn.Linear`` holds numbers, or a layer is shared."""
    holders = [m for m in model.modules() if any(True for _ in m.parameters(recurse=False))]
    if any(type(m) is not nn.Linear for m in holders) or any(True for _ in model.buffers()):
        return None
    named = {name: p.detach().cpu().double().numpy() for name, p in model.named_parameters()}
    fresh = widths.widened(named, factor, seed)
    if fresh is None:
        return None
    wide = copy.deepcopy(model)
    for name, part in wide.named_modules():
        if isinstance(part, nn.Linear):
            for kind, p in list(part.named_parameters(recurse=False)):
                value = torch.as_tensor(fresh[f"{name}.{kind}".lstrip(".")], device="cpu")
                setattr(part, kind, nn.Parameter(value.to(p.device, p.dtype), p.requires_grad))
            part.out_features, part.in_features = part.weight.shape
    return wide
