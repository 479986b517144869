"""Steps in torch: who is trained when, in which order, and what a clip is given."""

import copy
import importlib

import pytest

from pytest_gradcheck import Training, check_step

torch = pytest.importorskip("torch")
pytest.importorskip("optax")
loops = importlib.import_module("loops")
loop, STEP = loops.loop, loops.STEP
nn, F, T = torch.nn, torch.nn.functional, torch.optim
BACK = "opt.zero_grad(); loss(batch).backward(); "


def codes(result, *severities):
    return {f.code for f in result.findings if f.severity in (severities or ("fail", "warn"))}


# --- who is trained changes on the way ----------------------------------------------------------

LATE = "number == 3 and model[0].requires_grad_(True); "
HELD = {"first": "model[0].requires_grad_(False)", "optimizer": "SGD(params[2:], 0.05)"}


def test_what_is_unfrozen_and_given_to_nobody():
    assert "step-not-registered" in codes(loop(LATE + STEP, **HELD))
    added = LATE + "number == 3 and opt.add_param_group({'params': params[:2]}); " + STEP
    assert loop(added, **HELD).verdict == "pass"


def test_what_is_frozen_on_the_way_and_moves_on():
    """Gradients of zero are no missing ones: momentum goes on."""
    body = (
        "number == 4 and model[0].requires_grad_(False); "
        "opt.zero_grad(set_to_none={}); loss(batch).backward(); opt.step()"
    )
    momentum = {"optimizer": "SGD(params, 0.05, momentum=0.9)"}
    assert "step-frozen-moved" in codes(loop(body.format(False), **momentum), "fail")
    assert loop(body.format(True), **momentum).verdict == "pass"


def test_a_group_that_is_added_is_held_to_its_claims():
    added = LATE + "number == 3 and opt.add_param_group({'params': params[:2], 'lr': 0.5}); "
    wrong = loop(added + STEP, **HELD, lr=0.05)
    assert "step-rate" in codes(wrong)
    assert "0.weight" in wrong.headline


def test_an_optimizer_that_never_steps():
    both = {"first": "both = (SGD(params[:2], 0.05), SGD(params[2:], 0.05))", "optimizer": "both"}
    body = "model.zero_grad(); loss(batch).backward(); both[0].step()"
    assert "step-never-moved" in codes(loop(body, **both))
    turns = "model.zero_grad(); loss(batch).backward(); both[number % 2].step()"
    assert loop(turns, **both).verdict == "pass"


# --- schedulers ---------------------------------------------------------------------------------


def test_a_scheduler_that_advances_twice():
    twice = STEP + "; sched.step(); sched.step()"
    result = loop(twice)
    assert "a scheduler advances 2 times for one update" in result.headline
    assert loop(twice, schedule=lambda t: 1e-2 * 0.9 ** (2 * t)).verdict == "pass"
    assert "step-rate" in codes(loop(twice, schedule=lambda t: 1e-2 * 0.9**t))


def test_a_scheduler_before_the_first_update_only_counts():
    early = "sched.step(); " + STEP
    assert "step-scheduler" in codes(loop(early))
    assert loop("number > 4 and number % 4 == 1 and sched.step(); " + STEP).verdict == "pass"


# --- clips --------------------------------------------------------------------------------------

COPIED = {"first": "other = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1))"}


@pytest.mark.parametrize("claims", [{}, {"max_norm": 0.1}])
def test_a_clip_of_nothing(claims):
    used = {"first": "once = model.parameters()", "optimizer": "AdamW(once, 1e-2)"}
    result = loop(BACK + "clip(once, 0.1); opt.step()", **used, **claims)
    assert "step-clip-empty" in codes(result, "fail")
    result = loop(BACK + "clip(list(other.parameters()), 0.1); opt.step()", **COPIED, **claims)
    assert "step-clip-empty" in codes(result, "fail")


def test_a_clip_of_another_model_that_is_trained_beside():
    beside = "other.zero_grad(); other(batch[0]).mean().backward(); clip(other.parameters(), 0.1)"
    for body in (BACK + beside + "; opt.step()", STEP + "; " + beside):
        assert loop(body, **COPIED).verdict == "pass"


def test_a_clip_with_a_norm_that_is_old():
    given = "torch.nn.utils.clip_grads_with_norm_(params, 0.1, {}); opt.step()"
    fresh = "torch.nn.utils.get_total_norm([p.grad for p in params])"
    assert loop(BACK + given.format(fresh)).verdict == "pass"
    assert loop(BACK + given.format(f"3 * {fresh}")).verdict == "fail"


# --- calls that do nothing, modes, several losses -----------------------------------------------


def test_batches_that_are_left_out():
    full = loop("number % 2 or (opt.zero_grad(), loss(batch).backward(), opt.step())")
    assert "step-batch-skipped" in codes(full, "warn")
    short = loop(f"len(batch[0]) > 4 and exec({STEP!r})")
    assert "step-batch-skipped" in codes(short, "note")
    assert short.verdict == full.verdict == "pass"


def test_a_batch_that_is_left_out_is_not_added():
    """What is left lying from a call before is no gradient of this window."""
    body = "loss(batch).backward(); number % 2 or (opt.step(), opt.zero_grad())"
    assert loop(body).verdict == "fail"


def test_modes_that_the_step_sets():
    dropout = {"first": "model[1] = nn.Dropout(0.5)"}
    evaluated = {"first": dropout["first"] + "; model.eval()"}
    assert loop("model.train(); " + STEP, **evaluated).verdict == "pass"
    assert loop("model[1].eval(); " + STEP, **dropout).verdict == "pass"
    assert "step-mode" in codes(loop(STEP + "; model.eval()", **dropout))


def rivals(zeroed=True, sign=1.0, losses=2):
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(2, 4))
    judge = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    optimizers = [T.Adam(m.parameters(), 1e-2) for m in (judge, made)]
    batches = [(torch.randn(n, 4), torch.randn(n, 2)) for n in (8, 8, 5)]

    def of_judge(batch):
        fake = made(batch[1]).detach()
        return F.softplus(-judge(batch[0])).mean() + F.softplus(judge(fake)).mean()

    def of_made(batch):
        return F.softplus(-judge(made(batch[1]))).mean()

    def step(batch):
        for k, (optimizer, loss) in enumerate(zip(optimizers, (of_judge, of_made), strict=True)):
            if k or zeroed:
                optimizer.zero_grad()
            ((sign if k else 1.0) * loss(batch)).backward()
            optimizer.step()

    return Training(
        step=step,
        loss=[of_judge, of_made][:losses],
        batches=batches,
        model=nn.ModuleList([judge, made]),
        optimizer=optimizers,
    )


def test_each_of_several_losses_is_checked_and_named():
    assert check_step(rivals).verdict == "pass"
    negated = check_step(lambda: rivals(sign=-1.0))
    assert "of_made: the optimizer received the negative" in negated.headline
    left = check_step(lambda: rivals(zeroed=False))
    assert left.headline.startswith("wrong step: of_judge: ")
    assert {e.name for e in left.evidence} >= {"updates", "updates-2"}


def test_claims_on_parameters_of_several_losses():
    result = check_step(rivals, frozen="1.*")
    assert "step-frozen-moved" in codes(result)


def test_a_ready_training_of_several_losses_is_set_back():
    training = rivals()
    before = [copy.deepcopy(o.state_dict()) for o in training.optimizer]
    values = [p.detach().clone() for p in training.model.parameters()]
    check_step(training)
    assert [o.state_dict() for o in training.optimizer] == before
    assert all(map(torch.equal, values, training.model.parameters()))
