"""The same on a GPU; skipped with a reason where there is none."""

import pytest

from pytest_gradcheck import Training, check_clipping, check_gradient, check_step

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


def training(dtype=None, fused=False, factor=1.0, is_unscaled=True):
    """A loop on CUDA; with autocast and a scaler where ``dtype`` is named."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1)
    ).cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=fused)
    scaler = torch.amp.GradScaler("cuda", enabled=dtype is torch.float16)
    batches = [
        (torch.randn(n, 8, device="cuda"), torch.randn(n, 1, device="cuda")) for n in (16, 16, 5)
    ]

    def loss(batch):
        with torch.autocast("cuda", dtype or torch.float16, enabled=dtype is not None):
            y = model(batch[0])
        return torch.nn.functional.mse_loss(y.float(), batch[1])

    def step(batch):
        optimizer.zero_grad()
        scaler.scale(loss(batch) * factor).backward()
        if is_unscaled:
            scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        scaler.step(optimizer)
        scaler.update()

    return Training(step=step, loss=loss, batches=batches, model=model, optimizer=optimizer)


@pytest.mark.gpu
@GPU
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("dtype", [None, torch.float16, torch.bfloat16])
def test_a_right_loop_on_cuda(dtype, fused):
    result = check_step(lambda: training(dtype, fused), max_norm=0.1)
    assert (result.verdict, result.headline) == ("pass", result.headline)
    assert result.context.device.startswith("cuda")


@pytest.mark.gpu
@GPU
@pytest.mark.parametrize("dtype", [None, torch.float16, torch.bfloat16])
def test_a_wrong_loop_on_cuda(dtype):
    result = check_step(lambda: training(dtype, factor=2.0), max_norm=100.0)
    assert result.verdict == "fail"


@pytest.mark.gpu
@GPU
def test_a_clip_before_unscale_on_cuda():
    result = check_step(lambda: training(torch.float16, is_unscaled=False), max_norm=0.1)
    assert result.verdict == "fail"


@pytest.mark.gpu
@GPU
@pytest.mark.parametrize("foreach", [False, True])
def test_clips_on_cuda(foreach):
    model = torch.nn.Linear(8, 8).cuda()
    clip = torch.nn.utils.clip_grad_norm_

    def right(params):
        return clip(params, 0.5, foreach=foreach)

    assert check_clipping(right, params=model, max_norm=0.5).verdict == "pass"
    assert check_clipping(right, params=model, max_norm=0.4).verdict == "fail"


@pytest.mark.gpu
@GPU
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_on_cuda_is_no_false_alarm(dtype):
    torch.manual_seed(0)
    layers = [part for _ in range(6) for part in (torch.nn.Linear(64, 64), torch.nn.GELU())]
    model = torch.nn.Sequential(*layers).cuda()

    def loss(model, x):
        with torch.autocast("cuda", dtype):
            return model(x).to(x.dtype).square().mean()

    x = torch.randn(32, 64, device="cuda")
    assert check_gradient(loss, model, x, wrt="model").verdict == "pass"


@pytest.mark.gpu
@GPU
@pytest.mark.parametrize("width", [64, 512])
def test_a_deep_network_in_tensor_float_is_no_false_alarm(width, monkeypatch):
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", True)
    torch.manual_seed(0)
    layers = [part for _ in range(16) for part in (torch.nn.Linear(width, width), torch.nn.ReLU())]
    model = torch.nn.Sequential(*layers[:-1]).cuda()
    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.kaiming_normal_(parameter)
    x = torch.randn(128, width, device="cuda")
    result = check_gradient(lambda m, x: m(x).square().mean(), model, x, wrt="m")
    assert (result.verdict, result.headline) == ("pass", result.headline)


@pytest.mark.gpu
@GPU
def test_convolutions_and_normalisation_on_cuda():
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 3),
        torch.nn.BatchNorm2d(16),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(2),
        torch.nn.Conv2d(16, 8, 3),
        torch.nn.AdaptiveAvgPool2d(1),
    ).cuda()
    x = torch.randn(4, 3, 16, 16, device="cuda")
    assert check_gradient(model, x).verdict == "pass"


@pytest.mark.gpu
@GPU
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("edge", [1e-3, 1e-5])
def test_a_step_beyond_what_a_kernel_asserts_leaves_the_device_alive(dtype, edge):
    p = torch.tensor([edge, 0.5, 1 - edge], device="cuda", dtype=dtype)
    y = torch.tensor([0.0, 1.0, 1.0], device="cuda", dtype=dtype)
    result = check_gradient(torch.nn.functional.binary_cross_entropy, p, y, wrt=0)
    assert result.verdict == "pass", result.headline
    assert check_gradient(torch.bernoulli, p).verdict != "pass"
    assert float((p + 1).sum()) > 0  # a failed assertion would raise at the next call
