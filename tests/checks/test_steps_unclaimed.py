"""Trainings that hand no optimizer over and claim no rule: what is seen, and what is left open."""

import importlib

import numpy as np
import pytest

from pytest_gradcheck import Training, UsageError, check_step
from pytest_gradcheck.reports import text

torch = pytest.importorskip("torch")
jax = pytest.importorskip("jax")
pytest.importorskip("optax")
loops = importlib.import_module("loops")
loop, STEP = loops.loop, loops.STEP
jnp = jax.numpy
BACK = "model.zero_grad(); loss(batch).backward(); "


def codes(result, *severities):
    return {f.code for f in result.findings if f.severity in (severities or ("fail",))}


# --- torch: the optimizers that the step calls ----------------------------------------------------


RIGHT = {
    "adamw": {},
    "sgd": {"optimizer": "SGD(params, 0.1, momentum=0.9)"},
    "clipped": {"body": BACK + "clip(params, 0.1); opt.step()", "max_norm": 0.1},
    "windows": {
        "body": "(share(2) * loss(batch)).backward()\n"
        "if number % 2 == 0: opt.step(); opt.zero_grad()",
        "accumulate": 2,
        "sizes": (8, 5),
    },
}


@pytest.mark.parametrize("name", RIGHT)
def test_the_optimizer_of_the_step_is_heard(name):
    claims = {"body": STEP} | RIGHT[name]
    result = loop(claims.pop("body"), is_handed=False, **claims)
    assert result.verdict == "pass", result.headline
    assert result.headline.endswith("gradients and updates are right")
    assert "received" in result.table("updates").columns


WRONG = {
    "step-gradient-accumulates": ("loss(batch).backward(); opt.step()", {}),
    "step-wrong-gradient": (
        "opt.zero_grad(); loss((batch[0][:2], batch[1][:2])).backward(); opt.step()",
        {},
    ),
    "step-gradient-scale": ("opt.zero_grad(); (3 * loss(batch)).backward(); opt.step()", {}),
    "step-not-clipped": (STEP, {"max_norm": 1e-3}),
    "step-not-registered": (STEP, {"optimizer": "SGD(params[1:], 0.1)"}),
}


@pytest.mark.parametrize("code", WRONG)
@pytest.mark.parametrize("optimizer", ["SGD(params, 0.1)", "AdamW(params, 1e-2)"])
def test_what_is_wrong_is_seen_without_an_optimizer_too(code, optimizer):
    body, claims = WRONG[code]
    result = loop(body, is_handed=False, **{"optimizer": optimizer, **claims})
    assert result.verdict == "fail", result.headline
    assert code in codes(result), result.headline


def own(make_step, **parts):
    """A training of two tensors whose step is made from its model, optimizer and loss."""

    def training():
        torch.manual_seed(0)
        model = torch.nn.Linear(4, 2)
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.5)
        batches = [(torch.randn(n, 4), torch.randn(n, 2)) for n in (6, 5, 6)]

        def loss(batch):
            return torch.nn.functional.mse_loss(model(batch[0]), batch[1])

        step = make_step(model, optimizer, loss)
        return Training(**{"step": step, "loss": loss, "batches": batches, "model": model} | parts)

    return training


def test_listening_leaves_everything_as_it_was():
    KEPT.clear()

    def make(model, optimizer, loss):
        KEPT.append((model, optimizer))

        def step(batch):
            known = KEPT[-1][1]  # out of reach of what a step carries along
            known.zero_grad()
            loss(batch).backward()
            known.step()

        return step

    training = own(make)()
    model, optimizer = KEPT[-1]
    for batch in training.batches:
        training.step(batch)
    before = [p.clone() for p in model.parameters()]
    momenta = [optimizer.state[p]["momentum_buffer"].clone() for p in model.parameters()]
    held, mark = [p.grad.clone() for p in model.parameters()], torch.get_rng_state()
    result = check_step(training)
    assert "received" in result.table("updates").columns
    assert all(map(torch.equal, before, model.parameters()))
    after = [optimizer.state[p]["momentum_buffer"] for p in model.parameters()]
    assert all(map(torch.equal, momenta, after))
    assert all(map(torch.equal, held, (p.grad for p in model.parameters())))
    assert torch.equal(mark, torch.get_rng_state())
    hooks = importlib.import_module("torch.optim.optimizer")
    assert not hooks._global_optimizer_pre_hooks
    assert not hooks._global_optimizer_post_hooks


KEPT = []


def test_an_optimizer_that_is_made_anew_in_each_call_is_none_of_ours():
    def make(model, optimizer, loss):
        def step(batch):
            model.zero_grad()
            loss(batch).backward()
            torch.optim.SGD(model.parameters(), 0.1).step()

        return step

    result = check_step(own(make))
    assert result.verdict == "pass", result.headline
    assert "times the right gradient" in result.headline


def test_half_of_an_update_by_hand_is_not_accused():
    def make(model, optimizer, loss):
        half = torch.optim.SGD([model.weight], 0.1, momentum=0.5)

        def step(batch):
            model.zero_grad()
            loss(batch).backward()
            half.step()
            with torch.no_grad():
                model.bias -= 0.1 * model.bias.grad

        return step

    result = check_step(own(make))
    assert (result.verdict, codes(result)) == ("undecided", {"step-not-seen"})
    assert "give Training.optimizer=" in text.failure(result)


def test_several_optimizers_must_be_handed_over():
    """They may have losses of their own, as those of a generator and its critic."""

    def make(model, optimizer, loss):
        both = [torch.optim.SGD([p], 0.1, momentum=0.5) for p in model.parameters()]

        def step(batch):
            model.zero_grad()
            loss(batch).backward()
            both[0].step()
            model.bias.grad *= 2
            both[1].step()

        return step

    result = check_step(own(make))
    assert (result.verdict, codes(result)) == ("undecided", {"step-not-seen"}), result.headline


def by_hand(change):
    def make(model, optimizer, loss):
        def step(batch):
            model.zero_grad()
            loss(batch).backward()
            with torch.no_grad():
                for i, p in enumerate(model.parameters()):
                    p -= change(i, p.grad)

        return step

    return make


def test_updates_by_hand_in_torch():
    right = check_step(own(by_hand(lambda i, g: 0.1 * g)))
    assert right.verdict == "pass"
    assert right.headline.endswith("every update is 0.1 times the right gradient")
    other = check_step(own(by_hand(lambda i, g: 0.1 * (1 + i) * g)))
    assert (other.verdict, codes(other)) == ("undecided", {"step-rates-differ"})
    turned = check_step(own(by_hand(lambda i, g: 0.1 * g.flip(0))))
    assert turned.verdict != "pass", turned.headline


def test_a_step_that_does_nothing():
    result = check_step(own(lambda model, optimizer, loss: loss))
    assert codes(result) >= {"step-no-update"}
    assert "the optimizer of the step" in result.headline


def test_a_training_without_a_model_names_it():
    with pytest.raises(UsageError, match="model="):
        check_step(own(by_hand(lambda i, g: g), model=None))


# --- NumPy and JAX --------------------------------------------------------------------------------


def functional(kind, change, dtype=None):
    """A training whose update is made from gradients, parameters, state and number by hand."""
    xp = jnp if kind == "jax" else np
    dtype = dtype or (np.float32 if kind == "jax" else np.float64)

    def training():
        rng = np.random.default_rng(0)
        params = {"w": xp.asarray(rng.normal(size=(4, 3)), dtype), "b": xp.zeros(3, dtype)}
        batches = [[rng.normal(size=(n, k)).astype(dtype) for k in (4, 3)] for n in (8, 8, 3)]

        def loss(p, batch):
            return xp.mean((batch[0] @ p["w"] + p["b"] - batch[1]) ** 2)

        def step(p, state, batch):
            r = 2 * (batch[0] @ p["w"] + p["b"] - batch[1]) / batch[1].size
            g = {"w": batch[0].T @ r, "b": r.sum(0)}
            updates, state = change(g, p, state)
            return {k: p[k] - updates[k] for k in p}, state

        start = {k: xp.zeros_like(x) for k, x in params.items()}
        return Training(step=step, loss=loss, batches=batches, params=params, opt_state=start)

    return training


def plain(g, p, state, **factors):
    return {k: 0.1 * factors.get(k, 1.0) * x for k, x in g.items()}, state


def heavy(g, p, state):
    state = {k: 0.9 * state[k] + x for k, x in g.items()}
    return {k: 0.05 * x for k, x in state.items()}, state


def decayed(g, p, state):
    return {k: 0.1 * (g[k] + 0.05 * p[k]) for k in g}, state


def unclaimed_clip(g, p, state):
    size = sum((x**2).sum() for x in g.values()) ** 0.5
    return {k: 0.1 * x / size for k, x in g.items()}, state


@pytest.mark.parametrize(
    ("kind", "dtype"), [("numpy", np.float32), ("numpy", np.float64), ("jax", np.float32)]
)
def test_plain_descent_shows_its_gradient(kind, dtype):
    result = check_step(functional(kind, plain, dtype))
    assert result.verdict == "pass", result.headline
    assert "step-rate-unclaimed" in codes(result, "note")
    assert result.headline.endswith("every update is 0.1 times the right gradient")
    assert "received" not in result.table("updates").columns
    claimed = check_step(functional(kind, plain, dtype), optimizer="sgd", lr=0.1)
    assert claimed.headline.endswith("gradients and updates are right")


@pytest.mark.parametrize("change", [heavy, decayed])
@pytest.mark.parametrize("kind", ["numpy", "jax"])
def test_a_right_rule_that_nobody_claimed_is_open_not_accused(kind, change):
    result = check_step(functional(kind, change))
    assert (result.verdict, codes(result)) == ("undecided", {"step-not-seen"}), result.headline
    assert "claim optimizer= with lr=" in text.failure(result)


def test_a_rate_that_changes_is_told_and_a_clip_that_is_claimed_beside_it_left_open():
    result = check_step(functional("numpy", unclaimed_clip))
    assert result.verdict == "pass", result.headline
    assert " to " in result.headline
    assert check_step(functional("numpy", plain), max_norm=0.01).verdict == "undecided"


def test_the_claim_closes_it():
    result = check_step(functional("numpy", heavy), optimizer="sgd", lr=0.05, momentum=0.9)
    assert result.verdict == "pass", result.headline


@pytest.mark.parametrize("kind", ["numpy", "jax"])
def test_a_gradient_that_is_wrong_in_one_tensor_is_no_pass(kind):
    thrice = check_step(functional(kind, lambda *a: plain(*a, b=3.0)))
    assert (thrice.verdict, codes(thrice)) == ("undecided", {"step-rates-differ"})
    assert {f.where for f in thrice.findings if f.severity == "fail"} == {"b"}

    def rolled(g, p, state):
        return {"w": 0.1 * g["w"], "b": 0.1 * g["b"][::-1]}, state

    result = check_step(functional(kind, rolled))
    assert (result.verdict, codes(result)) == ("undecided", {"step-not-seen"})


def test_what_is_left_open_is_a_note_beside_what_is_wrong():
    result = check_step(functional("numpy", lambda *a: plain(*a, w=-1.0, b=-1.0)))
    assert (result.verdict, codes(result)) == ("fail", {"step-uphill"})
    assert "step-not-seen" in codes(result, "note")


def test_a_clip_that_is_claimed_and_missing_is_no_pass():
    result = check_step(functional("numpy", plain), max_norm=0.01)
    assert result.verdict == "undecided", result.headline
    assert "clip-always-bites" not in codes(result, "warn", "note")
