"""Initialising a PyTorch model anew by its modules' own ``reset_parameters``."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

ALIKE = 2.0  # sizes of a parameter and of a fresh draw of it that count as the same distribution
FEW_ALIKE = 30.0  # the same for fewer than eight numbers


def reset_of(module: nn.Module) -> Any:
    """What initialises a module anew; None where it has no such method."""
    return getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)


def reset(model: nn.Module) -> None:
    """Initialise every part anew."""
    with torch.no_grad():
        for part in reversed(list(model.modules())):  # one may reset its children its own way
            if list(part.parameters(recurse=False)):
                reset_of(part)()


def alike(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors may be draws of one distribution, as far as their sizes tell."""
    if not a.is_floating_point() or not a.numel():
        return True
    one, other = (float(x.detach().double().square().mean().sqrt()) for x in (a, b))
    if not math.isfinite(one) or not one or not other:
        return one == other
    if a.numel() < 8:  # few numbers may be small by chance
        return one < FEW_ALIKE * other
    return 1 / ALIKE < one / other < ALIKE
