"""PyTorch: schedulers and loss scalers that are saved, go on, are loaded, and go on again."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from pytest_gradcheck.backends import torch_optimizers
from pytest_gradcheck.backends.handed import takes
from pytest_gradcheck.backends.held import held_bindings
from pytest_gradcheck.backends.numpy import held_arrays
from pytest_gradcheck.backends.reach import reachable

AHEAD = 64  # steps of a scheduler: what it leaves out shows once the rate changes
_PLATEAU = torch.optim.lr_scheduler.ReduceLROnPlateau


def resumed(roots: Sequence[Any], optimizers: Sequence[Any]) -> list[tuple[str, str]]:
    """What does not go on from its saved state as it went on before: a name, and how."""
    found = []
    for value in reachable(roots):
        if any(value is o for o in optimizers) or not _can_be_saved(value):
            continue
        told = ""
        if _is_scaler(value):
            told = _scaler(value)
        elif any(getattr(value, "optimizer", None) is o for o in optimizers):
            told = _scheduler(value, optimizers)
        if told:
            found.append((type(value).__name__, told))
    return found


def _can_be_saved(value: Any) -> bool:
    needed = ("state_dict", "load_state_dict", "step")
    return not isinstance(value, type) and all(callable(getattr(value, n, None)) for n in needed)


def _is_scaler(value: Any) -> bool:
    return callable(getattr(value, "get_scale", None)) and callable(getattr(value, "update", None))


@contextmanager
def _kept(value: Any, optimizers: Sequence[Any]) -> Iterator[None]:
    """Set attributes and containers of an object, and the groups of optimizers, back."""
    foreign = {id(v) for v in reachable(optimizers)}
    inner = [v for v in reachable([value]) if id(v) not in foreign]
    restorers = [*held_bindings(inner), *held_arrays(inner)]
    tensors = [(v, v.detach().clone()) for v in inner if isinstance(v, Tensor)]
    try:
        with torch_optimizers.held(list(optimizers)):
            yield
    finally:
        for restore in restorers:
            restore()
        with torch.no_grad():
            for tensor, old in tensors:
                tensor.detach().copy_(old)


def _scheduler(scheduler: Any, optimizers: Sequence[Any]) -> str:
    """How the learning rate goes on otherwise; empty where it does not."""
    needed = takes(type(scheduler).step, 2) - 1  # without the object itself
    if needed > (1 if isinstance(scheduler, _PLATEAU) else 0):
        return ""
    with _kept(scheduler, optimizers):
        try:
            saved = copy.deepcopy(scheduler.state_dict())
        except Exception:  # what cannot be copied may well be pickled
            return ""
        groups = [group for o in optimizers for group in torch_optimizers.groups(o)]
        kept = [{k: _cloned(v) for k, v in group.items() if k != "params"} for group in groups]
        first = _rates(scheduler, needed, groups)
        for group, old in zip(groups, kept, strict=True):
            group.update(old)
        try:
            scheduler.load_state_dict(copy.deepcopy(saved))
        except Exception as error:  # whatever the user's code raises is what is to be told
            return f"its state cannot be loaded ({type(error).__name__}: {error})"
        second = _rates(scheduler, needed, groups)
    for number, (one, other) in enumerate(zip(first, second, strict=False), start=1):
        if one != other:
            pairs = zip(one, other, strict=True)
            right, wrong = next((a, b) for a, b in pairs if a != b)
            return f"after {number} more steps the learning rate is {wrong:.4g}, not {right:.4g}"
    return ""


def _rates(scheduler: Any, needed: int, groups: Sequence[Any]) -> list[list[float]]:
    """The learning rate of each group after each of many steps, as far as it goes."""
    found = []
    for _ in range(AHEAD):
        try:
            scheduler.step(*[1.0] * needed)
        except Exception:  # one that has an end refuses to go on
            break
        found.append([float(group.get("lr", 0.0)) for group in groups])
    return found


def _cloned(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def _scaler(scaler: Any) -> str:
    """How a scaler is another one after it was loaded; empty where it is not."""
    with _kept(scaler, ()):
        try:
            saved = copy.deepcopy(scaler.state_dict())
            scale = float(scaler.get_scale())
            if not saved:  # it is switched off
                return ""
            scaler.update(2 * scale)
        except Exception:  # one that has another form of update is not asked
            return ""
        try:
            scaler.load_state_dict(copy.deepcopy(saved))
        except Exception as error:  # whatever the user's code raises is what is to be told
            return f"its state cannot be loaded ({type(error).__name__}: {error})"
        loaded = float(scaler.get_scale())
    return "" if loaded == scale else f"the loss scale is {loaded:.4g}, not {scale:.4g}"
