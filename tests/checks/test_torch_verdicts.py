"""Known answers in PyTorch: kinks, precisions, modules, custom functions."""

import functools

import pytest
from identities import scaled

from pytest_gradcheck import check_gradient

torch = pytest.importorskip("torch")


def codes(result):
    return [finding.code for finding in result.findings]


@pytest.mark.parametrize(
    ("f", "x"),
    [
        (torch.relu, torch.zeros(5)),
        (torch.abs, torch.tensor([0.0, 1.0, -2.0])),
        (lambda x: x.max(), torch.ones(4)),
        (lambda x: torch.sort(x).values * torch.arange(4.0), torch.ones(4)),
        (torch.nn.MaxPool1d(2), torch.ones(1, 1, 6)),
        (lambda x: x.clamp(-1, 1), torch.tensor([1.0, -1.0, 0.5])),
        (
            lambda x: torch.relu(x).sum(),
            torch.randn(10_000, generator=torch.Generator().manual_seed(0)),
        ),
        (lambda x: x.sign().sum() + (x**2).sum(), torch.tensor([0.0, 1.0])),
    ],
    ids=["relu", "abs", "max", "sort", "pool", "clamp", "wide", "jump"],
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_kinks_are_not_accused(f, x, dtype):
    for seed in range(3):
        assert check_gradient(f, x.to(dtype), seed=seed).verdict == "pass"


def test_a_wrong_gradient_is_found_at_a_kink_too():
    class Leaky(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return torch.where(x > 0, x, 0.1 * x)

        @staticmethod
        def backward(ctx, g):
            (x,) = ctx.saved_tensors
            return torch.where(x > 0, g, 0.2 * g)

    assert check_gradient(Leaky.apply, torch.tensor([0.0, 0.0, -1.0])).verdict == "fail"


class Square(torch.autograd.Function):
    factor = 2.0

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 2.0 * x * g


class WrongSquare(Square):
    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return x * g


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_custom_functions_in_every_precision(dtype):
    x = torch.linspace(-2, 2, 7, dtype=dtype)
    assert check_gradient(Square.apply, x).verdict == "pass"
    wrong = check_gradient(WrongSquare.apply, x)
    assert (wrong.verdict, codes(wrong)) == ("fail", ["gradient-factor"])
    assert "0.5 times" in wrong.headline


class LowPrecision(Square):
    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        if x.dtype == torch.float64:
            return 2.0 * x * g
        return (2.0 * x.bfloat16() * g.bfloat16()).to(x.dtype) * 1.02


def test_a_backward_that_is_right_in_float64_only_is_named():
    x = torch.linspace(-2, 2, 7)
    result = check_gradient(LowPrecision.apply, x)
    assert (result.verdict, codes(result)) == ("fail", ["low-precision"])
    assert "in float32" in result.headline


class Float32Kernel(torch.autograd.Function):
    factor = 1.0

    @staticmethod
    def forward(ctx, x):
        if x.dtype != torch.float32:
            raise RuntimeError("float32 only")
        ctx.save_for_backward(x)
        return torch.sin(x)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return torch.cos(x) * g * Float32Kernel.factor


def test_a_kernel_without_float64_is_checked_at_its_own_precision(monkeypatch):
    x = torch.linspace(-2, 2, 50)
    right = check_gradient(Float32Kernel.apply, x)
    assert right.verdict == "pass"
    assert "native-precision" in codes(right)
    assert "not promoted: RuntimeError" in right.context.precision
    monkeypatch.setattr(Float32Kernel, "factor", 1.02)
    assert check_gradient(Float32Kernel.apply, x).verdict == "fail"


def test_a_detached_input_is_missing_and_a_detached_output_is_left_out():
    missing = check_gradient(lambda x: x.detach() ** 2, torch.ones(3))
    assert (missing.verdict, codes(missing)) == ("fail", ["gradient-missing"])
    beside = check_gradient(lambda x: (x**2, x.detach().mean()), torch.ones(3).double())
    assert (beside.verdict, codes(beside)) == ("pass", ["detached-output"])


def test_modules_nested_inputs_and_integers():
    embedding = torch.nn.Embedding(5, 3)
    assert check_gradient(embedding, torch.tensor([0, 3, 3])).verdict == "pass"

    def f(batch, pair):
        return {"sum": batch["x"] * pair[0], "list": [batch["x"].sin(), 3, "text"]}

    result = check_gradient(f, {"x": torch.ones(2), "n": torch.tensor([1])}, (torch.ones(2), None))
    assert result.verdict == "pass"
    assert [row[0] for row in result.table("resolution").rows] == ["batch.x", "pair.0"]


def test_functional_calls_take_parameters_as_a_dict():
    layer = torch.nn.Linear(3, 2)
    call = functools.partial(torch.func.functional_call, layer)
    result = check_gradient(call, dict(layer.named_parameters()), (torch.ones(1, 3),))
    assert result.verdict == "pass"


def test_complex_inputs_and_outputs():
    z = torch.randn(4, dtype=torch.complex128, generator=torch.Generator().manual_seed(0))
    assert check_gradient(lambda z: z**2 * z.conj(), z).verdict == "pass"


class OneSided(torch.autograd.Function):
    """A sine whose backward is off in float32 alone."""

    error = 0.0

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * x.cos() * (1 + OneSided.error if x.dtype == torch.float32 else 1)


def test_the_limit_that_decided_is_the_limit_that_is_shown(monkeypatch):
    x = torch.linspace(-2, 2, 50)
    monkeypatch.setattr(OneSided, "error", 1e-2)
    wrong = check_gradient(OneSided.apply, x)
    assert wrong.verdict == "fail"
    assert ("rounding", 5e-3) in [(use.name, use.value) for use in wrong.limits]
    monkeypatch.setattr(OneSided, "error", 3e-3)
    accepted = check_gradient(OneSided.apply, x)
    assert accepted.verdict == "pass"
    assert "(0.5 % in float32)" in accepted.headline


def test_another_kernel_without_a_graph_is_not_called_nondeterministic():
    layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    result = check_gradient(layer, torch.randn(2, 3, 8), wrt="src")
    assert result.verdict == "pass"
    assert "nondeterministic" not in codes(result)


def test_a_deep_network_with_fading_gradients_passes():
    torch.manual_seed(0)
    layers = [part for _ in range(12) for part in (torch.nn.Linear(32, 32), torch.nn.ReLU())]
    model = torch.nn.Sequential(*layers, torch.nn.Linear(32, 1))
    result = check_gradient(model, torch.randn(16, 32))
    assert result.verdict == "pass", result.headline


def test_the_small_gradient_of_a_deep_layer_is_still_checked():
    double = scaled(2)
    torch.manual_seed(0)
    layers = [part for _ in range(8) for part in (torch.nn.Linear(32, 32), torch.nn.ReLU())]
    first, rest = torch.nn.Linear(4, 32), torch.nn.Sequential(*layers)

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.rest = first, rest

        def forward(self, x):
            return self.rest(double(self.first(x)))

    result = check_gradient(Model(), torch.randn(16, 4))
    assert result.verdict == "fail"
    assert {f.where for f in result.findings} <= {"first.weight", "first.bias", "x"}
    assert "2 times" in result.headline
