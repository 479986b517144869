"""A default device: what a check makes for itself stands where it must, the user's tensors there.

``meta`` holds no numbers, so that whatever a check would make there by mistake ends it.
"""

import functools

import pytest

from pytest_gradcheck import Training, check_clipping, check_flow, check_gradient, check_step

torch = pytest.importorskip("torch")
nn, F = torch.nn, torch.nn.functional


@pytest.fixture(autouse=True)
def _elsewhere():
    torch.manual_seed(0)
    torch.set_default_device("meta")
    yield
    torch.set_default_device(None)


on_cpu = torch.device("cpu")  # a context, too


class Sine(torch.autograd.Function):
    """With an element of its gradient that is 1.3 times too long."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, w):
        gradient = w * ctx.saved_tensors[0].cos()
        gradient[0, 1] *= 1.3
        return gradient


def layers(*kinds, count=1):
    with on_cpu:
        return nn.Sequential(*(kind() for _ in range(count) for kind in kinds))


def linear(n, m):
    return functools.partial(nn.Linear, n, m)


def cross_entropy(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def labelled():
    with on_cpu:
        return torch.randn(16, 4), torch.randint(0, 4, (16,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients(dtype):
    x = torch.randn(4, 3, dtype=dtype, device="cpu")
    assert check_gradient(torch.tanh, x, order=2).verdict == "pass"
    wrong = check_gradient(Sine.apply, x)
    assert (wrong.verdict, wrong.findings[0].where) == ("fail", "x[0, 1]")
    model = layers(linear(4, 8), nn.Tanh, linear(8, 4)).to(dtype)
    batch = labelled()
    batch = (batch[0].to(dtype), batch[1])
    assert check_gradient(cross_entropy, model, batch).verdict == "pass"


def test_flow():
    right = check_flow(layers(linear(4, 8), nn.ReLU, linear(8, 4)), cross_entropy, labelled())
    assert right.verdict == "pass"
    deep = layers(linear(4, 4), nn.Sigmoid, count=12)
    assert check_flow(deep, cross_entropy, labelled()).verdict == "fail"


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_clips(dtype):
    with on_cpu:
        params = [nn.Parameter(torch.randn(n, dtype=dtype)) for n in (3, 5, 7)]
    clip = nn.utils.clip_grad_norm_
    assert check_clipping(clip, params=params, max_norm=1.0).verdict == "pass"
    wrong = check_clipping(lambda held: clip(held, 2.0), params=params, max_norm=1.0)
    assert wrong.verdict == "fail"


def encoded(width):
    """An encoder that follows before the loss, and a weight that grows after it.

    The fresh gradient is taken inside of the step then.
    """

    def build():
        torch.manual_seed(0)
        with on_cpu:
            query, key = nn.Linear(width, width), nn.Linear(width, width)
            batches = [(torch.randn(8, width), torch.randn(8, width)) for _ in range(7)]
        key.requires_grad_(False)
        optimizer = torch.optim.SGD(query.parameters(), 0.1)
        weight = [1.0]

        def loss(batch):
            if torch.zeros(1).device.type != "meta":
                raise RuntimeError("a tensor is made elsewhere")
            with torch.no_grad():
                target = key(batch[0])
            return (weight[0] * query(batch[0]) * target - batch[1]).square().mean()

        def step(batch):
            with torch.no_grad():
                for a, b in zip(key.parameters(), query.parameters(), strict=True):
                    a.lerp_(b, 0.3)
            optimizer.zero_grad()
            loss(batch).backward()
            optimizer.step()
            weight[0] *= 1.1

        return Training(step=step, loss=loss, batches=batches, model=query, optimizer=optimizer)

    return build


@pytest.mark.parametrize("width", [4, 320])
def test_steps_into_which_a_check_looks(width):
    result = check_step(encoded(width))
    assert (result.verdict, result.headline) == ("pass", result.headline)


def test_a_large_training_that_is_watched():
    def build():
        torch.manual_seed(0)
        with on_cpu:
            model = nn.Sequential(nn.Linear(320, 320), nn.Tanh(), nn.Linear(320, 4))
            batches = [(torch.randn(8, 320), torch.randn(8, 4)) for _ in range(7)]
        optimizer = torch.optim.SGD(model.parameters(), 1e-2, momentum=0.9)

        def loss(batch):
            if torch.zeros(1).device.type != "meta":
                raise RuntimeError("a tensor is made elsewhere")
            return F.mse_loss(model(batch[0]), batch[1])

        def step(batch):
            optimizer.zero_grad()
            loss(batch).backward()
            optimizer.step()

        return Training(step=step, loss=loss, batches=batches, model=model, optimizer=optimizer)

    result = check_step(build)
    assert (result.verdict, result.headline) == ("pass", result.headline)
    assert result.context.derivatives == 1
