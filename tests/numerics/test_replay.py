"""Large tensors of float32: replayed in float32 first, with all the power of float64."""

from dataclasses import replace

import numpy as np
import pytest

from pytest_gradcheck.numerics import replay
from pytest_gradcheck.numerics.replay import Followed, Move, followed

torch = pytest.importorskip("torch")
T = torch.optim
TOLERANCE, EPSILON, SIZE = 2e-4, 2.0**-23, 20_000

CLASSES = {
    "sgd": (T.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}),
    "adam": (T.Adam, {"lr": 1e-3, "weight_decay": 0.01}),
    "adam amsgrad": (T.Adam, {"lr": 1e-3, "amsgrad": True}),
    "adamw": (T.AdamW, {"lr": 1e-3, "weight_decay": 0.1}),
    "adamax": (T.Adamax, {"lr": 1e-3}),
    "nadam": (T.NAdam, {"lr": 1e-3}),
    "radam": (T.RAdam, {"lr": 1e-3}),
    "rmsprop": (T.RMSprop, {"lr": 1e-3, "momentum": 0.5}),
    "adagrad": (T.Adagrad, {"lr": 0.1}),
    "adadelta": (T.Adadelta, {"lr": 1.0}),
}


def moves(kind, size=SIZE, scale=1e-2, wrong=lambda optimizer, p, t: None):
    """Seven updates in float32 by PyTorch; ``wrong`` may change what an optimizer holds."""
    make, hyper = CLASSES[kind]
    rng = torch.Generator().manual_seed(0)
    p = torch.nn.Parameter(0.05 * torch.randn(size, generator=rng))
    optimizer = make([p], **hyper)
    told = {k: v for k, v in optimizer.param_groups[0].items() if k != "params"}
    if told.pop("decoupled_weight_decay", False):
        told["decay"] = "decoupled"
    found = []
    for t in range(7):
        before = p.detach().double().numpy().copy()
        p.grad = scale * torch.randn(size, generator=rng)
        wrong(optimizer, p, t)
        optimizer.step()
        after = p.detach().double().numpy().copy()
        found.append(Move(before, after, p.grad.double().numpy(), told))
    return found


@pytest.fixture
def precisions(monkeypatch):
    """In which precisions there was a replay."""
    seen, plain = [], replay._added_up

    def noting(*args):
        seen.append(args[-1].name)
        return plain(*args)

    monkeypatch.setattr(replay, "_added_up", noting)
    return seen


@pytest.mark.parametrize("scale", [1e-6, 1e-2, 1e3])
@pytest.mark.parametrize("kind", CLASSES)
def test_what_float32_reaches_is_what_float64_reaches(kind, scale, precisions, monkeypatch):
    name, seen = kind.partition(" ")[0], moves(kind, scale=scale)
    quick = followed(name, seen, {}, TOLERANCE, EPSILON)
    assert quick.misfit is None
    assert precisions == ["float32"]
    monkeypatch.setattr(replay, "_is_quick", lambda *_: False)
    assert followed(name, seen, {}, TOLERANCE, EPSILON) == quick


def one_element(optimizer, p, t):
    if t == 3:
        with torch.no_grad():
            p[777] += 1e-3  # beside the optimizer, of which a step is as long


def other_rate(optimizer, p, t):
    optimizer.param_groups[0]["lr"] *= 1.001 if t == 5 else 1.0


def without_decay(optimizer, p, t):
    optimizer.param_groups[0]["weight_decay"] = 0.0


def other_moment(optimizer, p, t):
    if t == 4:
        optimizer.state[p]["exp_avg"].mul_(1.001)


def other_root(optimizer, p, t):
    if t == 4:
        optimizer.state[p]["exp_avg_sq"].mul_(1.002)


def other_beta(optimizer, p, t):
    optimizer.param_groups[0]["betas"] = (0.9, 0.998)


def other_eps(optimizer, p, t):
    optimizer.param_groups[0]["eps"] = 1e-5


@pytest.mark.parametrize(
    "wrong",
    [one_element, other_rate, without_decay, other_moment, other_root, other_beta, other_eps],
)
def test_what_is_wrong_is_told_as_float64_tells_it(wrong, precisions, monkeypatch):
    seen = moves("adamw", wrong=wrong)
    found = followed("adamw", seen, {}, TOLERANCE, EPSILON)
    assert found.misfit is not None
    assert precisions == ["float32", "float64"]
    monkeypatch.setattr(replay, "_is_quick", lambda *_: False)
    assert followed("adamw", seen, {}, TOLERANCE, EPSILON) == found


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_squares_that_float32_loses_are_left_to_float64(scale, precisions):
    seen = moves("sgd", scale=scale)
    still = [replace(m, before=0 * m.before, after=0 * m.before) for m in seen]
    quick = followed("sgd", still, {"weight_decay": 0.0}, TOLERANCE, EPSILON)
    assert quick.misfit is not None  # nothing moved, though there are gradients
    assert precisions == ["float32", "float64"]


def test_a_large_tensor_without_a_gradient_stays(precisions):
    x = np.ones(SIZE)
    still = Move(x, x, None, {"lr": 0.1})
    assert followed("sgd", [still], {}, TOLERANCE, EPSILON) == Followed(None, 0, 0)
    assert "float32" not in precisions


@pytest.mark.parametrize("factor", [1.0, 1.1])
def test_a_momentum_that_a_gradient_takes_back_leaves_its_rounding(factor):
    """Two terms of one size whose sum is small: it has the rounding of the terms."""
    hyper = {"lr": 1.0, "momentum": 0.9}
    first, second = np.float32(0.1), np.float32(-0.09 * (1 - 2e-4))
    x, found = np.float32(0.1), []
    for g, buffer in ((first, first), (second, np.float32(0.9) * first + second)):
        after = np.float32(x - np.float32(factor if found else 1.0) * buffer)
        found.append(Move(*(np.array([a], np.float64) for a in (x, after, g)), hyper))
        x = after
    assert (followed("sgd", found, {}, TOLERANCE, EPSILON).misfit is None) == (factor == 1.0)
