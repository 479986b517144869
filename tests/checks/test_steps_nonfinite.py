"""A batch whose gradient is not finite: what a step claims to do with it, and what comes later."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from pytest_gradcheck import Training, check_step

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402  # needs torch
from torch.nn import functional as F  # noqa: E402, N812  # needs torch


@dataclass
class Pair:
    x: torch.Tensor
    y: torch.Tensor


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.last = nn.Embedding(10, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.last(torch.tanh(self.table(x).mean(1)))


def small():
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1))


def normed():
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 1))


def numbers(n):
    return torch.randn(n, 4), torch.randn(n, 1)


def squared(model, batch):
    return F.mse_loss(model(batch[0]), batch[1])


def skipping(model, optimizer, loss, calls):
    optimizer.zero_grad()
    loss().backward()
    if all(bool(p.grad.isfinite().all()) for p in model.parameters()):
        optimizer.step()


def plain(model, optimizer, loss, calls):
    optimizer.zero_grad()
    loss().backward()
    optimizer.step()


def raising(model, optimizer, loss, calls):
    optimizer.zero_grad()
    value = loss()
    if not bool(value.isfinite()):
        raise ValueError("the loss is not finite")
    value.backward()
    optimizer.step()


def thrice(own):
    """Three times the gradient from the fifth call on."""

    def step(model, optimizer, loss, calls):
        own(model, optimizer, lambda: loss() * (3 if calls >= 5 else 1), calls)

    return step


def stuck(model, optimizer, loss, calls):
    """Gradients are zeroed after an update only, so that what is not finite stays."""
    loss().backward()
    if all(bool(p.grad.isfinite().all()) for p in model.parameters()):
        optimizer.step()
        optimizer.zero_grad()


def check(step, made=small, batch=numbers, loss=squared, policy="skip", **claims):
    def training():
        torch.manual_seed(0)
        model = made()
        optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
        calls = [0]

        def one(batch):
            calls[0] += 1
            step(model, optimizer, lambda: loss(model, batch), calls[0])

        batches = [batch(n) for n in (8, 5, 8, 3)]
        return Training(
            step=one,
            loss=lambda batch: loss(model, batch),
            batches=batches,
            model=model,
            optimizer=optimizer,
        )

    return check_step(training, nonfinite=policy, **claims)


def codes(result, severity="fail"):
    return {f.code for f in result.findings if f.severity == severity}


@pytest.mark.parametrize(("step", "policy"), [(skipping, "skip"), (raising, "raise")])
def test_what_comes_after_it_is_checked(step, policy):
    assert check(step, policy=policy).verdict == "pass"
    found = check(thrice(step), policy=policy)
    assert "step-gradient-varied" in codes(found) or "3" in found.headline, found.headline
    assert found.verdict == "fail"


def tokens(n):
    return torch.randint(0, 10, (n, 3)), torch.randint(0, 2, (n,))


def entropy(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def of_pair(model, batch):
    return F.mse_loss(model(batch.x), batch.y)


def bounded(model, batch):
    return F.mse_loss(model(torch.tanh(batch[0])), torch.tanh(batch[1]))


def beside(n):
    """The first array is of no use to the loss."""
    return torch.randn(n), *numbers(n)


FORMS = {
    "tokens": {"made": Tokens, "batch": tokens, "loss": entropy},
    "a dataclass": {"batch": lambda n: Pair(*numbers(n)), "loss": of_pair},
    "bounded inputs": {"loss": bounded},
    "an array of no use": {"batch": beside, "loss": lambda m, b: squared(m, b[1:])},
}


@pytest.mark.parametrize("form", FORMS)
def test_batches_of_any_form_are_spoilt(form):
    right = check(skipping, **FORMS[form])
    assert right.verdict == "pass", right.headline
    assert not codes(right, "warn") & {"weak-claim"}
    wrong = check(plain, **FORMS[form])
    assert codes(wrong) == {"step-nonfinite"}, wrong.headline
    assert "test the gradient before the update" in wrong.headline + " ".join(wrong.advice)


def test_a_training_that_never_goes_on():
    found = check(stuck)
    assert "step-nonfinite" in codes(found), found.headline
    assert any("makes no update any more" in f.message for f in found.findings)


def test_to_propagate_is_tried():
    assert check(plain, policy="propagate").verdict == "pass"
    found = check(skipping, policy="propagate")
    assert codes(found) == {"step-nonfinite"}, found.headline
    assert "leaves all parameters finite" in found.headline


def test_buffers_that_a_skipped_batch_spoils():
    found = check(skipping, made=normed)
    assert found.verdict == "pass", found.headline
    (told,) = [f for f in found.findings if f.code == "step-nonfinite"]
    assert (told.severity, told.where) == ("warn", "1.running_mean")


def test_a_window_is_completed():
    def gathering(model, optimizer, loss, calls):
        (loss() / 2).backward()
        if calls % 2 == 0:
            if all(bool(p.grad.isfinite().all()) for p in model.parameters()):
                optimizer.step()
            optimizer.zero_grad()

    found = check(gathering, accumulate=2, weights="batches")
    assert found.verdict == "pass", found.headline


def test_a_policy_that_cannot_be_tried_is_said_to_be_so():
    class Numb(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = small()

        def forward(self, x):
            kept = [torch.nan_to_num(p, nan=0.0) for p in self.inner.parameters()]
            names = [name for name, _ in self.inner.named_parameters()]
            x = torch.nan_to_num(x, nan=0.0, posinf=0.0, neginf=0.0)
            return torch.func.functional_call(self.inner, dict(zip(names, kept, strict=True)), (x,))

    def clean(model, batch):
        wanted = torch.nan_to_num(batch[1], nan=0.0, posinf=0.0, neginf=0.0)
        return F.mse_loss(model(batch[0]), wanted)

    found = check(plain, made=Numb, loss=clean)
    assert "weak-claim" in codes(found, "warn"), found.headline
    assert any("was not tried" in f.message for f in found.findings)


def by_hand(spoils: bool):
    """Adam by hand in NumPy that skips what is not finite; its moments may be spoilt."""

    def gradient(params, batch):
        x, y = batch
        return {"w": 2 * x.T @ (x @ params["w"] - y) / len(y)}

    def loss(params, batch):
        x, y = batch
        return float(np.mean((x @ params["w"] - y) ** 2))

    def step(params, state, batch):
        m, v, t = state
        g = gradient(params, batch)["w"]
        is_finite = bool(np.all(np.isfinite(g)))
        if not is_finite and not spoils:
            return params, state
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        if not is_finite:
            return params, (m, v, t)
        t += 1
        move = 1e-2 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        return {"w": params["w"] - move}, (m, v, t)

    rng = np.random.default_rng(0)
    batches = [(rng.normal(size=(n, 3)), rng.normal(size=n)) for n in (8, 5, 8, 3)]
    start = {"w": rng.normal(size=3)}
    return Training(
        step=step,
        loss=loss,
        grad=gradient,
        batches=batches,
        params=start,
        opt_state=(np.zeros(3), np.zeros(3), 0),
    )


def test_a_state_that_a_skipped_batch_spoils():
    claims = {"optimizer": "adam", "lr": 1e-2, "nonfinite": "skip"}
    right = check_step(lambda: by_hand(spoils=False), **claims)
    assert right.verdict == "pass", right.headline
    wrong = check_step(lambda: by_hand(spoils=True), **claims)
    assert wrong.verdict == "fail", wrong.headline
    assert any("the skipped batch after call" in told for told in wrong.advice), wrong.advice


@pytest.mark.parametrize("policy", ["skip", "propagate"])
@pytest.mark.parametrize("step", [plain, skipping])
def test_what_is_not_finite_in_a_parameter_is_nothing_that_the_step_did(step, policy):
    found = check(step, policy=policy, **FORMS["tokens"])
    is_right = (step is skipping) == (policy == "skip")
    assert found.verdict == ("pass" if is_right else "fail"), found.headline
