"""Gradient and slope of the loss in torch: what is held back, claimed, hooked, maximized."""

import importlib

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("optax")
loops = importlib.import_module("loops")
loop, STEP = loops.loop, loops.STEP
BACK = "opt.zero_grad(); loss(batch).backward(); "
WHY = {"semi_gradient": "the target is held"}
# The value of the next state from the same network, without a graph.
TARGET = "model(x) - 0.9 * model(x.flip(0)).detach()"


class Rounded(torch.autograd.Function):
    """A straight-through estimator with a backward of its own."""

    @staticmethod
    def forward(ctx, x):
        return torch.round(4 * x) / 4

    @staticmethod
    def backward(ctx, g):
        return g


class Tiny(torch.autograd.Function):
    """A backward that next to nothing comes out of."""

    @staticmethod
    def forward(ctx, x):
        return x * 1.0

    @staticmethod
    def backward(ctx, g):
        return 1e-3 * g


class Halved(Rounded):
    """A backward that is wrong."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return g / 2


def found(result, code):
    return next((f for f in result.findings if f.code == code), None)


# --- what is held back is told with its place, and with what to claim ---------------------------

HELD_BACK = {
    "detach": TARGET,
    "data": "model(x) - 0.9 * model(x.flip(0)).data",
    "item": "model(x) - model(x).mean().item()",
    "no_grad": "model(x) - torch.no_grad()(lambda: model(x.flip(0)))()",
    "a branch": "model(x) + 0.3 * model[2](torch.tanh(model[0](x)).detach())",
}


@pytest.mark.parametrize("name", HELD_BACK)
def test_what_is_held_back_is_recognised(name):
    result = loop(STEP, forward=HELD_BACK[name])
    assert result.verdict == "fail"
    told = found(result, "step-stopped-gradient")
    word = {"data": ".data", "a branch": "detach()"}.get(name, f"{name}()")
    assert f"{word} at " in told.message
    assert "semi_gradient='why'" in " ".join(result.advice)


@pytest.mark.parametrize("name", HELD_BACK)
def test_what_is_held_back_and_claimed_passes_with_the_reason(name):
    result = loop(STEP, forward=HELD_BACK[name], **WHY)
    assert result.verdict == "pass", result.headline
    told = found(result, "step-semi-gradient")
    assert told.severity == "note"
    assert "the target is held" in told.message


def test_a_part_that_is_held_back_in_one_small_tensor_is_seen():
    first = "[p.data.mul_(0.1) for p in model[2].parameters()]"
    forward = "model[2](torch.tanh(model[0](x) * 0.9 + model[0](x).detach() * 0.1))"
    result = loop(STEP, first=first, forward=forward)
    told = found(result, "step-stopped-gradient")
    assert result.verdict == "fail"
    assert "0.weight" in told.message
    assert "2.weight" not in told.message


def test_a_curved_loss_hides_nothing():
    """Long steps along a curved loss have slopes on both sides that hold half and twice of it."""
    first = "[p.data.mul_(30.0) for p in model[2].parameters()]"
    forward = "model[2](torch.tanh(model[0](x) * 0.5 + model[0](x).detach() * 0.5))"
    assert found(loop(STEP, first=first, forward=forward), "step-stopped-gradient") is not None


def test_a_metric_that_is_detached_is_no_reason_to_accuse():
    act = "metric = value.detach().item(); best = x.argmax(1)"
    result = loop(STEP, act=act)
    assert result.verdict == "pass", result.headline


# --- under the claim everything else is still checked -------------------------------------------


@pytest.mark.parametrize(
    ("body", "first", "code"),
    [
        (STEP, "params[0].register_hook(lambda g: g / 2)", "step-slope"),
        (STEP, "model[1].register_full_backward_hook(lambda m, i, o: (i[0] / 2,))", "step-slope"),
        (BACK + "[p.grad.mul_(3) for p in params]; opt.step()", "", "step-gradient-scale"),
        ("opt.zero_grad(); (-loss(batch)).backward(); opt.step()", "", "step-gradient-sign"),
        ("loss(batch).backward(); opt.step()", "", "step-gradient-accumulates"),
        (STEP + "; opt.step()", "", "step-repeated"),
    ],
)
def test_a_mistake_beside_what_is_claimed_is_caught(body, first, code):
    result = loop(body, forward=TARGET, first=first, **WHY)
    assert result.verdict == "fail"
    assert found(result, code).severity == "fail"


def test_a_claim_that_is_not_needed_is_told():
    result = loop(STEP, **WHY)
    assert result.verdict == "pass"
    assert found(result, "weak-claim").severity == "warn"


def test_what_nothing_explains_is_taken_at_its_word_with_a_warning():
    hook = "params[0].register_hook(lambda g: g.clamp(-1e-3, 1e-3))"
    assert found(loop(STEP, first=hook), "step-slope").severity == "fail"
    result = loop(STEP, first=hook, **WHY)
    assert result.verdict == "pass"
    assert found(result, "step-semi-gradient").severity == "warn"


def test_a_backward_of_ones_own_is_named():
    for function in (Rounded, Halved, Tiny):
        forward = "model[2](own(torch.tanh(model[0](x))))"
        loops.OPTIMIZERS["own"] = function.apply
        try:
            told = found(loop(STEP, forward=forward), "step-slope")
            assert told.severity == "fail"
            claimed = loop(STEP, forward=forward, **WHY)
        finally:
            del loops.OPTIMIZERS["own"]
        assert function.__name__ in " ".join(f.message for f in claimed.findings)
        assert found(claimed, "step-semi-gradient").severity == "note"


# --- maximize: the loss that is given must rise -------------------------------------------------

RISING = {"act": "value = -value", "optimizer": "SGD(params, 0.05, maximize=True)"}


def test_an_objective_rises():
    assert loop(STEP, **RISING).verdict == "pass"
    assert (
        loop(STEP, **RISING | {"optimizer": "Adam(params, 1e-2, maximize=True)"}).verdict == "pass"
    )


def test_a_loss_that_is_negated_for_an_optimizer_that_maximizes_is_told():
    body = "opt.zero_grad(); (-loss(batch)).backward(); opt.step()"
    result = loop(body, optimizer="SGD(params, 0.05, maximize=True)")
    assert result.findings[0].code == "step-gradient-sign"
    assert "Training.loss is what must rise" in " ".join(result.advice)


def test_a_rule_that_falls_where_it_is_said_to_maximize_is_caught():
    class Falling(torch.optim.Optimizer):
        """Says maximize, and descends."""

        def __init__(self, params):
            super().__init__(params, {"lr": 0.05, "maximize": True})

        @torch.no_grad()
        def step(self):
            for p in self.param_groups[0]["params"]:
                p.sub_(0.05 * p.grad)

    loops.OPTIMIZERS["Falling"] = Falling
    try:
        result = loop(STEP, act="value = -value", optimizer="Falling(params)")
    finally:
        del loops.OPTIMIZERS["Falling"]
    assert result.findings[0].code == "step-uphill"
    assert "downhill" in result.headline


def test_too_long_a_step_of_an_ascent_is_told_as_such():
    result = loop(STEP, **RISING | {"optimizer": "SGD(params, 30.0, maximize=True)"})
    told = found(result, "step-too-long")
    assert "of it does" in told.message
    assert 0 < told.number("fraction") < 1
    assert found(loop(STEP, **RISING), "step-too-long") is None


def test_an_ascent_is_told():
    assert found(loop(STEP, **RISING), "step-maximizes").severity == "note"
    assert found(loop(STEP), "step-maximizes") is None


def test_what_a_loss_writes_itself_is_not_held_against_its_slope():
    result = loop(
        STEP,
        first="model[0] = nn.Embedding(9, 6, max_norm=0.5); model[0].weight.data.mul_(3)",
        forward="model((x[:, 0] > 0).long())",
        optimizer="SGD(model.parameters(), 1e-2)",
    )
    assert result.verdict == "pass", result.headline
    assert found(result, "step-written").severity == "warn"
