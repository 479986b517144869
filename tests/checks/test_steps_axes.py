"""Micro-batches whose first axis is time: which axis counts samples is no guess to accuse by."""

import pytest

from pytest_gradcheck import Training, check_step

torch = pytest.importorskip("torch")
nn, F = torch.nn, torch.nn.functional


class Recurrent(nn.Module):
    """Of PyTorch's usual form: time, sample, feature."""

    def __init__(self):
        super().__init__()
        self.cells, self.head = nn.LSTM(4, 8), nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.cells(x)[0])


def accumulated(shapes, weight, *, model=Recurrent):
    """Two calls for each update; a batch counts by a weight."""

    def training():
        torch.manual_seed(0)
        net = model()
        opt = torch.optim.AdamW(net.parameters(), 1e-3)
        batches = [(torch.randn(*shape), torch.randn(*shape[:-1], 2)) for shape in shapes]
        count = [0]

        def loss(batch):
            return F.mse_loss(net(batch[0]), batch[1])

        def step(batch):
            (loss(batch) * weight(batch[0])).backward()
            count[0] += 1
            if count[0] % 2 == 0:
                opt.step()
                opt.zero_grad()

        return Training(step=step, loss=loss, batches=batches, model=net, optimizer=opt)

    return training


def codes(result, severity):
    return [f.code for f in result.findings if f.severity == severity]


SAMPLES = [(5, 8, 4), (5, 3, 4)]
TIMES = [(5, 8, 4), (3, 8, 4)]


@pytest.mark.parametrize("claims", [{}, {"accumulate": 2}])
@pytest.mark.parametrize(
    ("shapes", "weight"),
    [(TIMES, lambda x: 0.5), (TIMES, lambda x: len(x) / 8)],
    ids=["samples alike", "by times"],
)
def test_nobody_is_accused_by_a_guess_at_the_axis(shapes, weight, claims):
    result = check_step(accumulated(shapes, weight), **claims)
    assert result.verdict == "pass", result.headline
    assert codes(result, "warn").count("step-weights") == 1


def test_samples_along_another_axis_are_found():
    right = check_step(accumulated(SAMPLES, lambda x: x.shape[1] / 11), accumulate=2)
    assert right.verdict == "pass", right.headline
    assert not codes(right, "warn")
    wrong = check_step(accumulated(SAMPLES, lambda x: 0.5), accumulate=2)
    assert (wrong.verdict, wrong.findings[0].code) == ("fail", "step-weights")


@pytest.mark.parametrize(
    "weight", [lambda x: 0.5, lambda x: x.shape[1] / 11], ids=["rows", "columns"]
)
def test_two_axes_that_could_both_be_samples_accuse_nobody(weight):
    def model():
        return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))

    result = check_step(accumulated(SAMPLES, weight, model=model), accumulate=2)
    assert result.verdict == "pass", result.headline
    assert codes(result, "warn").count("step-weights") == 1


def test_what_a_batch_weighs_can_be_claimed():
    def check(weight):
        build = accumulated(SAMPLES, weight)
        return check_step(build, accumulate=2, weights=lambda batch: batch[0].shape[1])

    right, wrong = check(lambda x: x.shape[1] / 11), check(lambda x: 0.5)
    assert right.verdict == "pass", right.headline
    assert not codes(right, "warn")
    assert (wrong.verdict, wrong.findings[0].code) == ("fail", "step-weights")


def test_batches_of_one_form_have_no_weights_to_guess():
    build = accumulated([(5, 8, 4)] * 2, lambda x: 0.5)
    assert codes(check_step(build, accumulate=2), "warn") == ["weak-equal-batches"]
    added = check_step(accumulated([(5, 8, 4)] * 2, lambda x: 1.0), accumulate=2)
    assert added.findings[0].code == "step-gradient-sum"


@pytest.mark.parametrize(
    "layer", [lambda: nn.Dropout(0.3), lambda: nn.BatchNorm1d(8)], ids=["dropout", "batch norm"]
)
def test_rows_count_where_only_the_mode_couples_them(layer):
    def model():
        return nn.Sequential(nn.Linear(4, 8), layer(), nn.Tanh(), nn.Linear(8, 2))

    shapes = [(8, 4), (4, 4)]
    right = check_step(accumulated(shapes, lambda x: len(x) / 12, model=model), accumulate=2)
    assert right.verdict == "pass", right.headline
    assert not codes(right, "warn")
    wrong = check_step(accumulated(shapes, lambda x: 0.5, model=model), accumulate=2)
    assert (wrong.verdict, wrong.findings[0].code) == ("fail", "step-weights")


def test_a_loss_that_couples_its_samples_has_no_weights_to_know():
    class Pairs(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(4, 2)

        def forward(self, x):
            return self.net(x) - self.net(x).mean(0) ** 2

    shapes = [(8, 4), (4, 4)]
    for weight in (lambda x: len(x) / 12, lambda x: 0.5):
        result = check_step(accumulated(shapes, weight, model=Pairs), accumulate=2)
        assert result.verdict == "pass", result.headline
        assert "step-weights" in codes(result, "warn")
