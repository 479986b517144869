"""Gradient flow on a GPU; skipped with a reason where there is none."""

import pytest

from pytest_gradcheck import check_flow

torch = pytest.importorskip("torch")

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; none here")


def make(act=torch.nn.ReLU, depth=6):
    layers = [torch.nn.Linear(16, 64), act()]
    for _ in range(depth - 2):
        layers += [torch.nn.Linear(64, 64), act()]
    return torch.nn.Sequential(*layers, torch.nn.Linear(64, 10))


def loss(model, batch):
    return torch.nn.functional.cross_entropy(model(batch[0]), batch[1])


def batch(device="cuda"):
    return torch.randn(64, 16, device=device), torch.randint(0, 10, (64,), device=device)


@pytest.mark.gpu
@GPU
def test_a_model_on_cuda_is_judged_there():
    result = check_flow(make().cuda(), loss, batch())
    assert (result.verdict, result.context.device) == ("pass", "cuda:0")
    result = check_flow(make(torch.nn.Sigmoid, 12).cuda(), loss, batch())
    assert result.findings[0].code == "flow-vanishing"


@pytest.mark.gpu
@GPU
def test_device_moves_model_and_batch():
    result = check_flow(None, loss, batch("cpu"), make=make, device="cuda")
    assert (result.verdict, result.context.device) == ("pass", "cuda:0")


@pytest.mark.gpu
@GPU
def test_the_cuda_generator_and_the_model_survive():
    model = torch.nn.Sequential(make(), torch.nn.Dropout(0.5)).cuda()
    data = batch()
    before = torch.cuda.get_rng_state(), [p.clone() for p in model.parameters()]
    check_flow(model, loss, data)
    assert torch.equal(before[0], torch.cuda.get_rng_state())
    assert all(map(torch.equal, before[1], model.parameters()))


@pytest.mark.gpu
@GPU
def test_half_precision_overflow_is_found_on_cuda():
    def overflow(model, batch):
        return (model(batch[0]).half() * 1e4 * 1e4).float().square().mean()

    result = check_flow(None, overflow, batch(), make=lambda: make().cuda())
    assert result.findings[0].code == "flow-nonfinite"
