"""What a check of the flow is given: whether module and device can be used, the batch moved."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pytest_gradcheck.backends import tree
from pytest_gradcheck.backends.protocol import Leaf
from pytest_gradcheck.errors import UsageError

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these


def require_device(device: Any) -> str:
    """The name of a device that is there.

    Raises:
        UsageError: Nothing can be put there.
    """
    if device == "":
        return ""
    try:
        found = torch.empty(0, device=device)
        if found.is_meta:
            raise ValueError("it holds no values")
        return str(found.device)
    except (RuntimeError, AssertionError, TypeError, ValueError, NotImplementedError) as error:
        there = ["cpu", *(f"cuda:{n}" for n in range(torch.cuda.device_count()))]
        there += ["mps"] if torch.backends.mps.is_available() else []
        told = str(error).splitlines()[0]
        raise UsageError(
            f"device={device!r} is not there ({told}); allowed: {', '.join(there)}"
        ) from error


def no_module(value: Any) -> str:
    """What stands in the place of a module, and what to give."""
    name = getattr(value, "__name__", "")
    if isinstance(value, type):
        return f"the class {name}; give an instance, {name}(...)"
    if inspect.isgenerator(value):
        return "a generator; give the model itself, not its parameters()"
    if inspect.isroutine(value):
        return f"the function {name}; give the module that it makes or calls"
    return f"{type(value).__name__} {value!r:.40}"


def require_module(model: Any) -> nn.Module:
    """The model, if its layers can be looked at and its parameters trained.

    Raises:
        UsageError: It is no module, or one that cannot be probed.
    """
    if not isinstance(model, nn.Module):
        told = no_module(model)
        made = ", or what makes one as make=" if inspect.isroutine(model) else ""
        raise UsageError(f"the torch backend takes an nn.Module first, and got {told}{made}")
    if isinstance(model, torch.jit.ScriptModule):
        raise UsageError("a scripted module shows no layers: give the module it was made from")
    parameters = list(model.parameters())
    if any(map(nn.parameter.is_lazy, parameters)):
        raise UsageError("the module has parameters without a shape: run it once before")
    if not parameters:
        raise UsageError(f"{type(model).__name__} has no parameters: nothing can be trained")
    if any(p.is_inference() for p in parameters):
        raise UsageError(
            f"{type(model).__name__} was built in inference mode, and cannot be trained: build it "
            f"outside torch.inference_mode()"
        )
    if any(p.is_meta for p in parameters):
        raise UsageError(
            f"{type(model).__name__} has parameters on the meta device, without values: give them "
            f"some with to_empty(device='cpu') and reset_parameters()"
        )
    return model


def moved(batch: Any, device: str) -> Any:
    """The batch, its tensors on a device where one is named, and none of inference mode."""
    flat = tree.flatten(batch, Leaf, lambda node: None)
    values = [_moved(leaf.value, device) for leaf in flat.leaves]
    if all(a is leaf.value for a, leaf in zip(values, flat.leaves, strict=True)):
        return batch
    return flat.rebuild(values)


def cast(batch: Any, dtype: torch.dtype) -> Any:
    """The batch with its real tensors in a precision."""
    flat = tree.flatten(batch, Leaf, lambda node: None)
    values = [leaf.value for leaf in flat.leaves]
    is_real = [isinstance(v, Tensor) and v.is_floating_point() for v in values]
    return flat.rebuild([v.to(dtype) if r else v for v, r in zip(values, is_real, strict=True)])


def _moved(value: Any, device: str) -> Any:
    if not isinstance(value, Tensor):
        return value
    value = value.clone() if value.is_inference() else value
    return value.to(device) if device else value


def require_owned(optimizer: Any, model: nn.Module) -> None:
    """Refuse an optimizer that moves nothing of the model.

    Raises:
        UsageError: None of its parameters is one of the model's.
    """
    groups = getattr(optimizer, "param_groups", None)
    if not groups:
        return
    mine = set(map(id, model.parameters()))
    if not any(id(p) in mine for group in groups for p in group["params"]):
        raise UsageError(
            "optimizer= holds none of the model's parameters; give what makes one, such as "
            "optimizer=lambda parameters: torch.optim.SGD(parameters, 0.1)"
        )


def optimizer(make: Callable[..., Any], model: nn.Module) -> Any:
    """What the user makes of the parameters of a model.

    Raises:
        UsageError: It raises.
    """
    try:
        return make(list(model.parameters()))  # a list: groups may be picked from it twice
    except Exception as error:  # whatever the user's code raises, told with its own words
        raise refused(error) from error


def refused(error: Exception) -> UsageError:
    """What is said of an optimizer that cannot be made, or whose step raises."""
    return UsageError(
        "optimizer= must be an optimizer whose step needs no closure, or make one of the list of "
        "the model's parameters, such as optimizer=lambda parameters: torch.optim.SGD(parameters, "
        f"0.1); it raised {type(error).__name__}: {error}"
    )


def detached(value: Any) -> Any:
    """Nested arguments with their tensors out of any graph."""
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, dict):
        return {key: detached(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        return type(value)(map(detached, value))
    return value


def copied(*parts: Any) -> Any:
    """A deep copy of modules and what belongs to them; tensors of a graph are shared.

    Raises:
        UsageError: Something in them has no copies.
    """
    modules = [m for part in parts if isinstance(part, nn.Module) for m in part.modules()]
    held = [v for m in modules for v in (*vars(m).values(), *m._buffers.values())]
    memo = {id(v): v for v in held if isinstance(v, Tensor) and not v.is_leaf}
    try:
        return copy.deepcopy(parts if len(parts) > 1 else parts[0], memo)
    except (RuntimeError, TypeError) as error:
        told = str(error).splitlines()[0]
        raise UsageError(f"the model cannot be copied, which a step on it needs: {told}") from error
