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


def sizes(grads):
    return [float(np.linalg.norm(g)) for g in grads]


NORMS = {
    "the largest norm of a tensor": max,
    "the sum of the norms of the tensors": sum,
    "the mean of the norms of the tensors": np.mean,
    "the root of the sum of the norms": lambda all: sum(all) ** 0.5,
}


@pytest.mark.parametrize("what", NORMS)
def test_norms_of_tensors_that_are_put_together_otherwise(what):
    def by_hand(grads):
        return [g * min(1.0, 1.0 / (NORMS[what](sizes(grads)) + 1e-6)) for g in grads]

    def of_torch(params):
        grads = [p.grad for p in params if p.grad is not None]
        size = NORMS[what]([g.norm().item() for g in grads])
        for g in grads:
            g.mul_(min(1.0, 1.0 / (size + 1e-6)))

    for made in (by_hand, of_torch):
        assert f"takes {what} for the norm of all" in check_clipping(made, max_norm=1.0).headline


def test_the_root_mean_square_of_the_elements():
    def by_hand(grads):
        size = np.sqrt(np.mean(np.concatenate([g.ravel() for g in grads]) ** 2))
        return [g * min(1.0, 1.0 / (size + 1e-6)) for g in grads]

    result = check_clipping(by_hand, max_norm=1.0)
    assert "the root mean square of the elements" in result.headline
    assert check_clipping(by_hand, max_norm=1.0, norm_type="rms").verdict == "pass"
