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
