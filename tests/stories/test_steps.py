"""Training steps as a story: by fixture, by function under a marker, by flag; with xdist too."""

import pytest

pytest.importorskip("torch")  # here: what pytester imports, it drops again

STEPS = """
import pytest
import torch
from torch import nn
from pytest_gradcheck import Training, assert_step


def training(scale=1.0, rate=1e-2):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1))
    optimizer = torch.optim.AdamW(model.parameters(), rate)
    batches = [(torch.randn(n, 4), torch.randn(n, 1)) for n in (8, 8, 3)]

    def loss(batch):
        return nn.functional.mse_loss(model(batch[0]), batch[1])

    def step(batch):
        optimizer.zero_grad()
        (scale * loss(batch)).backward()
        optimizer.step()

    return Training(step=step, loss=loss, batches=batches, model=model, optimizer=optimizer)


def test_right(gradstep):
    assert gradstep(training).verdict == "pass"


def test_scaled(gradstep):
    gradstep(lambda: training(scale=1024.0), loss_scale=1024.0)


@pytest.mark.gradstep(step_gradient=0.5)
def test_nearly_marked():
    assert_step(lambda: training(scale=1.01))


def test_nearly(gradstep):
    gradstep(lambda: training(scale=1.01))


def test_still(gradstep):
    gradstep(lambda: training(rate=0.0))


@pytest.mark.gradstep
def test_idle():
    pass
"""
EXPECTED = {
    "test_right": ["pass"],
    "test_scaled": ["fail"],
    "test_nearly": ["fail"],
    "test_nearly_marked": ["pass"],
    "test_still": ["vacuous"],
    "test_idle": ["vacuous"],
}


def test_fixture_and_marker(project):
    project.file("test_steps.py", STEPS)
    run = project.run_alone(f"--gradcheck-report=json:{project.report_path}")
    run.assert_outcomes(passed=2, failed=4)
    assert project.verdicts() == EXPECTED
    told = "*the optimizer received 1024 times (the loss scale) the right gradient*"
    run.stdout.fnmatch_lines([told])


def test_flags(project):
    project.file("test_steps.py", STEPS)
    flags = ("--gradcheck-step-gradient=0.5", "--gradcheck-vacuous=warn", "-W", "ignore")
    run = project.run_alone(f"--gradcheck-report=json:{project.report_path}", *flags)
    run.assert_outcomes(passed=5, failed=1)


LARGE = """
import pytest
import torch
from torch import nn
from pytest_gradcheck import Training, assert_step


def training():
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), 1e-2, momentum=0.9)
    batches = [(torch.randn(25_000, 4), torch.randn(25_000, 1)) for _ in range(7)]

    def loss(batch):
        return nn.functional.mse_loss(model(batch[0]), batch[1])

    def step(batch):
        optimizer.zero_grad()
        loss(batch).backward()
        optimizer.step()

    return Training(step=step, loss=loss, batches=batches, model=model, optimizer=optimizer)


def test_some(gradstep):
    print("held at", gradstep(training).context.derivatives)


def test_all_by_call(gradstep):
    print("held at", gradstep(training, step_fresh=7).context.derivatives)


@pytest.mark.gradstep(step_fresh=7)
def test_all_by_marker():
    print("held at", assert_step(training).context.derivatives)
"""


def test_calls_at_which_a_large_training_is_held(project):
    project.file("test_steps.py", LARGE)
    run = project.run_alone("-s", "--gradcheck-step-fresh=3")
    run.assert_outcomes(passed=3)
    run.stdout.fnmatch_lines([f"*held at {number}" for number in (3, 7, 7)])
