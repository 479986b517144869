"""Functions that compute in less than their inputs have: autocast, TF32, and what it may hide."""

import pytest
import torch
from torch import nn

from pytest_gradcheck import check_gradient


class Scaled(torch.autograd.Function):
    """The identity, with a gradient off by a factor."""

    factor = 1.0

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, w):
        return Scaled.factor * w


class Rounded(torch.autograd.Function):
    """A square in full precision, with a backward that rounds to bfloat16."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, w):
        (x,) = ctx.saved_tensors
        slope = 2 * x * w
        return slope.bfloat16().float() * 1.06 if w.dtype == torch.float32 else slope


class TensorFloat(torch.autograd.Function):
    """A product with the rounding that a GPU's TF32 has."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return tf32(x) @ tf32(w).T

    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        return tf32(g) @ tf32(w), tf32(g).T @ tf32(x)


def tf32(x):
    if x.dtype != torch.float32:
        return x
    bits = x.contiguous().view(torch.int32)
    return ((bits + 0xFFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32)


def network(activation, width=32, depth=8, seed=0):
    torch.manual_seed(seed)
    layers = [part for _ in range(depth) for part in (nn.Linear(width, width), activation())]
    model = nn.Sequential(*layers[:-1])
    for parameter in model.parameters():
        if parameter.ndim == 2:
            nn.init.kaiming_normal_(parameter)
    return model, torch.randn(64, width)


def cast(model, x):
    with torch.autocast("cpu", torch.bfloat16):
        y = Scaled.apply(model(x))
    return y.to(x.dtype).square().mean()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU, nn.GELU])
def test_autocast_inside_is_no_false_alarm(activation, seed):
    model, x = network(activation, seed=seed)
    result = check_gradient(cast, model, x, wrt="model")
    assert result.verdict == "pass"
    assert result.context.precision == "float64, promoted"


class Autocast(nn.Module):
    """A module that returns float32 numbers, as most that autocast inside do."""

    def __init__(self, width):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, width), nn.GELU(), nn.Linear(width, 1))

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return Scaled.apply(self.layers(x)).float()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("width", [4, 32])
def test_an_output_that_is_cast_back_is_no_obstacle(width, seed, monkeypatch):
    torch.manual_seed(seed)
    model, x = Autocast(width), torch.randn(16, 8)
    result = check_gradient(model, x)
    assert (result.verdict, result.headline) == ("pass", result.headline)
    assert result.context.precision == "float64, promoted, output in float32"
    monkeypatch.setattr(Scaled, "factor", 1.05)
    assert check_gradient(model, x).verdict == "fail"


def test_what_autocast_costs_the_gradient_is_told():
    result = check_gradient(cast, *network(nn.Tanh), wrt="model")
    (note,) = (f for f in result.findings if f.code == "lower-arithmetic")
    assert "bfloat16 explains" in note.message
    assert 0.005 < note.number("loss") < note.number("allowed")


@pytest.mark.parametrize("factor", [1.02, 0.5, 0.0])
def test_a_wrong_gradient_under_autocast_fails(factor, monkeypatch):
    monkeypatch.setattr(Scaled, "factor", factor)
    assert check_gradient(cast, *network(nn.Tanh), wrt="model").verdict == "fail"


def test_a_backward_alone_in_lower_precision_still_fails():
    result = check_gradient(Rounded.apply, torch.randn(50))
    assert (result.verdict, result.findings[0].code) == ("fail", "low-precision")


@pytest.mark.parametrize("is_allowed", [True, False])
def test_tensor_float_is_accepted_where_it_is_allowed(is_allowed, monkeypatch):
    # What the flags of a GPU say, said for the CPU: the rounding itself is in the function.
    from pytest_gradcheck.backends import torch_flags

    setting = "tf32" if is_allowed else ""
    monkeypatch.setattr(torch_flags, "_setting", lambda kind, device: setting)
    torch.manual_seed(0)
    weights = [torch.randn(64, 64) / 8 for _ in range(16)]

    def f(x, *weights):
        for w in weights:
            x = torch.relu(TensorFloat.apply(x, w) * 1.5)
        return x.square().mean()

    result = check_gradient(f, torch.randn(32, 64), *weights)
    assert result.verdict == ("pass" if is_allowed else "fail")


NEWER = "fp32_precision"


@pytest.fixture
def settings():
    """Puts torch's settings of products back, by both of its interfaces."""
    yield
    torch.backends.cuda.matmul.fp32_precision = "none"
    torch.set_float32_matmul_precision("highest")
    for place in ("cuda.matmul", "mkldnn.matmul"):
        family, kind = place.split(".")
        getattr(getattr(torch.backends, family), kind).fp32_precision = "none"


@pytest.mark.skipif(not hasattr(torch.backends.cuda.matmul, NEWER), reason="torch before 2.9")
def test_the_newer_settings_of_products_are_no_obstacle(settings):
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    with pytest.raises(RuntimeError, match="mix of the legacy"):
        torch.get_float32_matmul_precision()
    assert check_gradient(torch.sin, torch.ones(3)).verdict == "pass"
    assert torch.backends.cuda.matmul.fp32_precision == "tf32"


def older():
    torch.set_float32_matmul_precision("medium")


def newer():
    torch.backends.cuda.matmul.fp32_precision = "tf32"


@pytest.mark.skipif(not hasattr(torch.backends.cuda.matmul, NEWER), reason="torch before 2.9")
@pytest.mark.parametrize("inside", [older, newer])
@pytest.mark.parametrize("before", [lambda: None, older, newer])
def test_settings_that_a_function_changes_are_set_back(before, inside, settings):
    from pytest_gradcheck.backends.torch_flags import Flags

    before()
    then = Flags().get()

    def f(x):
        inside()
        return x.sin()

    assert check_gradient(f, torch.ones(3)).verdict == "pass"
    *others, was_older, was_newer = then
    *same, now_older, now_newer = Flags().get()
    assert (same, now_newer) == (others, was_newer)
    assert was_older in (None, now_older)  # torch does not tell the older one after the newer
