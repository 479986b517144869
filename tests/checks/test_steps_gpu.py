"""Training steps on a GPU that multiplies in TF32: recurrent layers and convolutions by default."""

import pytest

from pytest_gradcheck import Training, check_step

torch = pytest.importorskip("torch")
nn, F = torch.nn, torch.nn.functional
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; none here")


class Last(nn.Module):
    def forward(self, x):
        return x[0][:, -1]


def recurrent():
    return nn.Sequential(nn.LSTM(8, 16, batch_first=True, num_layers=2), Last(), nn.Linear(16, 2))


def convolutions():
    layers = [m for _ in range(5) for m in (nn.Conv1d(8, 8, 3, padding=1), nn.Tanh())]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64, 2))


def products():
    layers = [m for _ in range(6) for m in (nn.Linear(64, 64), nn.Tanh())]
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(64, 2))


NETWORKS = [recurrent, convolutions, products]


@pytest.fixture(autouse=True)
def _in_tf32():
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


def gathered(network, factor=1.0, lr=1e-3):
    """Three batches for each update, which count the same."""

    def build():
        torch.manual_seed(0)
        model = network().cuda()
        optimizer = torch.optim.AdamW(model.parameters(), lr)
        batches = [(torch.randn(n, 8, 8).cuda(), torch.randn(n, 2).cuda()) for n in (5, 3, 8)]
        calls = [0]

        def loss(batch):
            return F.mse_loss(model(batch[0]), batch[1])

        def step(batch):
            (loss(batch) * factor / 3).backward()
            calls[0] += 1
            if calls[0] % 3 == 0:
                optimizer.step()
                optimizer.zero_grad()

        return Training(step=step, loss=loss, batches=batches, model=model, optimizer=optimizer)

    return build


@pytest.mark.gpu
@GPU
@pytest.mark.parametrize("network", NETWORKS)
def test_a_right_loop_in_tf32_is_not_accused(network):
    cudnn = torch.backends.cudnn.allow_tf32
    result = check_step(gathered(network), accumulate=3, weights="batches")
    assert (result.verdict, result.headline) == ("pass", result.headline)
    assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == (cudnn, True)


@pytest.mark.gpu
@GPU
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("factor", [1.05, 2.5])
def test_a_wrong_factor_in_tf32_is_found(network, factor):
    result = check_step(gathered(network, factor), accumulate=3, weights="batches")
    assert result.verdict == "fail"
    assert "times" in result.headline


@pytest.mark.gpu
@GPU
@pytest.mark.parametrize("network", NETWORKS)
def test_a_short_step_in_tf32_does_not_look_too_long(network):
    result = check_step(gathered(network, lr=1e-7), accumulate=3, weights="batches")
    assert (result.verdict, result.headline) == ("pass", result.headline)
    assert "step-too-long" not in {f.code for f in result.findings}
