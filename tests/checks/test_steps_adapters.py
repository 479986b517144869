"""Modules and trainers of other libraries as trainings: ones that have the same methods."""

import contextlib
import importlib
import warnings
from types import SimpleNamespace

import pytest

from pytest_gradcheck import UsageError, check_step, lightning_training, trainer_training

torch = pytest.importorskip("torch")
nn, F, S = torch.nn, torch.nn.functional, torch.optim.lr_scheduler


def codes(result):
    return {f.code for f in result.findings if f.severity == "fail"}


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1))


def batches(sizes=(8, 8, 8, 8)):
    torch.manual_seed(1)
    return [(torch.randn(n, 4), torch.randn(n, 1)) for n in sizes]


# --- LightningModule ------------------------------------------------------------------------------


def installed(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module(name)
        except ImportError:
            return None


LIGHTNING = installed("lightning")


class Plain(LIGHTNING.LightningModule if LIGHTNING else nn.Module):
    """What a user writes; where the library is not there, nothing else."""

    def __init__(self):
        super().__init__()
        self.net = network()

    def training_step(self, batch, batch_idx):
        return {"loss": F.mse_loss(self.net(batch[0]), batch[1])}

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), 1e-2)


def lightning(**changes):
    """A module with other methods."""
    return type("Module", (Plain,), changes)()


def schedule(self):
    optimizer = torch.optim.AdamW(self.parameters(), 1e-2)
    warm = S.LinearLR(optimizer, 0.1, total_iters=4)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": warm, "interval": "step"}}


def each_epoch(self):
    optimizer = torch.optim.SGD(self.parameters(), 1e-2, momentum=0.9)
    return [optimizer], [S.StepLR(optimizer, 1)]


RATES = [1e-2 * min(1.0, 0.1 + 0.9 * k / 4) for k in range(20)]
EPOCHS = [1e-2 * 0.1 ** (k // 4) for k in range(20)]
RIGHT = {
    "plain": ({}, {}, {}),
    "a schedule for each step": ({"configure_optimizers": schedule}, {}, {"schedule": RATES}),
    "one for each epoch": ({"configure_optimizers": each_epoch}, {}, {"schedule": EPOCHS}),
    "clipped": ({}, {"gradient_clip_val": 0.1}, {"max_norm": 0.1}),
    "clipped by value": (
        {},
        {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
        {"max_value": 0.01},
    ),
    "accumulated": ({}, {"accumulate_grad_batches": 2}, {"accumulate": 2}),
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_lightning_module(name):
    methods, options, claims = RIGHT[name]
    result = check_step(
        lambda: lightning_training(lightning(**methods), batches(), **options), **claims
    )
    assert result.verdict == "pass", result.headline


def some(self):
    return torch.optim.AdamW(self.net[0].parameters(), 1e-2)


def doubled(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
    self.clip_gradients(optimizer, gradient_clip_val=0.2, gradient_clip_algorithm="norm")


def halved(self, loss):
    (loss / 2).backward()


def before(self, epoch, batch_idx, optimizer, closure):
    optimizer.step()
    closure()


def kept(self, epoch, batch_idx, optimizer):
    """Nothing is zeroed."""


WRONG = {
    "a layer left out": ({"configure_optimizers": some}, {}, "step-not-registered"),
    "another threshold": (
        {"configure_gradient_clipping": doubled},
        {"max_norm": 0.1},
        "step-clip-kind",
    ),
    "half a backward": ({"backward": halved}, {}, "step-gradient-scale"),
    "a step before": ({"optimizer_step": before}, {}, "step-missing-gradient"),
    "never zeroed": ({"optimizer_zero_grad": kept}, {}, "step-gradient-accumulates"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_lightning_module_that_overrides_wrongly(name):
    methods, claims, code = WRONG[name]
    clip = claims.get("max_norm")
    result = check_step(
        lambda: lightning_training(lightning(**methods), batches(), gradient_clip_val=clip),
        **claims,
    )
    assert code in codes(result), result.headline


def test_what_is_no_module_for_this():
    manual = lightning(automatic_optimization=False)
    several = lightning(configure_optimizers=lambda m: [torch.optim.SGD(m.parameters(), 1.0)] * 2)
    for module, options, told in (
        (nn.Linear(2, 2), {}, "training_step"),
        (manual, {}, "automatic_optimization=False"),
        (several, {}, "one optimizer here, got 2"),
        (Plain(), {"gradient_clip_algorithm": "both"}, "allowed: norm, value"),
    ):
        with pytest.raises(UsageError, match=told):
            lightning_training(module, batches(), **options)


# --- Trainer --------------------------------------------------------------------------------------


class Regression(nn.Module):
    """What a model of transformers returns: its loss first."""

    def __init__(self):
        super().__init__()
        self.net = network()

    def forward(self, x=None, labels=None):
        answer = self.net(x)
        return {"loss": F.mse_loss(answer, labels), "logits": answer}


class Standing:
    """The methods of a Trainer that are called."""

    model_accepts_loss_kwargs = False

    def __init__(self, **arguments):
        self.model, self.optimizer, self.lr_scheduler = Regression(), None, None
        given = {"gradient_accumulation_steps": 1, "max_grad_norm": 1.0, "fp16": False}
        self.args = SimpleNamespace(**{**given, **arguments})

    def get_train_dataloader(self):
        return ({"x": x, "labels": y} for x, y in batches((8,) * 12))

    def create_optimizer_and_scheduler(self, num_training_steps):
        self.optimizer = torch.optim.AdamW(self.model.parameters(), 1e-2)
        self.lr_scheduler = S.LinearLR(self.optimizer, 1.0, 0.0, num_training_steps)

    def compute_loss_context_manager(self):
        return contextlib.nullcontext()

    def _prepare_inputs(self, inputs):
        return inputs

    def compute_loss(self, model, inputs):
        return model(**inputs)["loss"]

    def training_step(self, model, inputs):
        loss = self.compute_loss(model, self._prepare_inputs(inputs))
        (loss / self.current_gradient_accumulation_steps).backward()
        return loss.detach()


@pytest.mark.parametrize(
    ("arguments", "claims"),
    [
        ({}, {"max_norm": 1.0}),
        ({"max_grad_norm": 0.1}, {"max_norm": 0.1}),
        ({"max_grad_norm": 0.0, "gradient_accumulation_steps": 3}, {"accumulate": 3}),
    ],
)
def test_a_trainer(arguments, claims):
    result = check_step(lambda: trainer_training(Standing(**arguments)), **claims)
    assert result.verdict == "pass", result.headline


class Summing(Standing):
    def compute_loss(self, model, inputs):
        return model(**inputs)["loss"]

    def training_step(self, model, inputs):
        loss = self.compute_loss(model, inputs) * len(inputs["x"])
        loss.backward()
        return loss.detach()


def test_a_trainer_whose_step_has_another_loss():
    result = check_step(lambda: trainer_training(Summing(max_grad_norm=0.0)))
    assert "step-gradient-scale" in codes(result)
    assert "8 times" in result.headline


def test_what_is_no_trainer_for_this():
    counting = Standing(gradient_accumulation_steps=2)
    counting.model_accepts_loss_kwargs = True
    for trainer, told in (
        (object(), "training_step"),
        (Standing(fp16=True), "fp16"),
        (counting, "check with 1"),
    ):
        with pytest.raises(UsageError, match=told):
            trainer_training(trainer)


@pytest.mark.parametrize("steps", [1, 2])
def test_a_trainer_of_transformers(tmp_path, steps):
    transformers = installed("transformers")
    if transformers is None:
        pytest.skip("transformers is not installed")

    def training():
        arguments = transformers.TrainingArguments(
            str(tmp_path),
            per_device_train_batch_size=8,
            gradient_accumulation_steps=steps,
            max_grad_norm=0.1,
            weight_decay=0.1,
            report_to=[],
            use_cpu=True,
        )
        data = [{"x": x, "labels": y} for x, y in zip(*batches((64,))[0], strict=True)]
        return trainer_training(transformers.Trainer(Regression(), arguments, train_dataset=data))

    result = check_step(training, max_norm=0.1, accumulate=steps, weights="batches")
    assert result.verdict == "pass", result.headline
