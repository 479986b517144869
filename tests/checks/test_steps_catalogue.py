"""Bugs of real projects rebuilt as small cases: caught before the fix, silent after it.

Each entry names the project and the issue, what was wrong, and the two lines.
"""

import importlib

import pytest

from pytest_gradcheck import check_clipping

torch = pytest.importorskip("torch")
pytest.importorskip("optax")
loops = importlib.import_module("loops")

loop, STEP, ADAMW = loops.loop, loops.STEP, loops.ADAMW
BACK = "opt.zero_grad(); loss(batch).backward(); "
MICRO = "(loss(batch) * share(2)).backward(); "
LAST = "number % 2 or (opt.step(), opt.zero_grad())"
CLIPPED = {"max_norm": 0.1}


def by_hand(rule, **claims):
    def check():
        text = f"ByHand(params, {rule!r})"
        return loop(STEP, optimizer=text, **{"claimed": "adamw"} | claims)

    return check


def changed(old, new):
    assert old in ADAMW
    return by_hand(ADAMW.replace(old, new))


def step(body, **claims):
    return lambda: loop(body, **claims)


def clip(function, **claims):
    return lambda: check_clipping(function, **{"max_norm": 1.0} | claims)


def norm(parameters):
    return torch.linalg.vector_norm(torch.stack([p.grad.norm() for p in parameters]))


def scaled(parameters, factor):
    for p in parameters:
        if p.grad is not None:
            p.grad.mul_(factor)


def with_gradient(parameters):
    return [p for p in parameters if p.grad is not None]


def right_clip(parameters):
    return torch.nn.utils.clip_grad_norm_(parameters, 1.0)


def sentinel(parameters):
    size = norm(with_gradient(parameters))
    size = size if torch.isfinite(size) else torch.tensor(-1.0)
    scaled(parameters, torch.clamp(1 / (size + 1e-6), max=1.0))
    for p in with_gradient(parameters):
        p.grad.nan_to_num_(0, 0, 0)


def in_half(parameters):
    parameters = with_gradient(parameters)
    size = sum((p.grad * p.grad).sum() for p in parameters).sqrt()
    scaled(parameters, torch.clamp(1 / size, max=1.0))


def silent_zero(parameters):
    size = norm(with_gradient(parameters))
    scaled(parameters, 0.0 if not torch.isfinite(size) else min(1.0, 1 / (float(size) + 1e-6)))
    for p in with_gradient(parameters):
        p.grad.nan_to_num_(0, 0, 0)


def zero_over_zero(parameters):
    scaled(parameters, torch.clamp(1 / norm(with_gradient(parameters)), max=1.0) * 1.0)
    size = norm(with_gradient(parameters))
    scaled(parameters, size / size)


def twice(model):
    both = [*model.first.parameters(), *model.tied.parameters()]
    return torch.nn.utils.clip_grad_norm_(both, 1.0)


def each_alone(parameters):
    for p in with_gradient(parameters):
        torch.nn.utils.clip_grad_norm_([p], 1.0)


SCHEDULED = BACK + "finite() and opt.step(); sched.step()"
SCHEDULED_RIGHT = BACK + "ok = finite(); ok and opt.step(); ok and sched.step()"
NADAM = """
mu = b1 * (1 - 0.5 * 0.96 ** (t * 4e-3))
ahead = b1 * (1 - 0.5 * 0.96 ** ((t + 1) * 4e-3))
x = mu * (torch.ones_like(p) if t == 1 else x)
m = b1 * m + (1 - b1) * g
v = b2 * v + (1 - b2) * g * g
u = (1 - mu) / (1 - x) * g + ahead / (1 - x * ahead) * m
p = p - lr * u / ((v / (1 - b2**t)).sqrt() + eps)
"""
AMSGRAD = ADAMW.replace("p = p - lr * wd * p", "x = torch.maximum(x, v)\np = p - lr * wd * p")
AMSGRAD = AMSGRAD.replace("((v / ", "((x / ")
STRIDED = "model[0].weight = nn.Parameter(torch.randn(4, 6).T); params[0] = model[0].weight"
CONTIGUOUS = ADAMW.replace("p = p -", "p = p - raw.is_contiguous() *")
NO_DECAY = {"weight_decay": 0.0}

# number, project and issue, code, faulty, fixed
BUGS = [
    (
        1,
        "pytorch-lightning#9606: norms and clips before unscaling",
        "step-clip-scaled",
        step(
            BACK.replace("loss(batch)", "(256 * loss(batch))")
            + "clip(params, 0.1); put([g / 256 for g in grads()]); opt.step()",
            **CLIPPED,
            loss_scale=256.0,
        ),
        step(
            BACK.replace("loss(batch)", "(256 * loss(batch))")
            + "put([g / 256 for g in grads()]); clip(params, 0.1); opt.step()",
            **CLIPPED,
            loss_scale=256.0,
        ),
    ),
    (
        4,
        "transformers#1563: clipped after every micro-batch",
        "step-clip-micro",
        step(MICRO + "clip(params, 0.1); " + LAST, accumulate=2, **CLIPPED),
        step(MICRO + "number % 2 or clip(params, 0.1); " + LAST, accumulate=2, **CLIPPED),
    ),
    (
        7,
        "onsets-and-frames#24: clipped after the step",
        "step-clip-late",
        step(STEP + "; clip(params, 0.1)"),
        step(BACK + "clip(params, 0.1); opt.step()"),
    ),
    (
        8,
        "tabm#20: clipped before backward",
        "step-not-clipped",
        step("opt.zero_grad(); clip(params, 0.1); loss(batch).backward(); opt.step()", **CLIPPED),
        step(BACK + "clip(params, 0.1); opt.step()", **CLIPPED),
    ),
    (
        10,
        "tensorflow#29108: clipnorm for each tensor",
        "clip-per-tensor",
        clip(each_alone),
        clip(right_clip),
    ),
    (
        12,
        "DeepSpeed#5150: coefficient not applied",
        "clip-not-applied",
        clip(lambda ps: norm(with_gradient(ps))),
        clip(right_clip),
    ),
    (
        13,
        "DeepSpeed#8614: a sentinel of -1 turns gradients around",
        "clip-nonfinite",
        clip(sentinel),
        clip(right_clip),
    ),
    (
        14,
        "fairscale#263: norm squared in float16",
        "clip-overflow",
        clip(in_half, dtypes=["float16"]),
        clip(right_clip, dtypes=["float16"]),
    ),
    (
        16,
        "tensorflow#21363: infinite norm makes zeros",
        "clip-nonfinite",
        clip(silent_zero, nonfinite="propagate"),
        clip(right_clip, nonfinite="propagate"),
    ),
    (
        17,
        "optax#1752: 0/0 for zero gradients",
        "clip-zero-gradient",
        clip(zero_over_zero),
        clip(right_clip),
    ),
    (
        18,
        "pytorch#88955: tied parameters counted twice",
        "clip-tied",
        clip(twice),
        clip(lambda model: right_clip(model.parameters())),
    ),
    (
        21,
        "convnetjs#70: bias correction multiplied",
        "step-optimizer",
        by_hand(ADAMW.replace("m / (1 -", "m * (1 -").replace("v / (1 -", "v * (1 -")),
        by_hand(ADAMW),
    ),
    (
        22,
        "pytorch_optimizer#305: minus one applied twice",
        "step-optimizer",
        changed("m / (1 - b1**t)", "m / (1 - (1 - b1**t))"),
        by_hand(ADAMW),
    ),
    (
        23,
        "holocron#1: bias correction kept in the state",
        "step-optimizer",
        changed("p = p - lr * wd * p", "m = m / (1 - b1**t)\np = p - lr * wd * p"),
        by_hand(ADAMW),
    ),
    (
        24,
        "pytorch#22628: eps before the bias correction",
        "step-optimizer",
        changed("((v / (1 - b2**t)).sqrt() + eps)", "((v.sqrt() + eps) / (1 - b2**t) ** 0.5)"),
        by_hand(ADAMW),
    ),
    (
        25,
        "pytorch_optimizer#480: eps after the reciprocal root",
        "step-idle",
        changed("/ ((v / (1 - b2**t)).sqrt() + eps)", "* (1 / (v / (1 - b2**t)).sqrt() + eps)"),
        by_hand(ADAMW),
    ),
    (
        27,
        "transformers#14539: weights decayed after the update",
        "step-decay",
        by_hand(ADAMW.replace("p = p - lr * wd * p\n", "") + "p = p - lr * wd * p\n"),
        by_hand(ADAMW),
    ),
    (
        28,
        "bitsandbytes#1992: coupled decay for decoupled",
        "step-decay",
        by_hand("g = g + wd * p\n" + ADAMW.replace("p = p - lr * wd * p\n", "")),
        by_hand(ADAMW),
    ),
    (
        29,
        "pytorch-image-models#2750: decay once for each group of tensors",
        "step-decay",
        changed("p = p - lr * wd * p", "p = p - 2 * lr * wd * p"),
        by_hand(ADAMW),
    ),
    (
        30,
        "pytorch#78807: the running maximum is not stored",
        "step-optimizer",
        by_hand(
            AMSGRAD.replace("x = torch.maximum(x, v)", "x = v"),
            hyper={"amsgrad": True},
            sizes=(8, 5, 8, 3, 2),
        ),
        by_hand(AMSGRAD, hyper={"amsgrad": True}, sizes=(8, 5, 8, 3, 2)),
    ),
    (
        31,
        "pytorch#92699: NAdam with an extra momentum factor",
        "step-optimizer",
        by_hand(NADAM.replace("u = (1 - mu)", "u = mu * (1 - mu)"), claimed="nadam", **NO_DECAY),
        by_hand(NADAM, claimed="nadam", **NO_DECAY),
    ),
    (
        32,
        "pytorch#118115: what is not contiguous is not updated",
        "step-not-applied",
        step(STEP, claimed="adamw", first=STRIDED, optimizer=f"ByHand(params, {CONTIGUOUS!r})"),
        step(STEP, claimed="adamw", first=STRIDED, optimizer="ByHand(params)"),
    ),
    (
        33,
        "diffGrad#2: the gradient of before in the place of this one",
        "step-optimizer",
        by_hand("now = g\ng = x if t > 1 else g\nx = now.clone()\n" + ADAMW),
        by_hand(ADAMW),
    ),
    (
        36,
        "pytorch_optimizer#528: maximize negated twice",
        "step-optimizer",
        by_hand(ADAMW, hyper={"maximize": True}),
        by_hand("g = -g\n" + ADAMW, hyper={"maximize": True}),
    ),
    (
        40,
        "lora-scripts-next#320: state restored to another parameter",
        "step-restore",
        step(STEP, optimizer="Swapping(params, 1e-2)"),
        step(STEP, optimizer="Adam(params, 1e-2)"),
    ),
    (
        41,
        "OneTrainer#996: bfloat16 weights that do not move",
        "step-lost-updates",
        step(STEP, first="model.bfloat16()", optimizer="AdamW(params, 1e-5)"),
        step(STEP, optimizer="AdamW(params, 1e-5)"),
    ),
    (
        42,
        "transformers#34191: mean of means over micro-batches",
        "step-weights",
        step("(loss(batch) / 2).backward(); " + LAST, accumulate=2),
        step(MICRO + LAST, accumulate=2),
    ),
    (
        43,
        "transformers#35438: loss times the number of micro-batches",
        "step-gradient-scale",
        step("(2 * loss(batch) * share(2)).backward(); " + LAST, accumulate=2),
        step(MICRO + LAST, accumulate=2),
    ),
    (
        44,
        "ms-swift#10084: a short last window over the full count",
        "step-gradient-scale",
        step(
            "end = number % 3 == 0; (loss(batch) * (0.5 if end else share(2, 3))).backward(); "
            "(number % 3 == 1) or (opt.step(), opt.zero_grad())",
            accumulate=2,
            sizes=(8, 5, 3),
        ),
        step(
            "end = number % 3 == 0; (loss(batch) * (1 if end else share(2, 3))).backward(); "
            "(number % 3 == 1) or (opt.step(), opt.zero_grad())",
            accumulate=2,
            sizes=(8, 5, 3),
        ),
    ),
    (
        45,
        "pytorch-lightning#21808: no update in a short epoch",
        "step-no-update",
        step(
            "number = number % 4; (loss(batch) / 9).backward(); number == 9 and opt.step()",
            accumulate=4,
        ),
        step(MICRO + LAST, accumulate=2),
    ),
    (
        47,
        "aprender#2123: stepped on the sum",
        "step-gradient-scale",
        step(BACK.replace("loss(batch)", "(loss(batch) * len(batch[0]))") + "opt.step()"),
        step(STEP),
    ),
    (
        48,
        "ultralytics#11217: zeroed inside the window",
        "step-gradient-dropped",
        step("opt.zero_grad(); " + MICRO + "number % 2 or opt.step()", accumulate=2),
        step(MICRO + LAST, accumulate=2),
    ),
    (
        49,
        "TennisCourtDetector#7: never zeroed",
        "step-gradient-accumulates",
        step("loss(batch).backward(); opt.step()"),
        step(STEP),
    ),
    (
        53,
        "transformers#11106: the schedule advances on a skipped step",
        "step-scheduler",
        step(SCHEDULED, nonfinite="skip"),
        step(SCHEDULED_RIGHT, nonfinite="skip"),
    ),
    (
        54,
        "pytorch#95847: inf not found by the optimizer",
        "step-nonfinite",
        step(STEP, nonfinite="skip"),
        step(BACK + "finite() and opt.step()", nonfinite="skip"),
    ),
    (
        55,
        "HVPNeT#5: modules not given to the optimizer",
        "step-not-registered",
        step(STEP, optimizer="AdamW(model[0].parameters(), 1e-2)"),
        step(STEP),
    ),
    (
        56,
        "Muon#54: decay without a gradient",
        "step-idle",
        step(STEP, claimed="adamw", optimizer="DecayingAll(params)"),
        step(STEP, claimed="adamw", optimizer="ByHand(params)"),
    ),
    (
        57,
        "sparseml#965: frozen too late",
        "step-frozen-moved",
        step(STEP, frozen="0.*"),
        step(STEP, frozen="0.*", first="model[0].requires_grad_(False)"),
    ),
    (
        58,
        "aprender#3034: a loss that is built anew",
        "step-missing-gradient",
        step(
            "opt.zero_grad(); torch.tensor(loss(batch).item(), requires_grad=True).backward(); "
            "opt.step()"
        ),
        step(STEP),
    ),
    (
        59,
        "asi#2349: two conventions of sign",
        "step-optimizer",
        by_hand("g = -g\n" + ADAMW),
        by_hand(ADAMW),
    ),
    (
        60,
        "pytorch#180164: backward wrong where forward is right",
        "step-slope",
        step(STEP, first="model[1].register_full_backward_hook(lambda m, i, o: (i[0] * 0.5,))"),
        step(STEP),
    ),
]


def test_there_are_enough():
    assert len({bug[0] for bug in BUGS}) >= 40


@pytest.mark.parametrize(
    ("code", "faulty", "fixed"), [b[2:] for b in BUGS], ids=[f"{b[0]}-{b[1]}" for b in BUGS]
)
def test_bugs_of_real_projects(code, faulty, fixed):
    before = faulty()
    assert before.verdict == "fail" or code == "step-lost-updates"
    assert code in {f.code for f in before.findings if f.severity in ("fail", "warn")}
    after = fixed()
    assert after.verdict == "pass", after.headline
    assert code not in {f.code for f in after.findings if f.severity != "note"}


@pytest.mark.parametrize("seed", [2, 7, 13])
def test_a_decay_after_the_update_is_not_taken_for_a_rate(seed):
    rule = ADAMW.replace("p = p - lr * wd * p\n", "") + "p = p - lr * wd * p\n"
    result = loop(STEP, optimizer=f"ByHand(params, {rule!r})", claimed="adamw", seed=seed)
    assert result.findings[0].code == "step-decay", result.headline
