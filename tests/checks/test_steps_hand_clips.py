"""Clips that are written by hand: claimed by nobody they are told, with a wrong norm they fail."""

import numpy as np
import pytest

from pytest_gradcheck import Training, check_step

torch = pytest.importorskip("torch")
nn, F = torch.nn, torch.nn.functional


def trained(change, *, dropout=0.0, make=None):
    """A training whose gradients are changed by hand before the optimizer gets them."""

    def training():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 1))
        params = list(model.parameters())
        opt = (make or (lambda ps: torch.optim.AdamW(ps, 1e-3)))(params)
        batches = [(torch.randn(n, 8), torch.randn(n, 1)) for n in (16, 16, 16, 5)]

        def loss(batch):
            return F.mse_loss(model(batch[0]), batch[1])

        def step(batch):
            opt.zero_grad()
            loss(batch).backward()
            change(params)
            opt.step()

        return Training(step=step, loss=loss, batches=batches, model=model, optimizer=opt)

    return training


def norm(params):
    return float(torch.sqrt(sum((p.grad**2).sum() for p in params)))


def scale(params, factor):
    for p in params:
        p.grad.mul_(factor)


def by_norm(params, threshold=0.1):
    scale(params, min(1.0, threshold / (norm(params) + 1e-6)))


def by_value(params):
    for p in params:
        p.grad.clamp_(-0.05, 0.05)


def alone(params):
    for p in params:
        p.grad.mul_(min(1.0, 0.05 / float(p.grad.norm() + 1e-6)))


def adaptive(params):
    for p in params:
        most = 0.01 * p.detach().norm().clamp_min(1e-3)
        if p.grad.norm() > most:
            p.grad.mul_(most / p.grad.norm())


def adaptive_rows(params):
    """Clips as timm does."""
    for p in params:
        axes = tuple(range(1, p.ndim)) or (0,)
        most = 0.01 * p.detach().norm(dim=axes, keepdim=True).clamp_min(1e-3)
        size = p.grad.norm(dim=axes, keepdim=True)
        p.grad.copy_(torch.where(size > most, p.grad * (most / size.clamp_min(1e-6)), p.grad))


RIGHT = {
    by_norm: "by their norm at 0.1",
    by_value: "by value at 0.05",
    alone: "each tensor by its own norm, at 0.05",
    adaptive: "each tensor by 0.01 times its weights",
    adaptive_rows: "each unit by 0.01 times its weights",
}


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("clip", RIGHT, ids=lambda clip: clip.__name__)
def test_a_clip_that_nobody_claims_is_told(clip, dropout):
    result = check_step(trained(clip, dropout=dropout))
    assert result.verdict == "pass", result.headline
    told = next(f for f in result.findings if f.code == "step-clip-unclaimed")
    assert (told.severity, RIGHT[clip] in told.message) == ("warn", True), told.message


def test_a_clip_that_bites_once_is_told():
    seen = []
    made = trained(lambda params: seen.append(norm(params)))()
    for call in range(7):
        made.step(made.batches[call % 4])
    second, first = sorted(seen)[-2:]
    result = check_step(trained(lambda params: by_norm(params, (first + second) / 2)))
    assert result.verdict == "pass", result.headline
    assert any(f.code == "step-clip-unclaimed" for f in result.findings)


@pytest.mark.parametrize("factor", [0.5, 0.97, 3.0])
def test_a_factor_is_no_clip(factor):
    result = check_step(trained(lambda params: scale(params, factor)))
    assert result.verdict == "fail"
    assert result.findings[0].code == "step-gradient-scale"


def test_a_factor_is_no_clip_where_all_gradients_are_alike():
    def training():
        torch.manual_seed(0)
        model = nn.Linear(4, 2)
        opt = torch.optim.SGD(model.parameters(), 0.1)

        def step(batch):
            opt.zero_grad()
            model(batch).sum().backward()
            scale(list(model.parameters()), 0.5)
            opt.step()

        def loss(batch):
            return model(batch).sum()

        batches = [torch.ones(3, 4)]
        return Training(step=step, loss=loss, batches=batches, model=model, optimizer=opt)

    assert check_step(training).verdict == "fail"


def test_a_gradient_that_is_normalised_is_named():
    result = check_step(trained(lambda params: scale(params, 5.0 / norm(params))))
    assert result.verdict == "fail"
    assert "a gradient of the norm 5 each time" in result.headline


def squared(params):
    scale(params, min(1.0, 0.1 / norm(params) ** 2))


def order_one(params):
    scale(params, min(1.0, 0.1 / float(sum(p.grad.abs().sum() for p in params))))


def longest(params):
    scale(params, min(1.0, 0.1 / float(max(p.grad.norm() for p in params))))


def summed(params):
    scale(params, min(1.0, 0.1 / float(sum(p.grad.norm() for p in params))))


def last(params):
    scale(params, min(1.0, 0.1 / float(params[-1].grad.norm())))


def normalised(params):
    for p in params:
        p.grad.div_(p.grad.norm())


WRONG = {
    squared: "by the square of the norm",
    order_one: "by the norm of order 1",
    longest: "by the largest norm of a tensor",
    summed: "by the sum of the norms",
    last: "by the norm of 3.bias alone",
    normalised: "each tensor is divided by its own norm",
}


@pytest.mark.parametrize("clip", WRONG, ids=lambda clip: clip.__name__)
def test_another_norm_than_claimed_is_named(clip):
    result = check_step(trained(clip), max_norm=0.1)
    assert result.findings[0].code == "step-clip-kind"
    assert WRONG[clip] in result.headline


def test_a_gradient_that_is_dropped_before_the_clip_is_named():
    def change(params):
        params[2].grad = None
        nn.utils.clip_grad_norm_(params, 0.1)

    result = check_step(trained(change))
    assert result.findings[0].code == "step-missing-gradient"
    assert "3.weight received no gradient" in result.headline


def cut_numpy(grads, threshold):
    size = np.sqrt(sum((g**2).sum() for g in grads.values()))
    return {k: g * min(1.0, threshold / size) for k, g in grads.items()}


def cut_numpy_values(grads, threshold):
    return {k: np.clip(g, -threshold, threshold) for k, g in grads.items()}


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize(
    ("cut", "most"), [(cut_numpy, 1.6), (cut_numpy, 2.8), (cut_numpy_values, 0.03)]
)
def test_a_numpy_step_of_a_known_rule_clips_by_hand(momentum, cut, most):
    def training(factor=1.0):
        rng = np.random.default_rng(0)
        params = {"w": rng.normal(size=(4, 3)), "b": np.zeros(3)}
        batches = [(rng.normal(size=(8, 4)), rng.normal(size=(8, 3))) for _ in range(4)]

        def loss(params, batch):
            return np.mean((batch[0] @ params["w"] + params["b"] - batch[1]) ** 2)

        def step(params, velocity, batch):
            x, y = batch
            r = 2 * (x @ params["w"] + params["b"] - y) / y.size
            grads = {"w": factor * x.T @ r, "b": r.sum(axis=0)}
            for name, g in cut(grads, most).items():
                velocity[name] = momentum * velocity[name] + g
                params[name] -= 0.1 * velocity[name]
            return params, velocity

        start = {name: np.zeros_like(x) for name, x in params.items()}
        return Training(step=step, loss=loss, batches=batches, params=params, opt_state=start)

    claims = {"optimizer": "sgd", "lr": 0.1, "momentum": momentum}
    result = check_step(training, **claims)
    assert result.verdict == "pass", result.headline
    told = next(f for f in result.findings if f.code == "step-clip-unclaimed")
    assert f"at {most:.4g}" in told.message
    assert check_step(lambda: training(2.0), **claims).verdict == "fail"
    assert check_step(training, **{**claims, "lr": 0.2}).verdict == "fail"
