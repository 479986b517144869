"""Clips whose framework nothing names but what they do with their argument."""

import numpy as np
import pytest

from pytest_gradcheck import check_clipping

torch = pytest.importorskip("torch")
clip = torch.nn.utils.clip_grad_norm_  # a global with the name of an attribute of NumPy


def of_model(model):
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    norm = sum(g.norm().item() ** 2 for g in grads) ** 0.5
    for g in grads:
        g.mul_(min(1, 1 / (norm + 1e-6)))


def of_list(params):
    grads = [p.grad for p in params if p.grad is not None]
    norm = sum(g.norm().item() ** 2 for g in grads) ** 0.5
    for g in grads:
        g.mul_(min(1, 1 / (norm + 1e-6)))


def with_numpy(params):
    norm = float(np.sqrt(sum(p.grad.norm().item() ** 2 for p in params if p.grad is not None)))
    for p in params:
        if p.grad is not None:
            p.grad.mul_(min(1, 1 / (norm + 1e-6)))


class Clipper:
    def __call__(self, params):
        for p in params:
            if p.grad is not None:
                p.grad.mul_(0.5)


@pytest.mark.parametrize("made", [of_model, of_list, with_numpy])
def test_a_clip_by_hand_that_names_no_framework_is_one_of_torch(made):
    result = check_clipping(made, max_norm=1.0)
    assert result.context.backend == "torch"
    assert result.verdict == "pass", result.headline


def test_an_object_that_clips_by_hand():
    assert check_clipping(Clipper(), max_norm=1.0).context.backend == "torch"


def test_the_name_of_an_attribute_is_no_global():
    result = check_clipping(lambda g: [np.clip(x, -1, 1) for x in g], max_value=1.0)
    assert result.context.backend == "numpy"
    assert result.verdict == "pass", result.headline
