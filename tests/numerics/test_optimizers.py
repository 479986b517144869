"""Update rules against PyTorch's own, and mistakes that a replay tells apart."""

from dataclasses import replace

import numpy as np
import pytest

from pytest_gradcheck.numerics import replay
from pytest_gradcheck.numerics.optimizers import COARSE, DECAY, DEFAULTS, RULES, replayed
from pytest_gradcheck.numerics.replay import Followed, Move, followed, misfit, states
from pytest_gradcheck.numerics.variants import dialects, variants

torch = pytest.importorskip("torch")
T = torch.optim
STEPS = 9  # RAdam changes its formula after the fifth

CLASSES = {
    "sgd": (T.SGD, {"lr": 0.1, "momentum": 0.8, "dampening": 0.3, "weight_decay": 0.1}),
    "sgd nesterov": (T.SGD, {"lr": 0.1, "momentum": 0.8, "nesterov": True}),
    "sgd plain": (T.SGD, {"lr": 0.1, "maximize": True}),
    "adam": (T.Adam, {"betas": (0.8, 0.9), "eps": 1e-3, "weight_decay": 0.1}),
    "adam amsgrad": (T.Adam, {"betas": (0.8, 0.9), "eps": 1e-3, "amsgrad": True}),
    "adamw": (T.AdamW, {"betas": (0.8, 0.9), "eps": 1e-3, "weight_decay": 0.1}),
    "adamax": (T.Adamax, {"betas": (0.8, 0.9), "eps": 1e-3, "weight_decay": 0.1}),
    "nadam": (T.NAdam, {"betas": (0.8, 0.9), "eps": 1e-3, "weight_decay": 0.1}),
    "radam": (T.RAdam, {"betas": (0.8, 0.99), "eps": 1e-3, "weight_decay": 0.1}),
    "rmsprop": (T.RMSprop, {"alpha": 0.8, "eps": 1e-3, "centered": True, "momentum": 0.5}),
    "adagrad": (T.Adagrad, {"lr": 0.1, "lr_decay": 0.1, "eps": 1e-3, "weight_decay": 0.1}),
    "adadelta": (T.Adadelta, {"rho": 0.8, "eps": 1e-3, "weight_decay": 0.1}),
}
if hasattr(T, "Muon"):
    CLASSES["muon"] = (T.Muon, {"lr": 0.1, "weight_decay": 0.1, "momentum": 0.9})


def moves(kind):
    """Updates of a tensor by PyTorch, with the gradients and hyperparameters."""
    make, hyper = CLASSES[kind]
    generator = np.random.default_rng(0)
    p = torch.nn.Parameter(torch.from_numpy(generator.normal(size=(3, 4))))
    optimizer = make([p], **hyper)
    found = []
    for _ in range(STEPS):
        g = generator.normal(size=(3, 4))
        before = p.detach().numpy().copy()
        p.grad = torch.from_numpy(g.copy())
        optimizer.step()
        group = {k: v for k, v in optimizer.param_groups[0].items() if k != "params"}
        found.append(Move(before, p.detach().numpy().copy(), g, group))
    return found


@pytest.mark.parametrize("kind", CLASSES)
def test_rules_are_those_of_torch(kind):
    name = kind.partition(" ")[0]
    assert misfit(name, moves(kind), {}, 1e-6, 2.0**-52) is None


@pytest.mark.parametrize("kind", [k for k in CLASSES if k != "muon"])
def test_every_mistake_is_told_from_the_rule(kind):
    name, seen = kind.partition(" ")[0], moves(kind)
    hyper = seen[0].hyper
    for told, change in variants(name, hyper):
        assert misfit(name, seen, change, 1e-6, 2.0**-52) is not None, told


@pytest.mark.parametrize("kind", [k for k in CLASSES if k != "muon"])
def test_other_rules_are_told_apart(kind):
    name, seen = kind.partition(" ")[0], moves(kind)
    for other in RULES:
        same = {name, "muon", "lamb", "lars"} | ({"adamw"} if kind == "adam amsgrad" else set())
        if other not in same and (kind, other) not in {("sgd plain", "lars")}:
            change = {**DEFAULTS[other], "rule": other, "lr": hyper_of(seen)["lr"]}
            assert misfit(name, seen, change, 1e-6, 2.0**-52) is not None, other


def hyper_of(seen):
    return seen[0].hyper


def test_the_first_update_that_differs_is_named():
    seen = moves("adam")
    bent = seen[4]
    seen[4] = Move(bent.before, bent.after + 0.01, bent.gradient, bent.hyper)
    found = misfit("adam", seen, {}, 1e-6, 2.0**-52)
    assert found.update == 5
    assert found.error > 0


def test_a_ratio_is_measured():
    seen = [Move(np.zeros(3), -0.2 * np.ones(3), np.ones(3), {"lr": 0.1})]
    found = misfit("sgd", seen, {}, 1e-6, 2.0**-52)
    assert (found.update, found.ratio, found.cosine) == (1, pytest.approx(2), pytest.approx(1))


def test_a_tensor_without_gradient_must_not_move():
    still = Move(np.ones(3), np.ones(3), None, {"lr": 0.1})
    moved = Move(np.ones(3), np.zeros(3), None, {"lr": 0.1})
    assert misfit("sgd", [still], {}, 1e-6, 2.0**-52) is None
    assert misfit("sgd", [still, moved], {}, 1e-6, 2.0**-52).update == 2


def test_slack_forgives_a_gradient_that_is_not_known_better():
    g = np.array([1.0, -2.0])
    seen = [Move(np.zeros(2), -0.1 * (g + 1e-4), g, {"lr": 0.1}, slack=1e-3)]
    assert misfit("sgd", seen, {}, 1e-9, 2.0**-52) is None
    exact = [Move(np.zeros(2), -0.1 * (g + 1e-4), g, {"lr": 0.1})]
    assert misfit("sgd", exact, {}, 1e-9, 2.0**-52) is not None


def test_states_are_what_torch_keeps():
    make, hyper = CLASSES["adam"]
    seen = moves("adam")
    state = states("adam", seen, {})
    assert set(state) == {"m", "v"}
    assert make
    assert hyper


@pytest.mark.parametrize("name", RULES)
def test_every_rule_has_defaults_and_moves_downhill(name):
    generator = np.random.default_rng(1)
    g, x = generator.normal(size=(4, 3)), generator.normal(size=(4, 3))
    update, _ = replayed(name, g, x, {}, 1, DEFAULTS[name])
    assert np.vdot(update, g) < 0
    assert set(DECAY) | set(COARSE) <= set(RULES)


@pytest.mark.parametrize("name", RULES)
def test_conventions_start_with_the_plain_one(name):
    assert next(iter(dialects(name, {}))) == {}


@pytest.mark.skipif("muon" not in CLASSES, reason="torch has no Muon")
@pytest.mark.parametrize("shape", [(16, 16), (8, 16), (16, 8)])
def test_muon_is_rounded_as_in_torch(shape):
    """A nearly singular gradient, of which a replay in float64 misses a tenth."""
    torch.manual_seed(0)
    g = torch.randn(5, shape[0]).T @ torch.randn(5, shape[1])
    p = torch.nn.Parameter(torch.zeros(shape))
    p.grad = g.clone()
    torch.optim.Muon([p], lr=1.0, weight_decay=0.0).step()
    hyper = {"lr": 1.0, "bfloat16": "fused"}
    found, _ = replayed("muon", g.double().numpy(), np.zeros(shape), {}, 1, hyper)
    assert np.linalg.norm(found - p.detach().double().numpy()) < 0.02 * np.linalg.norm(found)


@pytest.mark.parametrize("name", ["adamw", "sgd", "nadam", "rmsprop", "lamb"])
def test_a_large_tensor_is_replayed_like_its_parts(name, monkeypatch):
    rng = np.random.default_rng(0)
    hyper = {**DEFAULTS[name], "weight_decay": 0.1}
    x, state, seen = rng.normal(size=(30, 5)), {}, []
    for t in range(1, 5):
        g = rng.normal(size=x.shape)
        update, state = replayed(name, g, x, state, t, hyper)
        seen.append(Move(x, x + update, g, hyper))
        x = x + update
    assert followed(name, seen, {}, 1e-12, 2.0**-52) == Followed(None, 0, 4 * x.size)
    off = [replace(move, after=move.after + 1e-3 * (t == 2)) for t, move in enumerate(seen)]
    whole = followed(name, off, {}, 1e-6, 2.0**-52).misfit
    late = followed(name, seen[2:], {}, 1e-6, 2.0**-52)  # from another state
    monkeypatch.setattr(replay, "CHUNK", 16)
    assert followed(name, seen, {}, 1e-12, 2.0**-52) == Followed(None, 0, 4 * x.size)
    parted = followed(name, off, {}, 1e-6, 2.0**-52).misfit
    assert (parted.update, whole.update) == (3, 3)
    np.testing.assert_allclose(
        [parted.error, parted.ratio, parted.cosine], [whole.error, whole.ratio, whole.cosine]
    )
    assert (followed(name, seen[2:], {}, 1e-6, 2.0**-52).misfit is None) == (late.misfit is None)
    start = states(name, seen[:2], {})
    begun = [replace(seen[2], start=start, count=2), seen[3]]
    assert followed(name, begun, {}, 1e-12, 2.0**-52).misfit is None
