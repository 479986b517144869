"""PyTorch: the function modes, a default device among them, that ``Tensor.backward`` takes off.

What overrides torch functions is called with a tensor's ``backward``, and is not there any more
when the backward pass itself runs: user code that is called in it would make its tensors elsewhere.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, overrides

from pytest_gradcheck.backends.torch_patches import replaced

_BEGUN: list[list[Any]] = []  # the modes at which the backward that runs was called


def _standing() -> list[Any]:
    return list(overrides._get_current_function_mode_stack())


@contextmanager
def known() -> Iterator[None]:
    """Note the modes at which ``Tensor.backward`` is called, while it is open."""
    own = Tensor.backward

    @functools.wraps(own)
    def backward(*args: Any, **kwargs: Any) -> Any:
        if _BEGUN:  # by a mode, that has been taken off
            return own(*args, **kwargs)
        _BEGUN.append(_standing())
        try:
            return own(*args, **kwargs)
        finally:
            _BEGUN.clear()

    with replaced(Tensor, "backward", backward):
        yield


@contextmanager
def again() -> Iterator[None]:
    """The modes as they were before the backward that runs, for user code that is called in it."""
    begun, _BEGUN[:] = list(_BEGUN), []
    try:
        with ExitStack() as stack:
            if begun and not torch._C._is_torch_function_enabled():
                stack.enter_context(torch._C._EnableTorchFunction())
            for mode in begun[0][len(_standing()) :] if begun else ():
                overrides._push_mode(mode)
                stack.callback(overrides._pop_mode)
            yield
    finally:
        _BEGUN[:] = begun
