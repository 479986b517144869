"""The loss of a PyTorch model as the user computes it, its gradients, and that of a zero answer."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pytest_gradcheck.backends.handed import scalar, telling
from pytest_gradcheck.backends.raised import loss_raised
from pytest_gradcheck.errors import UsageError

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

Loss = Callable[[Any, Any], Any]
_GRAD = torch.autograd.grad  # not what stands there while a step is watched


def value_of(loss: Loss, model: nn.Module, batch: Any) -> Tensor:
    """The loss as a tensor of one element.

    Raises:
        UsageError: The loss raises, or is no scalar tensor.
    """
    try:
        value = loss(model, batch)
    except Exception as error:  # whatever the user's code raises, told with its own words
        raise loss_raised("loss(model, batch)", model, batch, error) from error
    if not isinstance(value, Tensor) or value.numel() != 1 or value.is_complex():
        given = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        told = f"{given} of {value.dtype}" if given == () else given  # one number, but complex
        cut = "return the tensor itself, without .item() or float(): they cut off the gradient"
        tried = cut if isinstance(value, float) else "try .mean() or .sum()"
        raise UsageError(
            f"loss(model, batch) must give a real tensor of one element, it gave {told}; {tried}"
        )
    return value.reshape(())


def of_training(loss: Callable[..., Any], given: Sequence[Any]) -> Tensor:
    """The loss of a training as a tensor of one element; the first of a tuple counts.

    Raises:
        UsageError: The loss raises, or is no number.
    """
    with telling("Training.loss", given):
        value = scalar(loss(*given))
    if type(value) in (int, float):
        if value:
            raise UsageError(
                f"Training.loss must give a tensor, it gave the number {value!r:.12}, which has no "
                f"gradient; return the tensor itself, without item() or float()"
            )
        value = torch.as_tensor(value)
    if not isinstance(value, Tensor) or value.numel() != 1 or value.is_complex():
        shown = (
            f"a tensor of shape {tuple(value.shape)}, {value.dtype}"
            if isinstance(value, Tensor)
            else f"{type(value).__name__} {value!r:.40}"
        )
        raise UsageError(
            f"Training.loss must give a real tensor of one element, it gave {shown}; return the "
            f"number that is to become smaller, such as the mean over the batch"
        )
    return value.reshape(())


class ReentrantError(Exception):
    """A graph that only ``backward`` can go through, such as a checkpoint of the older kind."""


@contextmanager
def _welcome() -> Iterator[None]:
    """Backward passes that are not Lightning Fabric's own, whose modules would refuse them."""
    name = "_in_fabric_backward"
    modules = [sys.modules.get(f"lightning{dot}fabric.wrappers") for dot in "._"]
    held = [
        (module, vars(module)[name])
        for module in modules
        if name in getattr(module, "__dict__", {})
    ]
    for module, _ in held:
        setattr(module, name, True)
    try:
        yield
    finally:
        for module, value in held:
            setattr(module, name, value)


@_welcome()
def alone(value: Tensor, wanted: Sequence[Tensor]) -> Sequence[Tensor | None]:
    """Gradients of which nobody hears who watches what a step differentiates."""
    if not value.requires_grad or not wanted:
        return [None] * len(wanted)
    with torch._C.DisableTorchFunction():  # whose modes call what stands there
        grads: Sequence[Tensor | None] = _GRAD(value, list(wanted), allow_unused=True)
    return grads


@_welcome()
def pulled(value: Tensor, wanted: Sequence[Tensor]) -> list[Tensor | None]:
    """Gradients without touching ``.grad`` and the hooks that wait for it.

    Raises:
        ReentrantError: A checkpoint, or a hook of the loss, goes on by ``backward``.
        UsageError: The loss ran ``backward`` itself, or a backward of the user's raises.
    """
    if not value.requires_grad or not wanted:
        return [None] * len(wanted)
    try:
        found = list(torch.autograd.grad(value, list(wanted), allow_unused=True))
    except Exception as error:  # whatever the user's code raises, told with its own words
        if "checkpoint" in str(error).lower():
            raise ReentrantError from error
        raise _refused(error) from error
    # Parameters inside of a checkpoint are in no graph, and then nobody complains.
    if any(g is None for g in found) and _goes_on(value, wanted):
        raise ReentrantError
    return found


def nodes(*roots: Any) -> Iterator[Any]:
    """Every node of a graph, once."""
    pending, seen = list(roots), set()
    while pending:
        node = pending.pop()
        if node is not None and node not in seen:
            seen.add(node)
            pending += [inner for inner, _ in node.next_functions]
            yield node


def _goes_on(value: Tensor, wanted: Sequence[Tensor]) -> bool:
    """Whether a graph goes on in a checkpoint of the older kind, or in the hook of another leaf.

    So do losses that cache the gradients of embeddings (GradCache).
    """
    known = {id(p) for p in wanted}
    for node in nodes(value.grad_fn):
        leaf: Any = getattr(node, "variable", None)
        is_hooked = id(leaf) not in known and bool(getattr(leaf, "_backward_hooks", None))
        if is_hooked or "CheckpointFunction" in node.name():
            return True
    return False


def own_functions(value: Tensor) -> list[str]:
    """Names of the functions in a graph whose backward is written in Python."""
    own = torch.autograd.function.BackwardCFunction
    names = [n.name().removesuffix("Backward") for n in nodes(value.grad_fn) if isinstance(n, own)]
    theirs = ("CheckpointFunction", "BackwardHookFunction")  # of torch itself
    return [name for name in dict.fromkeys(names) if name not in theirs]


def padding(value: Tensor) -> dict[int, list[int]]:
    """Rows that embeddings in a graph give no gradient to, by the ids of their tables.

    What torch says of ``padding_idx``: the row counts in what is computed, and is not trained.
    """
    found: dict[int, list[int]] = {}
    for node in nodes(value.grad_fn):
        if not hasattr(node, "_saved_padding_idx"):
            continue
        row: int = node._saved_padding_idx  # far beyond the last one, where there is none
        table: Any = node.next_functions[0][0]
        while table is not None and not hasattr(table, "variable") and table.next_functions:
            table = table.next_functions[0][0]  # a copy in another precision
        if hasattr(table, "variable") and row < len(table.variable):
            found.setdefault(id(table.variable), []).append(row)
    return found


def tokens(value: Tensor) -> float | None:
    """By what the only cross entropy in a graph divides; None where it is none, or not a mean."""
    found = [node for node in nodes(value.grad_fn) if hasattr(node, "_saved_total_weight")]
    if len(found) != 1 or found[0]._saved_reduction != 1:
        return None
    return float(found[0]._saved_total_weight)


@_welcome()
def accumulated(value: Tensor, wanted: Sequence[Tensor]) -> list[Tensor | None]:
    """Gradients by ``backward``; ``.grad`` is set back."""
    waiting = [p._post_accumulate_grad_hooks or {} for p in wanted]
    kept = [(p, p.grad, hooks, dict(hooks)) for p, hooks in zip(wanted, waiting, strict=True)]
    try:
        for p, _, hooks, _ in kept:  # an optimizer that waits for a gradient does not get this one
            p.grad = None
            hooks.clear()
        value.backward()
        return [p.grad for p in wanted]
    except Exception as error:  # likewise
        raise _refused(error) from error
    finally:
        for p, grad, hooks, own in kept:
            p.grad = grad
            hooks.update(own)


def _refused(error: Exception) -> UsageError:
    if "second time" in str(error):
        return UsageError(
            "the graph of the loss is used up: the loss must return a value whose graph is whole, "
            "and leave backward and the optimizer's step to the check; a derivative inside of it "
            "(torch.autograd.grad) needs create_graph=True"
        )
    return UsageError(f"the backward pass raised {type(error).__name__}: {error}")


def plain(model: nn.Module, loss: Loss, batch: Any) -> tuple[float, Tensor | None]:
    """The loss of a model that answers zero, and what it does answer.

    NaN and None where the answer is no single tensor.
    """
    changed: list[Tensor] = []

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        is_inside = torch._C._functorch.is_functorch_wrapped_tensor  # of vmap: no value of its own
        if isinstance(output, Tensor) and output.is_floating_point() and not is_inside(output):
            changed.append(output.detach())
            return torch.zeros_like(output)
        return None

    handle = model.register_forward_hook(hook)
    try:
        with torch.no_grad():
            value = float(value_of(loss, model, batch))
    except UsageError:
        return math.nan, None
    finally:
        handle.remove()
    return (value, changed[0]) if len(changed) == 1 else (math.nan, None)
