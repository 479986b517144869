"""The rules of others for one run of one model, as published, on the gradients that they look at.

SageMaker Debugger and DeepDiagnosis: mean absolute gradient of a weight under 1e-7. AutoTrainer:
70 % of the gradient's entries exactly zero. torchmortem: sizes of first and last layer's gradients
more than a factor 100 apart. torch-audit: norm of all gradients over 100. Each also alarms at NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

Gradients = Sequence[np.ndarray]


def small(gradients: Gradients) -> bool:
    """Some weight's mean absolute gradient is under 1e-7."""
    return any(not np.mean(np.abs(g)) >= 1e-7 for g in gradients)


def apart(gradients: Gradients) -> bool:
    """First and last gradient differ in size by more than 100."""
    first, last = (float(np.sqrt(np.mean(g**2))) for g in (gradients[0], gradients[-1]))
    return not (last > 0 and 0.01 <= first / last <= 100)


def zero(gradients: Gradients) -> bool:
    """70 % of all entries are exactly zero."""
    every = np.concatenate([g.ravel() for g in gradients])
    return bool(np.mean(every == 0) >= 0.7 or np.any(np.isnan(every)))


def large(gradients: Gradients) -> bool:
    """The norm of all gradients is over 100."""
    return not np.sqrt(sum(float(np.sum(g**2)) for g in gradients)) <= 100


RULES: dict[str, Callable[[Gradients], bool]] = {
    "mean abs gradient < 1e-7": small,
    "first to last > 100": apart,
    "zero entries >= 70 %": zero,
    "norm > 100": large,
}


def gradients(model: nn.Module, loss: Any, batch: Any) -> Gradients:
    """Gradients of the weights of one run; zeros where there are none."""
    with torch.enable_grad():
        value = loss(model, batch)
        weights = [p for p in model.parameters() if p.ndim > 1 and p.requires_grad]
        pulled = torch.autograd.grad(value, weights, allow_unused=True)
    return [
        np.zeros(w.shape) if g is None else g.detach().double().numpy()
        for w, g in zip(weights, pulled, strict=True)
    ]
