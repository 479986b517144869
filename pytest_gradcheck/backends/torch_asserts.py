"""Arguments that a kernel of CUDA asserts: refused before they reach it.

On a CPU such an argument is an error like any other, and a step that caused it is taken smaller. On
a GPU the assertion fails on the device, after which no call of the process works any more.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

# Name and number of the argument, and the largest number that may be in it; the smallest is zero.
RANGES = {
    "binary_cross_entropy": ("input", 0, 1.0),
    "bernoulli": ("input", 0, 1.0),
    "bernoulli_": ("p", 1, 1.0),
    "binomial": ("prob", 1, 1.0),
    "multinomial": ("input", 0, float("inf")),
    "poisson": ("input", 0, float("inf")),
}


class Asserted(TorchFunctionMode):  # type: ignore[misc]  # torch is not typed
    """Raises where a function is given what its kernel would assert not to be given.

    Raises:
        ValueError: Numbers are outside of the range of the function.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in RANGES:
            argument, number, most = RANGES[name]
            x = kwargs.get(argument, args[number] if len(args) > number else None)
            if isinstance(x, Tensor) and not _is_inside(x, most):
                raise ValueError(f"{name} takes numbers from 0 to {most:g} as {argument}")
        return func(*args, **kwargs)


def _is_inside(x: Tensor, most: float) -> bool:
    if torch._C._functorch.is_functorch_wrapped_tensor(x):
        return True  # inside vmap: no number can be read there
    with torch._C.DisableTorchFunction():
        return bool(((x >= 0) & (x <= most)).all())


def asserted(point: Iterable[Any]) -> AbstractContextManager[Any]:
    """For evaluations at a point: on a GPU, arguments are looked at first."""
    return Asserted() if any(isinstance(x, Tensor) and x.is_cuda for x in point) else nullcontext()
