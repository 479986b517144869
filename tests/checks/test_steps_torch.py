"""Steps in torch: what is left as it was, what is legitimate, and what cannot be compared."""

import importlib
import random

import numpy as np
import pytest

from pytest_gradcheck import GradCheckError, Training, UsageError, assert_step, check_step

torch = pytest.importorskip("torch")
pytest.importorskip("optax")
loops = importlib.import_module("loops")
loop, STEP = loops.loop, loops.STEP
nn, F, T = torch.nn, torch.nn.functional, torch.optim
BACK = "opt.zero_grad(); loss(batch).backward(); "


def codes(result, *severities):
    return {f.code for f in result.findings if f.severity in (severities or ("fail", "warn"))}


# --- everything is left as it was -----------------------------------------------------------------


def ready(raises=False):
    """A training in use: with a state of the optimizer, a scheduler, a scaler and counters."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.2), nn.Linear(6, 1))
    optimizer = T.AdamW(model.parameters(), 1e-2, amsgrad=True)
    schedule = T.lr_scheduler.StepLR(optimizer, 3, 0.5)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=2)
    batches = [(torch.randn(6, 4), torch.randn(6, 1)) for _ in range(4)]
    seen, counts, best = [], {"calls": 0}, 0.0

    def loss(batch):
        return F.mse_loss(model(batch[0]), batch[1])

    def step(batch):
        nonlocal best
        counts["calls"] += 1
        seen.append(counts["calls"])
        best = best + 1.0
        random.random(), np.random.random(), torch.rand(1)
        optimizer.zero_grad()
        scaler.scale(loss(batch)).backward()
        if raises and counts["calls"] > 6:
            raise OSError("out of disk")
        scaler.step(optimizer)
        scaler.update()
        schedule.step()

    for batch in batches:
        step(batch)
    everything = (model, optimizer, schedule, scaler, seen, counts, lambda: best)
    training = Training(step=step, loss=loss, batches=batches, model=model, optimizer=optimizer)
    return training, everything


def picture(everything):
    """All state as bytes and plain numbers."""
    model, optimizer, schedule, scaler, seen, counts, best = everything
    tensors = [*model.parameters(), *model.buffers(), *(p.grad for p in model.parameters())]
    state = [v for s in optimizer.state.values() for v in s.values()]
    raw = [None if t is None else t.detach().cpu().numpy().tobytes() for t in (*tensors, *state)]
    groups = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    plain = dict(schedule.state_dict())
    generators = (random.getstate(), repr(np.random.get_state()), torch.get_rng_state().tolist())
    modes = [m.training for m in model.modules()]
    return (
        raw,
        groups,
        plain,
        scaler.state_dict(),
        list(seen),
        dict(counts),
        best(),
        generators,
        modes,
    )


@pytest.mark.parametrize("raises", [False, True])
def test_a_training_in_use_is_set_back_to_the_same_bits(raises):
    training, everything = ready(raises)
    before = picture(everything)
    hooks = len(everything[1]._optimizer_step_pre_hooks)
    result = check_step(training)
    assert (result.verdict == "fail") == raises or result.verdict == "undecided"
    assert picture(everything) == before
    assert len(everything[1]._optimizer_step_pre_hooks) == hooks
    assert torch.nn.utils.clip_grad_norm_.__module__ == "torch.nn.utils.clip_grad"
    assert not hasattr(torch.autograd.backward, "__wrapped__")


def test_the_check_goes_on_from_where_the_training_is():
    training, everything = ready()
    check_step(training)
    training.step(next(iter(training.batches)))
    assert everything[5]["calls"] == 5


def test_an_exception_of_the_step_is_a_finding():
    result = loop("opt.zero_grad(); 1 / 0")
    assert (result.verdict, result.findings[0].code) == ("fail", "step-raised")
    assert "ZeroDivisionError" in result.headline


# --- what is legitimate ---------------------------------------------------------------------------

LEGITIMATE = {
    "plain": {},
    "warm-up from 0": {
        "body": BACK + "opt.step(); sched.step()",
        "first": "",
        "optimizer": "AdamW(params, 1e-2)",
    },
    "a group at 0": {
        "optimizer": "AdamW([{'params': params[:2], 'lr': 0.0}, {'params': params[2:]}], 1e-2)"
    },
    "frozen": {"first": "model[0].requires_grad_(False)"},
    "clipped": {"body": BACK + "clip(params, 0.1); opt.step()", "max_norm": 0.1},
    "clipped and not claimed": {"body": BACK + "clip(params, 0.1); opt.step()"},
    "by hand": {"optimizer": "ByHand(params)", "claimed": "adamw"},
    "not known": {"optimizer": "ByHand(params)"},
    "weights clipped": {"body": STEP + "; [p.data.clamp_(-1, 1) for p in params]"},
    "skips what is not finite": {"body": BACK + "finite() and opt.step()", "nonfinite": "skip"},
    "large steps": {"optimizer": "SGD(params, 5.0)"},
    "two optimizers": {
        "body": "[o.zero_grad() for o in both]; loss(batch).backward(); [o.step() for o in both]",
        "optimizer": "both",
        "first": "both = (AdamW(params[:2], 1e-2), SGD(params[2:], 1e-2))",
    },
    "no optimizer object": {
        "body": "model.zero_grad(); loss(batch).backward(); "
        "[p.data.sub_(0.01 * p.grad) for p in params]",
        "optimizer": "None",
    },
}


@pytest.mark.parametrize("name", LEGITIMATE)
def test_legitimate_steps_pass(name):
    claims = {"body": STEP} | LEGITIMATE[name]
    result = loop(claims.pop("body"), **claims)
    assert result.verdict == "pass", result.headline


def test_what_is_not_replayed_is_said():
    for optimizer in ("Rprop(params, 1e-3)", "ByHand(params)"):
        assert "step-not-replayed" in codes(loop(STEP, optimizer=optimizer), "note")


def lbfgs():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1))
    optimizer = T.LBFGS(model.parameters(), lr=0.1, max_iter=3)
    batches = [(torch.randn(8, 4), torch.randn(8, 1)) for _ in range(3)]

    def loss(batch):
        return F.mse_loss(model(batch[0]), batch[1])

    def step(batch):
        def closure():
            optimizer.zero_grad()
            value = loss(batch)
            value.backward()
            return value

        optimizer.step(closure)

    return Training(step=step, loss=loss, batches=batches, model=model, optimizer=optimizer)


def test_closures():
    result = check_step(lbfgs)
    assert result.verdict == "pass", result.headline
    assert "step-not-replayed" in codes(result, "note")


def test_a_random_step_that_draws_otherwise_is_undecided():
    first = "model[1] = nn.Dropout(0.5)"
    drawn = "opt.zero_grad(); l = loss(batch); torch.rand(3); l.backward(); opt.step()"
    result = loop("torch.rand(3); " + drawn, first=first)
    assert (result.verdict, result.findings[0].code) == ("undecided", "step-random")
    # What is drawn before the loss begins moves it only.
    assert loop("torch.rand(3); " + STEP, first=first).verdict == "pass"
    assert loop(STEP, first=first).verdict == "pass"


def test_a_rate_of_0_is_vacuous_and_a_group_at_0_a_warning():
    assert loop(STEP, optimizer="AdamW(params, 0.0)").verdict == "vacuous"
    groups = "AdamW([{'params': params[:2], 'lr': 0.0}, {'params': params[2:]}], 1e-2)"
    assert "step-rate-zero" in codes(loop(STEP, optimizer=groups), "warn")


def test_inputs_that_are_zero_are_told():
    result = loop("batch = (0 * batch[0], batch[1]); " + STEP, act="", forward="model(0 * x)")
    assert "step-unused" in codes(result)


def test_master_weights_are_known():
    body = (
        "model.zero_grad(); loss(batch).backward(); "
        "exec('for m, p in zip(masters, params): m.grad = p.grad.float()'); opt.step(); "
        "exec('for m, p in zip(masters, params): p.data.copy_(m)')"
    )
    first = (
        "model.bfloat16(); masters = [p.detach().float().clone().requires_grad_() for p in params]"
    )
    result = loop(body, first=first, optimizer="AdamW(masters, 1e-2)")
    assert result.verdict == "pass", result.headline
    assert "step-lost-updates" not in codes(result)


def test_a_larger_scale_of_the_loss_changes_no_verdict():
    for scale in (1e-4, 1.0, 1e4):
        assert loop(STEP, act=f"value = {scale} * value").verdict == "pass"


def test_findings_lead_with_the_cause():
    with pytest.raises(GradCheckError, match=r"^wrong step: the optimizer received 7 times"):
        assert_step(lambda: made("(7 * loss(batch)).backward()"), seed=0)
    with pytest.raises(GradCheckError, match="try: "):
        assert_step(lambda: made("0"))


def made(body):
    kept = []
    original = loops.check_step
    loops.check_step = lambda training, **_: kept.append(training)
    try:
        loop("opt.zero_grad(); " + body.replace("0", "loss(batch)", body == "0") + "; opt.step()")
    finally:
        loops.check_step = original
    return kept[0]()


# --- claims ---------------------------------------------------------------------------------------


def test_claims_count_instead_of_the_groups():
    claimed = {"optimizer": "AdamW(params, 1e-2, weight_decay=0.1)"}
    assert loop(STEP, **claimed, lr=1e-2, weight_decay=0.1).verdict == "pass"
    assert "step-rate" in codes(loop(STEP, **claimed, lr=1e-3))
    assert "step-decay" in codes(loop(STEP, **claimed, weight_decay=0.0))
    assert "step-optimizer" in codes(loop(STEP, **claimed, betas=(0.5, 0.9)))
    assert "step-decay" in codes(loop(STEP, **claimed, no_decay="*.bias"))


def test_schedules():
    body = STEP + "; sched.step()"
    rates = [1e-2 * 0.9**t for t in range(20)]
    assert loop(body, schedule=rates).verdict == "pass"
    assert loop(body, schedule=lambda t: 1e-2 * 0.9**t).verdict == "pass"
    wrong = loop(body, schedule=[1e-2])
    assert "the learning rate of update 2 is 0.009, not the claimed 0.01" in wrong.headline


def test_what_happens_to_a_bad_batch():
    assert "step-nonfinite" in codes(loop(STEP, nonfinite="skip"))
    assert "step-nonfinite" in codes(loop(STEP, nonfinite="raise"))
    raising = BACK + "assert finite(); opt.step()"
    assert loop(raising, nonfinite="raise").verdict == "pass"
    assert loop(STEP, nonfinite="propagate").verdict == "pass"


@pytest.mark.parametrize(
    "claims",
    [
        {"claimed": "adamant"},
        {"max_norm": -1.0},
        {"max_norm": 1.0, "max_value": 1.0},
        {"accumulate": 0},
        {"weights": "tokens"},
        {"nonfinite": "hide"},
        {"backend": "mxnet"},
        {"batches": 0},
        {"step_calls": -1},
        {"loss_scale": 0.0},
    ],
)
def test_misuse_is_refused(claims):
    with pytest.raises(UsageError):
        loop(STEP, **claims)


def test_a_training_is_wanted():
    with pytest.raises(UsageError, match="a Training is wanted"):
        check_step(lambda: 3)
    with pytest.raises(UsageError, match="must be callable"):
        check_step(Training(step=None, loss=print, batches=[1]))
    optimizer = T.SGD(nn.Linear(2, 2).parameters(), 0.1)
    training = Training(step=print, loss=print, batches=[1], optimizer=optimizer)
    with pytest.raises(UsageError, match="model is missing"):
        check_step(training)


# --- the ladder -----------------------------------------------------------------------------------


def test_too_long_a_step_warns_with_a_rate_that_would_do():
    result = loop(STEP, optimizer="SGD(params, 30.0)")
    (found,) = (f for f in result.findings if f.code == "step-too-long")
    assert (result.verdict, found.severity) == ("pass", "warn")
    assert 0 < found.number("fraction") < 1
    assert result.table("ladder").rows[0][0] == 0


def test_sharpness_is_that_of_the_hessian():
    result = loop(STEP, sizes=(64,), optimizer="SGD(params, 0.01)")
    (found,) = (f for f in result.findings if f.code == "step-sharpness")
    assert found.number("product") == pytest.approx(0.01 * found.number("eigenvalue"))
    assert found.number("eigenvalue") > 0


# --- right loops that are easily accused ----------------------------------------------------------


def trained(model, *, seed=1, dtype=None, loss=F.mse_loss, optimizer=None, after=None):
    def build():
        torch.manual_seed(seed)
        net = model().to(dtype or torch.float32)
        opt = (optimizer or (lambda ps: T.SGD(ps, 0.1)))(net.parameters())
        made = [torch.randn(32, n, dtype=dtype or torch.float32) for n in (8, 1, 8, 1)]
        batches = [tuple(made[:2]), tuple(made[2:])]

        def value(batch):
            return loss(net(batch[0]), batch[1])

        def step(batch):
            opt.zero_grad()
            value(batch).backward()
            if after is not None:
                after(net)
            opt.step()

        return Training(step=step, loss=value, batches=batches, model=net, optimizer=opt)

    return check_step(build)


def wide(act=nn.ReLU):
    return nn.Sequential(nn.Linear(8, 64), act(), nn.Linear(64, 64), act(), nn.Linear(64, 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("seed", [7, 27, 41, 49])
def test_kinks_accuse_nobody(seed, dtype):
    for act, loss in ((nn.ReLU, F.l1_loss), (nn.LeakyReLU, F.mse_loss)):
        result = trained(lambda a=act: wide(a), seed=seed, dtype=dtype, loss=loss)
        assert result.verdict == "pass", result.headline


@pytest.mark.parametrize("seed", [37, 39, 41])
def test_the_rounding_of_a_zero_gradient_accuses_nobody(seed):
    def model():  # a bias before batch norm
        return nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 1))

    result = trained(model, seed=seed, dtype=torch.float64)
    assert result.verdict == "pass", result.headline


def clip_parts(net):
    torch.nn.utils.clip_grad_norm_(net[0].parameters(), 0.1)
    torch.nn.utils.clip_grad_norm_(iter(net[2].parameters()), 0.1, norm_type=1.0)


def test_clips_of_parts_are_expected_as_they_are_called():
    assert trained(wide, after=clip_parts).verdict == "pass"


@pytest.mark.parametrize(
    "model",
    [
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(8, 1)),
        lambda: nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(8, 4)), nn.Tanh()),
        lambda: nn.Sequential(nn.Linear(8, 4), nn.LayerNorm(4), nn.GELU(), nn.Linear(4, 1)),
        lambda: nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)).eval(),
    ],
    ids=["weight norm", "spectral norm", "layer norm", "eval"],
)
def test_modules_with_state_of_their_own(model):
    loss = lambda a, b: F.mse_loss(a, b.expand_as(a))  # noqa: E731  # one line says all
    result = trained(model, loss=loss)
    assert result.verdict == "pass", result.headline


def test_a_loss_that_changes_inside_the_step():
    """A generator whose discriminator is trained first."""

    def training():
        torch.manual_seed(0)
        net, judge = wide(), nn.Linear(1, 1)
        own, other = T.Adam(net.parameters(), 1e-2), T.Adam(judge.parameters(), 1e-1)
        batches = [(torch.randn(8, 8), torch.randn(8, 1)) for _ in range(3)]

        def loss(batch):
            return F.softplus(-judge(net(batch[0]))).mean()

        def step(batch):
            other.zero_grad()
            fake, real = judge(net(batch[0]).detach()), judge(batch[1])
            (F.softplus(-real).mean() + F.softplus(fake).mean()).backward()
            other.step()
            own.zero_grad()
            loss(batch).backward()
            own.step()

        return Training(step=step, loss=loss, batches=batches, model=net, optimizer=own)

    result = check_step(training)
    assert result.verdict == "pass", result.headline


def test_bfloat16_by_autocast():
    def loss(a, b):
        return F.mse_loss(a.float(), b)

    class Cast(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = wide(nn.Tanh)

        def forward(self, x):
            with torch.autocast("cpu", torch.bfloat16):
                return self.inner(x)

    assert trained(Cast, loss=loss).verdict == "pass"


@pytest.mark.parametrize("seed", [0, 2])
def test_a_bias_that_stands_still_for_rounding_accuses_nobody(seed):
    """Batch norm takes a bias off again: its gradient is the rounding of 256 samples."""

    def training():
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 1))
        others = [p for p in model.parameters() if p is not model[0].bias]
        groups = [{"params": others}, {"params": [model[0].bias], "lr": 1e-6}]
        optimizer = T.SGD(groups, 0.01)
        batches = [(3 + torch.randn(256, 8), torch.randn(256, 1)) for _ in range(3)]

        def loss(batch):
            return F.l1_loss(model(batch[0]), batch[1])

        def step(batch):
            optimizer.zero_grad()
            loss(batch).backward()
            optimizer.step()

        return Training(step=step, loss=loss, batches=batches, model=model, optimizer=optimizer)

    result = check_step(training)
    assert result.verdict == "pass", result.headline
    assert "step-unused" in codes(result, "warn")


@pytest.mark.parametrize("seed", [2, 8, 13])
def test_many_kinks_and_gradients_near_zero_accuse_nobody(seed):
    def deep():
        layers = [nn.Linear(8, 32)]
        for _ in range(8):
            layers += [nn.ReLU6(), nn.Linear(32, 32)]
        return nn.Sequential(*layers, nn.ReLU6(), nn.Linear(32, 1))

    for loss in (F.mse_loss, F.smooth_l1_loss):
        result = trained(deep, seed=seed, loss=loss)
        assert result.verdict == "pass", result.headline
