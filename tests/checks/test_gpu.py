"""The same on a GPU; skipped with a reason where there is none."""

import pytest

from pytest_gradcheck import check_gradient

torch = pytest.importorskip("torch")


GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; none here")


@pytest.mark.gpu
@GPU
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_on_cuda_only_scalars_leave_the_device(dtype):
    x = torch.randn(64, 64, device="cuda", dtype=dtype)
    seen = []

    def f(x):
        seen.append(x.device.type)
        return torch.relu(x @ x).sum()

    result = check_gradient(f, x)
    assert result.verdict == "pass"
    assert set(seen) == {"cuda"}
    assert result.context.device == "cuda:0"


@pytest.mark.gpu
@GPU
def test_the_cuda_generator_survives():
    x = torch.randn(32, device="cuda")
    before = torch.cuda.get_rng_state()
    assert check_gradient(lambda x: torch.nn.functional.dropout(x, 0.5) ** 2, x).verdict == "pass"
    assert torch.equal(before, torch.cuda.get_rng_state())


@pytest.mark.gpu
@GPU
def test_device_moves_the_inputs():
    assert check_gradient(torch.sin, torch.ones(3), device="cuda").context.device == "cuda:0"


class Square(torch.autograd.Function):
    """A square whose gradient may be off by a factor."""

    factor = 1.0

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, w):
        return Square.factor * 2 * ctx.saved_tensors[0] * w


@pytest.mark.gpu
@GPU
@pytest.mark.parametrize("factor", [1.0, 1.02, 0.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wrong_gradients_on_cuda(dtype, factor, monkeypatch):
    monkeypatch.setattr(Square, "factor", factor)
    result = check_gradient(Square.apply, torch.randn(300, device="cuda", dtype=dtype))
    assert result.verdict == ("pass" if factor == 1 else "fail")


@pytest.mark.gpu
@GPU
@pytest.mark.parametrize("tf32", [False, True])
def test_tensor_cores_are_no_false_alarm_and_their_flag_survives(tf32, monkeypatch):
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", tf32)
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(64, 128), torch.nn.GELU(), torch.nn.Linear(128, 8)
    ).cuda()
    assert check_gradient(model, torch.randn(32, 64, device="cuda")).verdict == "pass"
    assert torch.backends.cuda.matmul.allow_tf32 is tf32


@pytest.mark.gpu
@GPU
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_atomic_additions_are_no_false_alarm(dtype):
    index = torch.randint(0, 7, (5000,), device="cuda")

    def f(x):
        return torch.zeros(7, device="cuda", dtype=x.dtype).index_add(0, index, x.sin()).square()

    assert check_gradient(f, torch.randn(5000, device="cuda", dtype=dtype)).verdict == "pass"


@pytest.mark.gpu
@GPU
def test_one_wrong_element_of_a_million_on_cuda():
    class Tanh(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.tanh()

        @staticmethod
        def backward(ctx, w):
            gradient = w * (1 - ctx.saved_tensors[0].tanh() ** 2)
            gradient[123, 456] *= 1.5
            return gradient

    x = torch.randn(1000, 1000, device="cuda", dtype=torch.float64)
    result = check_gradient(Tanh.apply, x)
    assert (result.verdict, result.findings[0].where) == ("fail", "x[123, 456]")
    assert result.context.evaluations <= 400
