"""The generators that a PyTorch model may draw from, set alike."""

from __future__ import annotations

import random

import numpy as np
import torch

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these


def seed(number: int) -> None:
    """Set the global generators."""
    torch.manual_seed(number)
    np.random.seed(number % 2**32)
    random.seed(number)


def states() -> tuple[object, ...]:
    """Where the generators of the CPU stand, to be compared."""
    return torch.get_rng_state().numpy().tobytes(), str(np.random.get_state()), random.getstate()
