"""Large trainings: fresh gradients at some calls, the faults that are seen, what is told."""

import importlib

import numpy as np
import pytest

from pytest_gradcheck import Training, check_step

torch = pytest.importorskip("torch")
pytest.importorskip("optax")
loops = importlib.import_module("loops")
nn, F, T = torch.nn, torch.nn.functional, torch.optim


def training(fault=None, at=(), width=320, count=7, sizes=None, lr=1e-3, optimizer=T.AdamW):
    """A network of more than 100 000 parameters, and a ``fault`` before the update of some calls.

    The fault is given the model and the gradients that lay there before the call.
    """

    def build():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 4))
        opt = optimizer(model.parameters(), lr)
        batches = [(torch.randn(n, width), torch.randn(n, 4)) for n in sizes or (16,) * count]
        calls = []

        def loss(batch):
            return F.mse_loss(model(batch[0]), batch[1])

        def step(batch):
            calls.append(1)
            number = len(calls)
            kept = [p.grad for p in model.parameters()]
            opt.zero_grad()
            loss(batch).backward()
            if number in at:
                fault(model, kept)
            opt.step()

        return Training(step=step, loss=loss, batches=batches, model=model, optimizer=opt)

    return build


def note(result):
    return next((f for f in result.findings if f.code == "step-spared"), None)


def held(result):
    (table,) = (e for e in result.evidence if e.name == "updates")
    column = table.columns.index("right gradient")
    return [k for k, row in enumerate(table.rows, start=1) if row[column] is not None]


# --- what is told ---------------------------------------------------------------------------------


def test_a_large_training_is_held_at_some_calls_and_says_so():
    result = check_step(training())
    assert result.verdict == "pass"
    assert note(result).message == (
        "the gradient was held against a fresh one at 1 of 7 calls (1), the others "
        "differentiate the same loss by the same graph, and their updates were replayed from what "
        "arrived (step_fresh=7 asks for all)"
    )
    assert held(result) == [1]
    assert (result.context.evaluations, result.context.derivatives) == (7, 1)
    assert "at 1 of 7 calls" in result.headline


def test_all_of_them_when_asked_for():
    result = check_step(training(), step_fresh=7)
    assert (result.verdict, note(result), held(result)) == ("pass", None, [1, 2, 3, 4, 5, 6, 7])
    assert "calls" not in result.headline


def hooked(build):
    """The same with hooks, of which nobody knows what they do the next time."""

    def made():
        found = build()
        for p in found.model.parameters():
            p.register_hook(lambda g: g)
        return found

    return made


def test_the_first_seven_calls_where_it_is_not_seen_what_they_differentiate():
    assert held(check_step(hooked(training()))) == [1, 2, 3, 4, 5, 6, 7]
    late = held(check_step(hooked(training(count=20, lr=1e-4))))[7:]
    assert {14, 20} <= {*late}
    assert len(late) < 6


def test_a_small_training_is_held_at_all_calls():
    result = check_step(training(width=32))
    assert (result.verdict, note(result), len(held(result))) == ("pass", None, 7)


def test_of_a_long_epoch_some_later_ones_too():
    result = check_step(training(count=30, lr=1e-4))
    assert result.verdict == "pass"
    assert {1, 14, 28} <= {*held(result)}
    assert len(held(result)) < 12


def test_a_batch_of_another_form_is_held():
    result = check_step(training(sizes=(16, 16, 16, 16, 11, 16, 16)))
    assert (result.verdict, held(result)) == ("pass", [1, 5])


def test_a_clip_keeps_all_of_them():
    def clip(model, kept):
        nn.utils.clip_grad_norm_(model.parameters(), 9.0)

    result = check_step(training(clip, range(1, 8)))
    assert (result.verdict, note(result)) == ("pass", None)


def test_updates_that_are_not_replayed_keep_all_of_them():
    result = check_step(training(optimizer=T.Rprop))
    assert "step-not-replayed" in {f.code for f in result.findings}
    assert (result.verdict, note(result), len(held(result))) == ("pass", None, 7)


def test_a_gradient_of_another_size_is_held_and_may_be_right():
    build = training()

    def louder():
        made = build()
        batches = list(made.batches)
        batches[4] = (batches[4][0], 30 * batches[4][1])
        return Training(**{**vars(made), "batches": batches})

    result = check_step(louder)
    assert (result.verdict, held(result)) == ("pass", [1, 5])


# --- faults ---------------------------------------------------------------------------------------


def scaled(factor, places=slice(None)):
    def fault(model, kept):
        for p in list(model.parameters())[places]:
            p.grad.mul_(factor)

    return fault


def stale(model, kept):
    for p, g in zip(model.parameters(), kept, strict=True):
        p.grad = g


def dropped(model, kept):
    next(iter(model.parameters())).grad = None


@pytest.mark.parametrize("number", [2, 3, 7])
def test_a_fault_at_a_call_that_is_held(number):
    result = check_step(training(scaled(1.5), {number}))
    assert result.verdict == "fail"
    assert f"update {number}" in result.findings[0].message


FAULTS = {
    "another size": scaled(8.0),
    "another size of one tensor": scaled(8.0, slice(1)),
    "nothing": scaled(0.0),
    "the gradient before": stale,
    "none for a tensor": dropped,
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_at_call_five_that_shows_is_told_as_if_all_were_held(name):
    some, every = (check_step(training(FAULTS[name], {5}), step_fresh=n) for n in (3, 7))
    assert (some.verdict, some.headline) == ("fail", every.headline)
    assert "update 5" in some.findings[0].message
    assert some.context.derivatives == 7


def test_another_direction_shows_where_gradients_turn_little():
    """Batches of the same numbers, so that each gradient is near the one before."""
    build = training(scaled(-1.0), {5})

    def alike():
        made = build()
        x, y = next(iter(made.batches))
        batches = [(x + 0.1 * torch.randn_like(x), y) for _ in range(7)]
        return Training(**{**vars(made), "batches": batches})

    result = check_step(alike)
    assert (result.verdict, result.findings[0].code) == ("fail", "step-gradient-sign")


def test_a_clip_that_only_one_call_has_is_held_there():
    def fault(model, kept):
        nn.utils.clip_grad_value_(model.parameters(), 1e-3)

    result = check_step(training(fault, {5}))
    assert (result.verdict, held(result)) == ("pass", [1, 5, 6, 7])


def test_one_that_does_not_show_is_found_when_all_are_asked_for():
    hidden = hooked(training(scaled(1.5), {9}, count=16, lr=1e-4))
    result = check_step(hidden)
    assert (result.verdict, held(result)) == ("pass", [1, 2, 3, 4, 5, 6, 7, 14, 16])
    assert (
        "(1, 2, 3, 4, 5, 6, 7, 14, 16), the others are like these in size" in note(result).message
    )
    assert check_step(hidden, step_fresh=16).verdict == "fail"


def test_a_single_wrong_element_of_an_update_that_is_not_held_is_seen():
    def checked(rule):
        build = training(optimizer=lambda params, lr: loops.ByHand(params, rule))
        return check_step(build, optimizer="adamw")

    right = checked(loops.ADAMW)
    wrong = checked(loops.ADAMW + "if t == 6 and first: p[7, 7] = raw[7, 7]")
    assert (right.verdict, 6 in held(right)) == ("pass", False)
    assert (wrong.verdict, wrong.findings[0].code) == ("fail", "step-optimizer")
    assert "first at update 6, in 0.weight" in wrong.headline


def test_an_error_at_a_call_that_is_not_held():
    def fault(model, kept):
        raise OSError("out of disk")

    result = check_step(training(fault, {5}))
    assert result.findings[0].code == "step-raised"
    assert "call 5" in result.headline


# --- JAX ------------------------------------------------------------------------------------------


def functional(factor=1.0):
    """100 000 numbers in a batch, and another gradient at the ninth update."""
    jax, optax = pytest.importorskip("jax"), importlib.import_module("optax")
    rng = np.random.default_rng(0)
    params = {"w": np.float32(rng.normal(size=(4, 1))), "b": np.zeros(1, np.float32)}
    batches = [tuple(np.float32(rng.normal(size=(20_000, n))) for n in (4, 1)) for _ in range(16)]
    tx = optax.adamw(1e-2)

    def loss(params, batch):
        return jax.numpy.mean((batch[0] @ params["w"] + params["b"] - batch[1]) ** 2)

    @jax.jit
    def step(params, state, batch):
        state, count = state
        scale = jax.numpy.where(count == 8, factor, 1.0)
        grads = jax.tree.map(lambda g: scale * g, jax.grad(loss)(params, batch))
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), (state, count + 1)

    params = jax.tree.map(jax.numpy.asarray, params)
    state = tx.init(params), jax.numpy.asarray(0)
    return Training(
        step=step, loss=loss, batches=batches, params=params, opt_state=state, optimizer=tx
    )


def test_a_large_training_of_jax():
    result = check_step(functional)
    assert (result.verdict, held(result)[:7]) == ("pass", [1, 2, 3, 4, 5, 6, 7])
    assert {9, 10, 11, 12, 13, 15}.isdisjoint(held(result))
    some, every = (check_step(lambda: functional(8.0), step_fresh=n) for n in (3, 16))
    assert (some.verdict, some.headline) == ("fail", every.headline)
    assert "update 9" in some.headline
