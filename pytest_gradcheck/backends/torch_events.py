"""PyTorch: what happens inside a step, seen through functions that are replaced meanwhile."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import FunctionType
from typing import Any

import torch

from pytest_gradcheck.backends import torch_overrides
from pytest_gradcheck.backends.reach import names_of
from pytest_gradcheck.backends.torch_patches import replaced

Note = Callable[..., None]  # word, number, and of a clip its parameters, order and given norm


@contextmanager
def seen(carried: Sequence[Any], note: Note) -> Iterator[None]:
    """Note backward, clips, unscale, skipped steps, schedulers and zero_grad while it is open.

    Args:
        carried: Functions of the user's, among what else they carry along.
        note: Is told.
    """
    imported = _imported(carried)
    with ExitStack() as stack:
        stack.enter_context(torch_overrides.known())
        for owner, name, told, at in _targets():
            stack.enter_context(
                replaced(owner, name, _noting(getattr(owner, name), told, note, at))
            )
        for space, name, told in imported:
            stack.enter_context(_rebound(space, name, _noting(space[name], told, note, 1)))
        yield


def _targets() -> Iterator[tuple[Any, str, str, int]]:
    """Owner, name, word, and the position of the number to note."""
    utils = torch.nn.utils
    for owner in (utils, utils.clip_grad):
        yield owner, "clip_grad_norm_", "clip", 1
        yield owner, "clip_grad_value_", "clip by value", 1
        if hasattr(owner, "clip_grads_with_norm_"):
            yield owner, "clip_grads_with_norm_", "clip with a norm", 1
    yield torch.autograd, "backward", "backward", -1
    yield torch.autograd, "grad", "grad", -1  # of torch.func, too
    yield torch.optim.Optimizer, "zero_grad", "zero_grad", -1
    yield torch.nn.Module, "zero_grad", "zero_grad", -1
    for kind in _schedulers():
        if "step" in vars(kind):
            yield kind, "step", "scheduler", -1
    if hasattr(torch.amp, "GradScaler"):
        yield torch.amp.GradScaler, "unscale_", "unscale", -1
        yield torch.amp.GradScaler, "update", "scaler update", -1
        yield torch.amp.GradScaler, "step", "scaler step", -1


def _schedulers() -> list[Any]:
    found, pending = [], [torch.optim.lr_scheduler.LRScheduler]
    while pending:
        kind = pending.pop()
        if kind not in found:
            found.append(kind)
            pending += kind.__subclasses__()
    return found


def _imported(carried: Sequence[Any]) -> list[tuple[dict[str, Any], str, str]]:
    """Names under which the user's modules have imported the clips."""
    words = {
        torch.nn.utils.clip_grad_norm_: "clip",
        torch.nn.utils.clip_grad_value_: "clip by value",
        getattr(torch.nn.utils, "clip_grads_with_norm_", None): "clip with a norm",
    }
    found = {}
    for value in carried:
        if isinstance(value, FunctionType):
            for name in names_of(value.__code__):
                known = value.__globals__.get(name)
                if isinstance(known, FunctionType) and known in words:
                    found[id(value.__globals__), name] = (value.__globals__, name, words[known])
    return list(found.values())


_DEPTH = [0]


def _noting(function: Any, word: str, note: Note, position: int) -> Any:
    @functools.wraps(function)
    def noting(*args: Any, **kwargs: Any) -> Any:
        if word.startswith("clip"):
            number = _number(args, kwargs, position)
            args, kwargs, held = _listed(args, kwargs)
            third = _third(args, kwargs)
            order, size = (2.0, third) if word == "clip with a norm" else (third, math.nan)
            told = functools.partial(note, word, number, held, order, size)
            return _outermost(function, told, args, kwargs)
        if word == "scheduler" or word.startswith("scaler") or word == "unscale":
            told = functools.partial(note, word, float(id(args[0])) if args else math.nan)
            return _outermost(function, told, args, kwargs)
        number = _number(args, kwargs, position)
        if word in ("backward", "grad"):  # it is over when the gradients are there
            answer = function(*args, **kwargs)
            with torch_overrides.again():
                note(word, number)
            return answer
        note(word, number)
        return function(*args, **kwargs)

    return noting


def _outermost(function: Any, told: Callable[[], None], args: Any, kwargs: Any) -> Any:
    """Schedulers, scalers and clips call one another: only what the user called counts."""
    if not _DEPTH[0]:
        told()
    _DEPTH[0] += 1
    try:
        return function(*args, **kwargs)
    finally:
        _DEPTH[0] -= 1


def _listed(args: Any, kwargs: Any) -> tuple[Any, Any, list[Any]]:
    """The arguments of a clip with a list of parameters, since an iterator is read once only."""
    given = args[0] if args else kwargs.get("parameters", ())
    held = [given] if isinstance(given, torch.Tensor) else list(given)
    if args:
        return (held, *args[1:]), kwargs, held
    return args, {**kwargs, "parameters": held}, held


def _third(args: Any, kwargs: Any) -> float:
    """The order of a norm, or the norm itself."""
    value = args[2] if len(args) > 2 else kwargs.get("norm_type", kwargs.get("total_norm", 2.0))
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def _number(args: Any, kwargs: Any, position: int) -> float:
    value = args[position] if 0 < position < len(args) else math.nan
    value = kwargs.get("max_norm", kwargs.get("clip_value", value))
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


@contextmanager
def _rebound(space: dict[str, Any], name: str, new: Any) -> Iterator[None]:
    old = space[name]
    space[name] = new
    try:
        yield
    finally:
        space[name] = old
