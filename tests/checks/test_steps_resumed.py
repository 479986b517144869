"""Schedulers and loss scalers that are saved and loaded on the way."""

import pytest

from pytest_gradcheck import Training, check_step

torch = pytest.importorskip("torch")
nn, F, S = torch.nn, torch.nn.functional, torch.optim.lr_scheduler


class Warming(S.LRScheduler):
    """A warm-up that counts in a place of its own, which it leaves out of its state."""

    def __init__(self, optimizer):
        self.seen = [0]
        super().__init__(optimizer)

    def get_lr(self):
        self.seen[0] += 1
        return [rate * min(1.0, self.seen[0] / 40) for rate in self.base_lrs]

    def state_dict(self):
        return {k: v for k, v in super().state_dict().items() if k != "seen"}


class Alone:
    """No class of torch: knows its optimizer, and saves nothing."""

    def __init__(self, optimizer, saves=False):
        self.optimizer, self.count, self.saves = optimizer, 0, saves

    def step(self):
        self.count += 1
        self.optimizer.param_groups[0]["lr"] = 1e-2 / self.count

    def state_dict(self):
        return {"count": self.count} if self.saves else {}

    def load_state_dict(self, state):
        self.__dict__.update(state)


class Refusing(S.StepLR):
    def load_state_dict(self, state_dict):
        raise KeyError("version")


class Forgetful(torch.amp.GradScaler):
    def load_state_dict(self, state_dict):
        """Nothing is loaded."""


def counted(optimizer):
    """The count stands in a closure, which no state holds."""
    count = [0]

    def factor(_):
        count[0] += 1
        return 1.0 / count[0]

    return S.LambdaLR(optimizer, factor)


def training(scheduler, scaler=torch.amp.GradScaler, with_metric=False):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    schedule, scale = scheduler(optimizer), scaler("cpu", init_scale=64.0, growth_interval=3)
    batches = [(torch.randn(n, 4), torch.randn(n, 1)) for n in (8, 5, 8, 3)]

    def loss(batch):
        return F.mse_loss(model(batch[0]), batch[1])

    def step(batch):
        optimizer.zero_grad()
        value = loss(batch)
        scale.scale(value).backward()
        scale.step(optimizer)
        scale.update()
        schedule.step(*[value.item()] * with_metric)

    return Training(step=step, loss=loss, batches=batches, model=model, optimizer=optimizer)


def restored(result):
    return [f for f in result.findings if f.code == "step-restore" and f.severity == "fail"]


@pytest.mark.parametrize(
    ("scheduler", "name"),
    [
        (Warming, "Warming"),
        (counted, "LambdaLR"),
        (Alone, "Alone"),
        (lambda o: Refusing(o, 3), "Refusing"),
        (lambda o: S.SequentialLR(o, [Warming(o), S.ConstantLR(o)], [20]), "SequentialLR"),
    ],
)
def test_a_scheduler_whose_state_leaves_something_out(scheduler, name):
    result = check_step(lambda: training(scheduler))
    (found, *_) = restored(result)
    assert result.verdict == "fail"
    assert found.where == name
    assert "state" in result.headline


def test_a_scaler_that_does_not_load():
    (found,) = restored(check_step(lambda: training(lambda o: S.StepLR(o, 3), Forgetful)))
    assert found.where == "Forgetful"
    assert "the loss scale is" in found.message


RIGHT = {
    "step": lambda o: S.StepLR(o, 3),
    "cosine": lambda o: S.CosineAnnealingLR(o, 10),
    "restarts": lambda o: S.CosineAnnealingWarmRestarts(o, 4),
    "one cycle": lambda o: S.OneCycleLR(o, 0.1, total_steps=20),
    "cyclic": lambda o: S.CyclicLR(o, 1e-3, 1e-2, 5, cycle_momentum=False),
    "lambda": lambda o: S.LambdaLR(o, lambda t: 0.9**t),
    "multiplicative": lambda o: S.MultiplicativeLR(o, lambda t: 0.9),
    "linear": lambda o: S.LinearLR(o, 0.1, total_iters=5),
    "polynomial": lambda o: S.PolynomialLR(o, 10),
    "sequential": lambda o: S.SequentialLR(o, [S.LinearLR(o), S.CosineAnnealingLR(o, 9)], [4]),
    "chained": lambda o: S.ChainedScheduler([S.LinearLR(o), S.ExponentialLR(o, 0.9)]),
    "averaging": lambda o: torch.optim.swa_utils.SWALR(o, 1e-3),
    "own": lambda o: Alone(o, saves=True),
}


@pytest.mark.parametrize("name", RIGHT)
def test_schedulers_that_are_saved_whole(name):
    result = check_step(lambda: training(RIGHT[name]))
    assert restored(result) == []
    assert result.verdict == "pass", result.headline


def test_a_scheduler_that_wants_a_metric():
    made = training(lambda o: S.ReduceLROnPlateau(o, patience=1), with_metric=True)
    assert restored(check_step(made)) == []


def test_schedulers_and_scalers_go_on_as_before():
    kept = {}

    def scheduler(optimizer):
        kept["groups"] = optimizer.param_groups
        kept["all"] = [S.OneCycleLR(optimizer, 0.1, total_steps=40)]
        return kept["all"][0]

    made = training(scheduler)
    made.step(made.batches[0])
    group = {k: v for k, v in kept["groups"][0].items() if k != "params"}
    before = (dict(kept["all"][0].state_dict()), group)
    check_step(made)
    again = {k: v for k, v in kept["groups"][0].items() if k != "params"}
    assert (kept["all"][0].state_dict(), again) == before
