"""Values of a torch model and its batch that are not finite before anything is computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pytest_gradcheck.backends import given, torch_input, tree
from pytest_gradcheck.backends.layers import Origin
from pytest_gradcheck.backends.protocol import Leaf

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these


def blamed(
    model: nn.Module, batch: Any, is_finite: Callable[[nn.Module, Any], bool], reaches: str
) -> Origin | None:
    """The value that is to blame; None where none is."""
    flat = tree.flatten(batch, Leaf, lambda node: None)
    spots = [n for n, leaf in enumerate(flat.leaves) if _is_bad(leaf.value)]
    names = [n for n, p in model.named_parameters() if _is_bad(p)]
    held = [n for n, b in model.named_buffers() if _is_bad(b)]
    ill = [flat.leaves[n] for n in spots]
    found = [_of(leaf.value, "input", given.of_batch(leaf.path)) for leaf in ill]
    found += [_of(model.get_parameter(n), "parameter", n) for n in names]
    found += [_of(model.get_buffer(n), "buffer", n) for n in held]

    def outcome(mended: dict[int, np.ndarray]) -> bool:
        values, fresh = [leaf.value for leaf in flat.leaves], torch_input.copied(model)
        own = [*map(fresh.get_parameter, names), *map(fresh.get_buffer, held)]
        with torch.no_grad():
            for n, array in mended.items():
                if n < len(spots):
                    values[spots[n]] = torch.as_tensor(array, device="cpu").to(values[spots[n]])
                else:
                    own[n - len(spots)].copy_(torch.as_tensor(array, device="cpu"))
        return is_finite(fresh, flat.rebuild(values) if spots else batch)

    return given.blamed(found, outcome, reaches) if found else None


def _is_bad(x: Any) -> bool:
    if not isinstance(x, Tensor) or x.layout != torch.strided or not x.is_floating_point():
        return False
    return not bool(torch.isfinite(x.detach()).all())


def _of(x: Tensor, what: str, name: str) -> given.Given:
    return given.Given(what, name, x.detach().cpu().double().numpy())
