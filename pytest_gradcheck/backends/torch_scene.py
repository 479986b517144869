"""PyTorch: the conditions under which a step differentiates: modes of modules, and autocast."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


class Scene:
    """Modes and autocast, as they were handed over and as they were seen.

    A step that sets the modes of some modules itself, or trains what was handed over in ``eval``,
    says what it means; a whole model that is left in ``eval`` does not.

    Args:
        model: The model at hand-over.
    """

    def __init__(self, model: nn.Module) -> None:
        self._modules = list(model.modules())
        self.modes = [m.training for m in self._modules]
        self.cast: tuple[str, torch.dtype] | None = None
        self._seen: list[bool] | None = None
        self._casts: list[tuple[str, torch.dtype]] = []  # of a call, so far

    def backward(self) -> None:
        """Note the modes at the first backward of a call."""
        if self._seen is None:
            self._seen = [m.training for m in self._modules]

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Note autocast and modes of a call of the step while it is open."""
        self._seen = None
        with entered() as casts:
            self._casts = casts
            yield
        self.cast = casts[0] if casts else None

    def adopted(self) -> bool:
        """Take over the modes that were seen, where they were meant; whether they changed."""
        seen = self._seen
        is_left = seen is not None and self.modes[0] and not seen[0]
        if seen is None or is_left or seen == self.modes:
            return False
        self.modes = seen
        return True

    @contextmanager
    def placed(self, modes: list[bool]) -> Iterator[None]:
        """Other modes for a while."""
        now = [m.training for m in self._modules]
        try:
            self._set(modes)
            yield
        finally:
            self._set(now)

    @contextmanager
    def flipped(self) -> Iterator[None]:
        """The other modes for what is computed meanwhile."""
        modes = self.modes
        self.modes = [not mode for mode in modes]
        try:
            yield
        finally:
            self.modes = modes

    def _set(self, modes: list[bool]) -> None:
        for module, mode in zip(self._modules, modes, strict=True):
            if module.training != mode:
                module.training = mode

    @contextmanager
    def casting(self) -> Iterator[None]:
        """The autocast that was seen in the step."""
        if self.cast is None:
            yield
            return
        device, dtype = self.cast
        with torch.autocast(device, dtype=dtype):
            yield

    @contextmanager
    def casting_so_far(self) -> Iterator[None]:
        """The autocast that the call of the step has used, of which nothing is kept for later."""
        if not self._casts:
            yield
            return
        device, dtype = self._casts[0]
        with torch.autocast(device, dtype=dtype, cache_enabled=False):
            yield


@contextmanager
def entered() -> Iterator[list[tuple[str, torch.dtype]]]:
    """Devices and precisions of each autocast that is entered while it is open."""
    casts: list[tuple[str, torch.dtype]] = []
    own = torch.autocast.__enter__

    def entering(cast: Any) -> Any:
        if getattr(cast, "_enabled", False):
            casts.append((str(cast.device), cast.fast_dtype))
        return own(cast)

    torch.autocast.__enter__ = entering
    try:
        yield casts
    finally:
        torch.autocast.__enter__ = own
