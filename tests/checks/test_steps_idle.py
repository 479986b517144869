"""Steps with nothing to do, in every precision that a model may have."""

import importlib

import pytest

pytest.importorskip("torch")
pytest.importorskip("optax")
loops = importlib.import_module("loops")

PRECISIONS = {"float64": "double", "float32": "float", "bfloat16": "bfloat16", "float16": "half"}


def idle(optimizer, dtype, body=loops.STEP):
    result = loops.loop(body, optimizer=optimizer, first=f"model.{PRECISIONS[dtype]}()")
    return [f for f in result.findings if f.code == "step-idle"]


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize(
    "optimizer",
    ["SGD(params, 1e-2, momentum=0.9)", "AdamW(params, 1e-2, eps=1e-4)", "Rprop(params, 1e-3)"],
)
def test_nothing_to_do_changes_nothing(optimizer, dtype):
    assert idle(optimizer, dtype) == []


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_zero_over_zero(dtype):
    (found,) = idle("Adam(params, 1e-2, eps=0.0)", dtype)
    assert found.severity == "fail"
    assert "zero gradients" in found.message
    assert "not finite" in found.message


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_eps_that_underflows(dtype):
    """1e-9 is zero in float16, and only there."""
    assert bool(idle("Adam(params, 1e-2, eps=1e-9)", dtype)) == (dtype == "float16")


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_decay_without_a_gradient(dtype):
    assert "without gradients changes" in idle("DecayingAll(params)", dtype)[0].message
