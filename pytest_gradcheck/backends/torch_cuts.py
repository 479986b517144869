"""PyTorch: what a loss holds back from its own gradient, held still while parameters move.

A loss with ``detach()`` or ``no_grad()`` inside is a function of the parameters whose gradient is
not what autograd gives. Held at the values that they had where the gradient was taken, the parts
that were held back are constants, and autograd's gradient must be the slope again.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

# What these give is no part of a tensor that is held back: new values, its gradient, its form.
NOT_HELD = ("_like", "new_", "grad", "requires_grad", "is_leaf", "shape", "size")
# Of what stands second in these, only the form or the precision counts.
FORMED = {"to", "type_as", "view_as", "reshape_as", "expand_as"}
SPECTRAL = "SpectralNorm"  # whose vectors, by power iteration, are constants to its gradient
HOME = str(Path(torch.__file__).parent)
FUNCTION = torch.autograd.function.__file__
OWN = str(Path(__file__).parents[1])


class DifferentError(Exception):
    """A run that holds back other parts than the one that was recorded."""


class Cuts(TorchFunctionMode):  # type: ignore[misc]  # torch is not followed
    """Records what leaves the graph in the first run, and gives the same again in later ones."""

    def __init__(self) -> None:
        super().__init__()
        self._kept: list[Any] = []
        self._at: int | None = None
        self.places: dict[str, None] = {}

    def again(self) -> Cuts:
        """From the start, with what was recorded."""
        self._at = 0
        return self

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a function of torch; what it holds back is recorded, or replaced."""
        kwargs = kwargs or {}
        answer = func(*args, **kwargs)
        name = _name(func)
        is_written = name.endswith("_") and not name.endswith("__")
        if any(part in name for part in NOT_HELD):
            return answer
        given = args[:1] if name in FORMED else (args, kwargs)
        if not _is_held_back(given, answer, is_written) or _is_in_function():
            return answer
        if self._at is None:
            self._kept.append(_copy(answer))
            if _is_real(answer):
                word, place = _place()
                self.places[f"{word or _word(name)} at {place}"] = None
            return answer
        if self._at >= len(self._kept) or not _is_alike(answer, self._kept[self._at]):
            raise DifferentError(name)
        self._at += 1
        kept = self._kept[self._at - 1]
        if is_written:  # into a tensor that is used further on: a momentum encoder, say
            answer.data.copy_(kept)
            return answer
        return _copy(kept)


def _name(func: Any) -> str:
    name = str(getattr(func, "__name__", ""))
    if name in ("__get__", "__set__"):  # of a property such as .data
        return str(getattr(getattr(func, "__self__", None), "__name__", name))
    return name


def _word(name: str) -> str:
    if name in ("detach", "data", "item", "numpy", "tolist", "__float__"):
        return f".{name}" if name == "data" else f"{name.strip('_')}()"
    return "no_grad()" if not torch.is_grad_enabled() else f"{name}()"


def _place() -> tuple[str, str]:
    """What of torch means it, if anything, and file and line of the user's code that is running."""
    word = ""
    for frame in _frames():
        path = frame.f_code.co_filename
        if not path.startswith((HOME, OWN)):
            return word, f"{Path(path).name}:{frame.f_lineno}"
        owner = type(frame.f_locals.get("self")).__name__
        word = SPECTRAL if path.startswith(HOME) and SPECTRAL in owner else word
    return word, "an unknown place"


def _is_in_function() -> bool:
    """Whether this is the forward of a function with a backward of its own, which runs so."""
    codes = (frame.f_code for frame in _frames())
    return any(code.co_name == "apply" and code.co_filename == FUNCTION for code in codes)


def _frames() -> Iterator[Any]:
    """What is running, the innermost first."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _tensors(inner)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def _is_held_back(given: Any, answer: Any, is_written: bool) -> bool:
    """Whether something with a graph went in, and nothing with one came out.

    What only comes through is not: a tensor that goes in and out again, unless it is written into.
    """
    if not any(x.requires_grad for x in _tensors(given)):
        return False
    if isinstance(answer, (float, int, list)) and not isinstance(answer, bool):
        return True
    found = list(_tensors(answer))
    if is_written:
        return len(found) == 1 and not found[0].requires_grad
    known = {id(x) for x in _tensors(given)}
    return bool(found) and not any(x.requires_grad or id(x) in known for x in found)


def _is_real(answer: Any) -> bool:
    """Whether it is no index or mask, which every loss may have."""
    return isinstance(answer, float) or any(x.is_floating_point() for x in _tensors(answer))


def _copy(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if type(value) in (list, tuple):
        return type(value)(_copy(inner) for inner in value)
    return value


def _is_alike(one: Any, other: Any) -> bool:
    pairs = zip(_tensors(one), _tensors(other), strict=False)
    return type(one) is type(other) and all(a.shape == b.shape for a, b in pairs)
