"""The generators that a PyTorch model may draw from, set alike."""

from __future__ import annotations

import random

import numpy as np
import torch

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these


def seed(number: int) -> None:
    """Set the global generators."""
    if any(device.is_available() for device in (torch.cuda, torch.mps, torch.xpu)):
        torch.manual_seed(number)
    else:  # which would format a stack for each device that is not there
        torch.default_generator.manual_seed(number)
    np.random.seed(number % 2**32)
    random.seed(number)


def states() -> tuple[object, ...]:
    """Where the generators of the CPU stand, to be compared."""
    return torch.get_rng_state().numpy().tobytes(), str(np.random.get_state()), random.getstate()
