"""A right clip under a limit tighter than its rounding: by how much it is off, and no mistake."""

import numpy as np
import pytest
import torch
from torch.nn.utils import clip_grad_norm_

from pytest_gradcheck import check_clipping


def exact(params, max_norm):
    grads = [p.grad for p in params if p.grad is not None]
    total = torch.sqrt(sum((g.double() ** 2).sum() for g in grads))
    if total > max_norm:
        for g in grads:
            g.mul_(max_norm / total)
    return total


@pytest.mark.parametrize("clip", [exact, clip_grad_norm_])
@pytest.mark.parametrize("limit", [1e-15, 1e-8])
def test_a_right_clip_beyond_a_tight_limit(clip, limit):
    assert check_clipping(clip, max_norm=1.0).verdict == "pass"
    result = check_clipping(clip, max_norm=1.0, clip_rounding=limit)
    assert result.verdict == "fail"
    assert result.findings[0].code == "clip-norm"
    assert f"more than clip_rounding={limit:g} allows" in result.headline
    assert "clip_rounding=" in result.advice[0]


def test_per_tensor():
    def clip(grads):
        def one(g):
            norm = np.float32(np.linalg.norm(g))
            return g / norm if norm > 1 else g

        return [one(g) for g in grads]

    result = check_clipping(
        clip, max_norm=1.0, per="tensor", dtypes=("float32",), clip_rounding=1e-9
    )
    assert "allows, and otherwise right" in result.headline


@pytest.mark.parametrize("limit", [None, 1e-8])
def test_one_that_boosts_small_gradients_is_still_named(limit):
    def clip(params, max_norm):
        grads = [p.grad for p in params if p.grad is not None]
        total = torch.sqrt(sum((g**2).sum() for g in grads))
        for g in grads:
            g.mul_(max_norm / total)

    result = check_clipping(clip, max_norm=1.0, clip_rounding=limit)
    assert result.findings[0].code == "clip-boost"
