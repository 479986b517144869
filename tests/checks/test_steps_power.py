"""What a check looks at beyond the first updates, and what it says where it sees little."""

from __future__ import annotations

import numpy as np
import pytest

from pytest_gradcheck import Training, check_step

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402  # needs torch
from torch.nn import functional as F  # noqa: E402, N812  # needs torch


class Own(torch.optim.Optimizer):
    """Plain descent whose rule nobody knows: later up, or still."""

    kind = ""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr, "n": 0})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            group["n"] += 1
            sign = -1 if self.kind == "up" and group["n"] > 1 else 1
            sign = 0 if self.kind == "still" and group["n"] > 3 else sign
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(p.grad, alpha=sign * group["lr"])


class Up(Own):
    kind = "up"


class Still(Own):
    kind = "still"


def check(make=torch.optim.SGD, lr=1e-2, step=None, sizes=(8, 5, 8, 3), **claims):
    def training():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1))
        optimizer = make(model.parameters(), lr)
        calls = [0]

        def loss(batch):
            return F.mse_loss(model(batch[0]), batch[1])

        def one(batch):
            calls[0] += 1
            if step is None:
                optimizer.zero_grad()
                loss(batch).backward()
                optimizer.step()
            else:
                step(model, optimizer, loss(batch), calls[0], len(batch[0]))

        batches = [(torch.randn(n, 4), torch.randn(n, 1)) for n in sizes]
        return Training(step=one, loss=loss, batches=batches, model=model, optimizer=optimizer)

    return check_step(training, **claims)


def warned(result):
    return {f.code: f.message for f in result.findings if f.severity == "warn"}


@pytest.mark.parametrize(
    ("make", "code"), [(Own, ""), (Up, "step-uphill"), (Still, "step-not-applied")]
)
def test_later_updates_of_an_optimizer_that_is_not_replayed(make, code):
    found = check(make)
    assert found.verdict == "pass", found.headline
    assert {"step-uphill", "step-not-applied"} & set(warned(found)) == ({code} - {""})


def test_another_rule_than_that_of_the_class_is_claimed():
    found = check(optimizer="adam")
    assert (found.verdict, found.findings[0].code) == ("fail", "step-optimizer")
    assert "is SGD, and its updates are those of sgd, not of the claimed adam" in found.headline
    assert check(optimizer="sgd").verdict == "pass"


@pytest.mark.parametrize("count", [8, 30])
def test_windows_of_many_calls_are_waited_for(count):
    def step(model, optimizer, loss, number, size):
        (loss / count).backward()
        if number % count == 0:
            optimizer.step()
            optimizer.zero_grad()

    found = check(step=step, sizes=(4,) * 8)
    assert found.verdict == "pass", found.headline
    assert len(found.table("updates").rows) >= 6


def test_the_last_batch_of_a_long_list_is_among_those_that_count():
    def step(model, optimizer, loss, number, size):
        optimizer.zero_grad()
        (loss * size / 4).backward()  # as if each batch were a full one
        optimizer.step()

    assert check(step=step, sizes=(4,) * 100).verdict == "pass"
    found = check(step=step, sizes=(4,) * 99 + (2,))
    assert found.verdict == "fail", found.headline


def test_a_clip_by_value_is_held_against_the_largest_element():
    def step(model, optimizer, loss, number, size):
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_value_(model.parameters(), 1.3)
        optimizer.step()

    for claims in ({}, {"max_value": 1.3}):
        told = warned(check(step=step, **claims))
        assert "nothing was clipped" in told["clip-never-bites"]


def test_a_clip_that_is_claimed_and_not_there():
    told = warned(check(max_norm=1e3))
    assert "no clip of torch was called" in told["weak-claim"]


def test_a_step_that_is_too_long_is_told_the_rate_that_would_do():
    told = warned(check(lr=5.0))
    assert "; try lr <= " in told["step-too-long"]


def test_updates_of_zero_are_vacuous():
    optax, jnp = pytest.importorskip("optax"), pytest.importorskip("jax.numpy")
    import jax

    def training():
        tx, params = optax.adam(0.0), {"w": jnp.ones((4, 1))}
        rng = np.random.default_rng(0)
        batches = [tuple(np.float32(rng.normal(size=(8, n))) for n in (4, 1)) for _ in range(2)]

        def loss(params, batch):
            return jnp.mean((batch[0] @ params["w"] - batch[1]) ** 2)

        def step(params, state, batch):
            updates, state = tx.update(jax.grad(loss)(params, batch), state, params)
            return optax.apply_updates(params, updates), state

        return Training(
            step=step, loss=loss, batches=batches, params=params, opt_state=tx.init(params),
            optimizer=tx,
        )  # fmt: skip

    found = check_step(training)
    assert (found.verdict, found.findings[0].code) == ("vacuous", "step-rate-zero"), found.headline


class Delayed(torch.optim.Optimizer):
    """Updates by the gradient of three steps before, which its state does not keep."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})
        self.waiting = []

    @torch.no_grad()
    def step(self, closure=None):
        parts = [p for group in self.param_groups for p in group["params"]]
        self.waiting.append([None if p.grad is None else p.grad.clone() for p in parts])
        if len(self.waiting) > 3:
            for p, g in zip(parts, self.waiting.pop(0), strict=True):
                if g is not None:
                    p.sub_(g, alpha=self.param_groups[0]["lr"])


def test_a_state_whose_loss_shows_some_updates_later():
    found = check(Delayed)
    assert "step-restore" in {f.code for f in found.findings if f.severity == "fail"}


def test_a_claim_that_the_optimizer_itself_contradicts():
    told = warned(check(torch.optim.Adam, optimizer="adam", eps=1e-9))
    assert "eps=1e-09 is claimed, and Adam has 1e-08" in told["weak-claim"]
    assert "weak-claim" not in warned(check(torch.optim.Adam, optimizer="adam", eps=1e-8))


def test_a_gradient_of_float64_that_went_through_float32():
    def step(model, optimizer, loss, number, size):
        optimizer.zero_grad()
        loss.backward()
        for p in model.parameters() if rounds else ():
            p.grad.copy_(p.grad.float())
        optimizer.step()

    torch.set_default_dtype(torch.float64)
    try:
        rounds = False
        assert check(step=step).verdict == "pass"
        rounds = True
        found = check(step=step)
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.verdict == "fail"
    assert "a lower precision" in found.headline, found.headline


def test_what_builds_a_training_leaves_the_generators():
    import random

    random.seed(1), np.random.seed(1), torch.manual_seed(1)  # the global one
    before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    check()
    assert random.getstate() == before[0]
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert torch.equal(torch.get_rng_state(), before[2])
