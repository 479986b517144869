"""The samples of a torch batch and the answers to them: one replaced, or all told by the loss."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pytest_gradcheck.backends import samples, targets, torch_loss, tree
from pytest_gradcheck.backends.protocol import Leaf

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these


def exchanged(batch: Any) -> Any:
    """The batch with a copy of its second sample in the place of its first."""
    if isinstance(batch, Tensor) and batch.ndim and len(batch) > 2 and batch.is_floating_point():
        fresh = batch.detach().clone()
        fresh[0] = batch[1]  # a sample of the user's own, whatever its values mean
        return fresh
    if isinstance(batch, dict):
        return {key: exchanged(value) for key, value in batch.items()}
    if isinstance(batch, (list, tuple)) and not hasattr(batch, "_fields"):
        return type(batch)(exchanged(value) for value in batch)
    return batch


def lengths(batch: Any) -> set[int]:
    """Of the tensors in which a sample is exchanged."""
    leaves = tree.flatten(batch, Leaf, lambda node: None).leaves
    tensors = [y.value for y in leaves if isinstance(y.value, Tensor)]
    return {len(x) for x in tensors if x.ndim and x.is_floating_point()}


def shuffled(batch: Any, number: int) -> Any:
    """The batch with other samples, each feature one of the batch's own; None if it has none."""
    flat = tree.flatten(batch, Leaf, lambda node: None)
    spots = [n for n, leaf in enumerate(flat.leaves) if _has_features(leaf.value)]
    arrays = [flat.leaves[n].value.detach().cpu() for n in spots]
    # As whole numbers of the places that they come from, since NumPy lacks some precisions.
    places = [np.arange(a.numel()).reshape(a.shape) for a in arrays]
    other = samples.shuffled(places, number)
    if not spots or other is None:
        return None
    values = [leaf.value for leaf in flat.leaves]
    for n, a, place in zip(spots, arrays, other, strict=True):
        fresh = a.flatten()[torch.from_numpy(place)].to(values[n].device)
        values[n] = fresh * samples.larger(number) if a.is_floating_point() else fresh
    return flat.rebuild(values)


def _has_features(x: Any) -> bool:
    return isinstance(x, Tensor) and x.layout == torch.strided and x.ndim > 1


def answer(model: nn.Module, loss: torch_loss.Loss, batch: Any) -> Tensor | None:
    """What the model answers, where that is one tensor of floats in one call."""
    answers: list[Any] = []
    handle = model.register_forward_hook(lambda module, args, output: answers.append(output))
    try:
        with torch.enable_grad():  # a loss may differentiate inside
            torch_loss.value_of(loss, model, batch)
    finally:
        handle.remove()
    told = answers[0] if len(answers) == 1 else None
    if not isinstance(told, Tensor) or torch._C._functorch.is_functorch_wrapped_tensor(told):
        return None
    if not told.is_floating_point():
        return None
    return told.detach()


def constant(loss: float | None, told: Tensor | None, batch: Any) -> targets.Constant | None:
    """What the best constant answer costs, where that is certain."""
    if told is None or told.numel() > targets.MOST:
        return None
    leaves = tree.flatten(batch, Leaf, lambda node: None).leaves
    arrays = [_array(y.value) for y in leaves if isinstance(y.value, Tensor)]
    return targets.constant(loss, _array(told), arrays)


def _array(x: Tensor) -> Any:
    x = x.detach().cpu()
    return x.float().numpy() if x.is_floating_point() and x.itemsize < 4 else x.numpy()
