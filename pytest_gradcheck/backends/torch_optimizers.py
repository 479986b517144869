"""PyTorch optimizers: their names, groups and state, held and set back."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from pytest_gradcheck.backends.handed import takes
from pytest_gradcheck.backends.held import held_bindings
from pytest_gradcheck.backends.reach import reachable
from pytest_gradcheck.errors import UsageError

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

NESTED = 6  # objects inside of one another, from an optimizer to the tensors in its state
# Classes whose updates are replayed, by the exact class: a subclass may do anything.
NAMES = {
    getattr(torch.optim, kind): name
    for kind, name in {
        "SGD": "sgd",
        "Adam": "adam",
        "AdamW": "adamw",
        "Adamax": "adamax",
        "NAdam": "nadam",
        "RAdam": "radam",
        "RMSprop": "rmsprop",
        "Adagrad": "adagrad",
        "Adadelta": "adadelta",
        "Muon": "muon",
    }.items()
    if hasattr(torch.optim, kind)
}


def listed(optimizer: Any) -> list[Any]:
    """One optimizer or several as a list; what wraps one (``.optimizer``) opened."""
    if optimizer is None:
        return []
    found = list(optimizer) if isinstance(optimizer, (list, tuple)) else [optimizer]
    if not found:
        raise UsageError("Training.optimizer is empty: give the optimizers that the step uses")
    return [_opened(o) for o in found]


def rules(optimizers: Sequence[Any]) -> list[str]:
    """Names of the rules of optimizers, empty where a class does not say it, or none is known."""
    return [NAMES.get(type(o), "") for o in optimizers] or [""]


def _opened(optimizer: Any) -> Any:
    inner = getattr(optimizer, "optimizer", None)
    if not isinstance(optimizer, torch.optim.Optimizer) and isinstance(
        inner, torch.optim.Optimizer
    ):
        return inner
    if isinstance(optimizer, type):
        name = optimizer.__name__
        raise UsageError(
            f"Training.optimizer must be the optimizer that the step uses, got the class {name}"
        )
    if not callable(getattr(optimizer, "step", None)):
        raise UsageError(f"Training.optimizer must have a step(), got {optimizer!r}")
    return optimizer


# What the replay calls the parts of a state.
PARTS = {
    "exp_avg": "m",
    "exp_avg_sq": "v",
    "max_exp_avg_sq": "x",
    "exp_inf": "u",
    "mu_product": "p",
    "momentum_buffer": "b",
    "square_avg": "v",
    "grad_avg": "a",
    "acc_delta": "d",
    "sum": "v",
}


def started(optimizers: Sequence[Any], p: Tensor) -> tuple[dict[str, Any] | None, int]:
    """State of a parameter as a replay has it, and its count; None for one that is not known."""
    for optimizer in optimizers:
        state = getattr(optimizer, "state", {}).get(p)
        if not state:
            continue
        count = int(state.get("step", 0)) if "step" in state else 0
        parts = {k: v for k, v in state.items() if k != "step" and v is not None}
        if set(parts) - set(PARTS):
            return None, 0
        found = {
            PARTS[k]: v.detach().to("cpu", torch.float64, copy=True).numpy()
            if isinstance(v, Tensor)
            else v
            for k, v in parts.items()
        }
        return found, count
    return {}, 0


def groups(optimizer: Any) -> list[dict[str, Any]]:
    """The parameter groups; none for an optimizer of one's own that has none."""
    found = getattr(optimizer, "param_groups", None)
    return list(found) if isinstance(found, (list, tuple)) else []


def holders(optimizers: Sequence[Any]) -> dict[int, int]:
    """By how many groups each tensor is held, by its id."""
    found: dict[int, int] = {}
    for optimizer in optimizers:
        for p in (p for group in groups(optimizer) for p in group["params"]):
            found[id(p)] = found.get(id(p), 0) + 1
    return found


def hyper(group: Mapping[str, Any]) -> dict[str, Any]:
    """The hyperparameters of a group as plain numbers."""
    kept: dict[str, Any] = {}
    for name, value in group.items():
        if name == "params" or name == "param_names":
            continue
        if isinstance(value, Tensor) and value.numel() == 1:
            kept[name] = float(value)
        elif isinstance(value, tuple):
            kept[name] = tuple(float(v) if isinstance(v, Tensor) else v for v in value)
        else:
            kept[name] = value
    if kept.pop("decoupled_weight_decay", False):
        kept["decay"] = "decoupled"
    return kept


def hypers(optimizer: Any, tensors: Sequence[Tensor]) -> list[dict[str, Any]]:
    """The hyperparameters of each tensor; none of those that the optimizer does not hold."""
    found = {id(p): hyper(group) for group in groups(optimizer) for p in group["params"]}
    return [found.get(id(p), {}) for p in tensors]


def rates(optimizers: Sequence[Any]) -> list[Any]:
    """The learning rate of each group now."""
    return [hyper(group).get("lr") for o in optimizers for group in groups(o)]


def scale(optimizer: Any) -> float:
    """The loss scale that an optimizer divides by itself: a scaler hands it to fused ones."""
    given = getattr(optimizer, "grad_scale", None)
    return float(given) if isinstance(given, Tensor) and given.numel() == 1 else 1.0


def is_left_out(optimizer: Any) -> bool:
    """Whether a scaler told an optimizer that a gradient is not finite, so that it rests."""
    found = getattr(optimizer, "found_inf", None)
    return isinstance(found, Tensor) and bool(found)


@contextmanager
def held(optimizers: list[Any]) -> Iterator[None]:
    """Set state and groups of optimizers back afterwards: the same tensors with the same bits."""
    restorers = [restore for o in optimizers for restore in _restorers(o)]
    restorers += [r for o in optimizers if type(o) not in NAMES for r in its_own(o)]
    try:
        yield
    finally:
        for restore in restorers:
            restore()


def _restorers(optimizer: Any) -> Iterator[Callable[[], None]]:
    for group in groups(optimizer):
        yield _dictionary(group)
    state = getattr(optimizer, "state", None)
    if isinstance(state, Mapping):
        for inner in list(state.values()):
            if isinstance(inner, dict):
                yield _dictionary(inner)
        yield _dictionary(state)


def fresh(optimizers: Sequence[Any]) -> dict[int, list[Callable[[], None]]]:
    """What makes each optimizer of the user's what it is now, its parameters apart, by its id."""
    return {
        id(o): list(its_own(o, [p for group in groups(o) for p in group["params"]]))
        for o in optimizers
        if type(o) not in NAMES
    }


def its_own(optimizer: Any, without: Sequence[Tensor] = ()) -> Iterator[Callable[[], None]]:
    """What an optimizer of the user's, and one inside of it, keeps beside state and groups."""
    left = {id(p) for p in without}
    carried = [value for value in reachable([optimizer], NESTED) if id(value) not in left]
    yield from held_bindings(carried)
    for value in carried:
        if isinstance(value, Tensor) and value.layout == torch.strided:
            yield functools.partial(_copied_back, value, value.detach().clone())


def _copied_back(tensor: Tensor, value: Tensor) -> None:
    with torch.no_grad():
        tensor.detach().copy_(value)


def _dictionary(target: Any) -> Callable[[], None]:
    kept = dict(target)
    copies = {k: v.detach().clone() for k, v in kept.items() if isinstance(v, Tensor)}

    def restore() -> None:
        for key in [k for k in target if k not in kept]:
            del target[key]
        for key, value in kept.items():
            if key in copies:
                with torch.no_grad():  # not by detach(), which of a sparse tensor is a copy
                    value.copy_(copies[key])
            target[key] = value

    return restore


def shadows(pairs: list[tuple[str, Tensor]], held: dict[int, int]) -> dict[int, int]:
    """Master copies: numbers of tensors that only optimizers hold, and of what they stand for."""
    found: dict[int, int] = {}
    for i, (name, p) in enumerate(pairs):
        if not name.startswith("optimizer.") or id(p) not in held:
            continue
        for j, (_, q) in enumerate(pairs):
            is_candidate = j not in found.values() and id(q) not in held and q.shape == p.shape
            is_candidate = is_candidate and p.dtype != q.dtype
            if is_candidate and torch.equal(p.detach().to(q.dtype), q.detach()):
                found[i] = j
                break
    return found


def has_hooks(optimizer: Any) -> bool:
    """Whether it is one of torch's, made by its constructor: one around another may call none."""
    is_plain = isinstance(optimizer, torch.optim.Optimizer)
    return is_plain and "_optimizer_step_pre_hooks" in vars(optimizer)


def needs_closure(optimizer: Any) -> bool:
    """Whether a bare step cannot be made: it evaluates the loss itself, or is no torch one."""
    is_plain = isinstance(optimizer, torch.optim.Optimizer)
    is_plain = is_plain and not isinstance(optimizer, torch.optim.LBFGS)
    return not is_plain or takes(type(optimizer).step, 1) > 1
