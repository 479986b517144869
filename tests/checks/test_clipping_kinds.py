"""Clips of torch over parameters of several precisions, complex ones, and with a given norm."""

import numpy as np
import pytest

from pytest_gradcheck import UsageError, check_clipping

torch = pytest.importorskip("torch")
nn = torch.nn
clip_norm, clip_value = nn.utils.clip_grad_norm_, nn.utils.clip_grad_value_


def mixed(*dtypes):
    shapes = [(4, 3), (6,), (2, 2, 3), (5,)]
    kinds = [dtypes[k % len(dtypes)] for k in range(4)]
    return [nn.Parameter(torch.ones(s, dtype=d)) for s, d in zip(shapes, kinds, strict=True)]


KINDS = {
    "float32 first, bfloat16": (torch.float32, torch.bfloat16),
    "bfloat16 first, float32": (torch.bfloat16, torch.float32),
    "float32 first, float16": (torch.float32, torch.float16),
    "float64 first, float32": (torch.float64, torch.float32),
    "three precisions": (torch.float32, torch.float16, torch.bfloat16),
    "complex64": (torch.complex64,),
    "complex128 and float64": (torch.complex128, torch.float64),
    "float32 and complex64": (torch.float32, torch.complex64),
}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("order", [1.0, 2.0, float("inf")])
def test_the_clip_of_torch_over_every_kind_of_parameter(name, order):
    params = mixed(*KINDS[name])
    result = check_clipping(
        lambda ps: clip_norm(ps, 0.5, order), params=params, max_norm=0.5, norm_type=order
    )
    assert result.verdict == "pass", result.headline


@pytest.mark.parametrize("name", KINDS)
def test_a_clip_by_value_over_every_kind(name):
    if any(dtype.is_complex for dtype in KINDS[name]):
        pytest.skip("torch clips no complex values")
    params = mixed(*KINDS[name])
    result = check_clipping(lambda ps: clip_value(ps, 0.5), params=params, max_value=0.5)
    assert result.verdict == "pass", result.headline


def boosted(parameters):
    size = torch.linalg.vector_norm(torch.stack([p.grad.abs().norm().float() for p in parameters]))
    for p in parameters:
        p.grad.mul_(float(0.5 / size))


def halved(parameters):
    clip_norm(parameters, 0.5)
    parameters[0].grad.mul_(0.5)


def each(parameters):
    for p in parameters:
        clip_norm([p], 0.5)


def real_only(parameters):
    for p in parameters:
        if p.grad.is_complex():
            p.grad = p.grad.real.to(p.dtype)
    clip_norm(parameters, 0.5)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(
    ("clip", "code"),
    [(boosted, "clip-boost"), (halved, ""), (each, "clip-per-tensor")],
    ids=["boosted", "halved", "each"],
)
def test_a_wrong_clip_over_every_kind_is_caught(name, clip, code):
    result = check_clipping(clip, params=mixed(*KINDS[name]), max_norm=0.5)
    assert result.verdict == "fail"
    assert result.findings[0].code == code or not code


def test_imaginary_parts_are_seen():
    result = check_clipping(real_only, params=mixed(torch.complex64), max_norm=0.5)
    assert result.verdict == "fail"


def test_a_clip_with_a_norm_that_is_given():
    def clip(parameters):
        parameters = list(parameters)
        total = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        nn.utils.clip_grads_with_norm_(parameters, 0.5, total)
        return total

    assert check_clipping(clip, max_norm=0.5).verdict == "pass"


@pytest.mark.parametrize("name", ["threshold", "max_norm", "clip_value"])
def test_a_threshold_is_handed_over_whatever_it_is_called(name):
    names: dict = {}
    exec(
        f"def clip(gradients, {name}):\n"
        f"    return [np.clip(g, -{name}, {name}) for g in gradients]",
        {"np": np},
        names,
    )
    assert check_clipping(names["clip"], max_value=0.5).verdict == "pass"


@pytest.mark.parametrize("dtypes", ["float32", ["float23"], [], 3])
def test_precisions_that_are_not_there_are_refused(dtypes):
    with pytest.raises(UsageError, match=r"dtypes=.* is not allowed; allowed: some of \['float16"):
        check_clipping(lambda gs: gs, max_norm=1.0, dtypes=dtypes)


def test_precisions_may_be_those_of_a_framework():
    def clip(gradients):
        norm = np.sqrt(sum(float(np.sum(np.square(g, dtype=np.float64))) for g in gradients))
        return [(g * min(1.0, 0.5 / norm)).astype(g.dtype) for g in gradients]

    result = check_clipping(clip, max_norm=0.5, dtypes=[np.float32, "float64"])
    assert result.verdict == check_clipping(clip, max_norm=0.5, dtypes=["float32"]).verdict


@pytest.mark.parametrize("name", ["max_norm", "max_value"])
def test_a_threshold_in_words_is_refused(name):
    with pytest.raises(UsageError, match="is not allowed; allowed: a number above 0"):
        check_clipping(lambda gs: gs, **{name: "0.5"})
