"""Calls that nobody gets right the first time: what is said of them."""

import numpy as np
import pytest

from pytest_gradcheck import Training, UsageError, check_clipping, check_step

torch = pytest.importorskip("torch")
jax = pytest.importorskip("jax")
optax = pytest.importorskip("optax")
nn = torch.nn


def made(**changes):
    """A training, parts of which are made of model, optimizer, loss, inputs and targets."""
    model = nn.Linear(8, 1)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    x, y = torch.randn(6, 8), torch.randn(6, 1)

    def loss(batch):
        return nn.functional.mse_loss(model(batch[0]), batch[1])

    def step(batch):
        optimizer.zero_grad()
        loss(batch).backward()
        optimizer.step()

    parts = {"step": step, "loss": loss, "batches": [(x, y)], "model": model}
    parts |= {"optimizer": optimizer}
    return Training(**{**parts, **{k: f(loss, x, y) for k, f in changes.items()}})


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"loss": lambda loss, x, y: lambda batch: loss(batch).item()}, r"without item\(\)"),
        ({"batches": lambda loss, x, y: (x, y)}, r"looks like one batch.*batches=\[\(x, y\)\]"),
        ({"batches": lambda loss, x, y: {"x": x, "y": y}}, "looks like one batch"),
        ({"optimizer": lambda loss, x, y: torch.optim.AdamW}, "got the class AdamW"),
        ({"model": lambda loss, x, y: [x]}, "must be a torch Module, got list"),
        ({"model": lambda loss, x, y: nn.Linear}, r"the class Linear; give an instance, Linear\("),
        ({"model": lambda loss, x, y: made}, "the function made; give the module that it makes"),
        (
            {"model": lambda loss, x, y: nn.Linear(2, 2).parameters()},
            r"a generator; give the model itself, not its parameters\(\)",
        ),
        (
            {"loss": lambda loss, x, y: lambda x, y: nn.functional.mse_loss(x, y)},
            "it is called with a Linear and a tuple of 2",
        ),
    ],
)
def test_parts_of_a_training(changes, told):
    with pytest.raises(UsageError, match=told):
        check_step(lambda: made(**changes))


def test_a_loss_without_a_graph_is_not_said_to_stand_still():
    without = torch.no_grad()
    result = check_step(lambda: made(loss=lambda loss, x, y: without(loss)))
    codes = {f.code for f in result.findings}
    assert (result.verdict, codes) == ("vacuous", {"step-no-gradient"})


@pytest.mark.parametrize("step", [lambda x, y: None, lambda: None], ids=["two", "none"])
def test_a_step_that_takes_something_else_is_told_what_it_is_given(step):
    result = check_step(lambda: made(step=lambda loss, x, y: step))
    assert result.findings[0].code == "step-raised"
    assert result.advice == ("the step is called with the batch, a tuple of 2",)


def test_an_error_inside_of_a_step_is_told_as_it_is():
    result = check_step(lambda: made(step=lambda loss, x, y: lambda batch: loss(*batch)))
    assert (result.findings[0].code, result.advice) == ("step-raised", ())


def test_a_functional_step_that_takes_something_else():
    parts = {"loss": lambda p, batch: p @ batch, "batches": [np.ones(3)], "params": np.ones(3)}
    result = check_step(Training(step=lambda p, batch: p, **parts), optimizer="sgd", lr=0.1)
    told = "the step is called with a ndarray, a NoneType and a ndarray"
    assert (result.findings[0].code, result.advice) == ("step-raised", (told,))


def test_a_model_that_nobody_trains():
    result = check_step(lambda: made(model=lambda loss, x, y: nn.Linear(3, 3)))
    assert (result.verdict, result.findings[0].code) == ("fail", "step-not-registered")
    assert "the step trains another model" in result.headline


def test_something_is_trained_beside_a_model_without_a_graph():
    """A latent, say, whose target comes from a model that is not frozen by its flags."""

    def build():
        torch.manual_seed(0)
        model, latent = nn.Linear(8, 3), nn.Parameter(torch.randn(16, 3))
        optimizer = torch.optim.SGD([latent], 0.1)

        def loss(batch):
            with torch.no_grad():
                target = model(batch)
            return (latent - target).square().mean()

        def step(batch):
            optimizer.zero_grad()
            loss(batch).backward()
            optimizer.step()

        batches = [torch.randn(16, 8) for _ in range(7)]
        return Training(step=step, loss=loss, batches=batches, model=model, optimizer=optimizer)

    result = check_step(build)
    assert result.verdict == "pass"
    assert ("step-not-registered", "warn") in [(f.code, f.severity) for f in result.findings]


def test_another_loss_in_the_step_is_no_factor():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def loss(batch, smoothing=0.0):
        out, labels = model(batch[0]), batch[1]
        return nn.functional.cross_entropy(out, labels, label_smoothing=smoothing)

    def step(batch):
        optimizer.zero_grad()
        loss(batch, 0.1).backward()
        optimizer.step()

    batches = [(torch.randn(16, 8), torch.randint(0, 3, (16,))) for _ in range(7)]
    training = Training(step=step, loss=loss, batches=batches, model=model, optimizer=optimizer)
    result = check_step(training)
    assert result.findings[0].code == "step-wrong-gradient"
    assert "the loss that it differentiates with Training.loss" in result.advice[0]


def test_a_loss_of_nothing_is_a_loss():
    def loss(batch):
        return 0.0

    assert check_step(lambda: made(loss=lambda *_: loss)).verdict != "pass"


@pytest.mark.parametrize(
    ("loss", "told"),
    [
        (lambda params, batch: float(jax.numpy.sum(params["w"] * batch)), r"without float\(\)"),
        (lambda batch, params: jax.numpy.sum(params["w"] * batch), "Training.loss raised"),
    ],
)
def test_a_loss_that_raises_in_jax(loss, told):
    params = {"w": jax.numpy.ones(3)}
    training = Training(
        step=lambda params, state, batch: (params, state),
        loss=loss,
        batches=[jax.numpy.ones(3)],
        params=params,
        optimizer=optax.sgd(0.1),
    )
    with pytest.raises(UsageError, match=told):
        check_step(training)


@pytest.mark.parametrize(
    ("verb", "written", "meant"),
    [
        (check_step, "tol", "step_gradient"),
        (check_step, "max_grad_norm", "max_norm"),
        (check_step, "gradient_accumulation_steps", "accumulate"),
        (check_step, "learning_rate", "lr"),
        (check_step, "wd", "weight_decay"),
        (check_step, "steps", "step_calls"),
        (check_step, "step_grad", "step_gradient"),
        (check_clipping, "rtol", "clip_rounding"),
        (check_clipping, "clip_norm", "max_norm"),
    ],
)
def test_arguments_by_other_names(verb, written, meant):
    with pytest.raises(UsageError, match=f"did you mean {meant}="):
        verb(made, **{written: 1})
