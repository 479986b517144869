"""Steps that do at random, or by a threshold that changes, what nobody can hold against them."""

import importlib

import pytest

pytest.importorskip("torch")
loop = importlib.import_module("loops").loop

NOISE = "put([g + 0.05 * torch.randn_like(g) for g in grads()]); opt.step()"
DRAWN = {
    "noise on the gradient": f"opt.zero_grad(); loss(batch).backward(); {NOISE}",
    "noise after a clip": f"opt.zero_grad(); loss(batch).backward(); clip(params, 0.1); {NOISE}",
    "noise on the inputs": """
noisy = batch[0] + 0.1 * torch.randn_like(batch[0]), batch[1]
opt.zero_grad(); loss(noisy).backward(); opt.step()
""",
    "mixed batches": """
share = torch.rand(()); other = torch.randperm(len(batch[0]))
mixed = tuple(share * x + (1 - share) * x[other] for x in batch)
opt.zero_grad(); loss(mixed).backward(); opt.step()
""",
    "clipped examples with noise": """
total = [torch.zeros_like(p) for p in params]
for x, y in zip(*batch):
    opt.zero_grad(); loss((x[None], y[None])).backward()
    clip(params, 0.5)
    [t.add_(p.grad / len(batch[0])) for t, p in zip(total, params)]
put([t + 0.05 * torch.randn_like(t) for t in total]); opt.step()
""",
}


@pytest.mark.parametrize("body", DRAWN.values(), ids=DRAWN)
def test_random_numbers_of_the_step_alone(body):
    result = loop(body)
    assert result.verdict == "undecided", result.headline
    assert "random numbers that the loss does not draw" in result.headline


SHUFFLED = """
batch = batch[0], batch[1][torch.randperm(len(batch[1]))]
opt.zero_grad(); loss(batch).backward(); opt.step()
"""


def test_where_a_drawn_update_goes_says_nothing():
    result = loop(SHUFFLED)
    assert result.verdict == "undecided", result.headline
    assert "shuffled labels" in result.headline


DROPOUT = "model[1] = nn.Sequential(nn.Tanh(), nn.Dropout(0.3))"


@pytest.mark.parametrize("name", DRAWN)
def test_random_numbers_of_the_step_beside_a_random_loss(name):
    result = loop(DRAWN[name], first=DROPOUT)
    assert result.verdict == "undecided", result.headline


def test_noise_on_a_window_beside_a_random_loss():
    body = f"""
(loss(batch) * share(2)).backward()
if number % 2 == 0: {NOISE}; opt.zero_grad()
"""
    result = loop(body, first=DROPOUT, accumulate=2)
    assert result.verdict == "undecided", result.headline


@pytest.mark.parametrize("draw", ["pass", "torch.rand(3)"])
def test_a_random_loss_excuses_nothing(draw):
    body = f"opt.zero_grad(); loss(batch).backward(); {draw}; put([g.abs() for g in grads()])"
    result = loop(body + "; opt.step()", first=DROPOUT)
    assert result.verdict == "fail", result.headline
    assert result.findings[0].code == "step-wrong-gradient"


def test_the_same_numbers_in_the_loss():
    noisy = "model(x + 0.1 * torch.randn_like(x))"
    result = loop("opt.zero_grad(); loss(batch).backward(); opt.step()", forward=noisy)
    assert result.verdict == "pass", result.headline


@pytest.mark.parametrize(
    "wrong", ["put([g.abs() for g in grads()])", "put([g * g.norm() for g in grads()])"]
)
def test_a_draw_that_changes_nothing_excuses_nothing(wrong):
    result = loop(f"torch.rand(3); opt.zero_grad(); loss(batch).backward(); {wrong}; opt.step()")
    assert result.verdict == "fail", result.headline


RUNNING_MEAN = """
opt.zero_grad(); loss(batch).backward()
size = sum((g**2).sum() for g in grads()) ** 0.5
sizes = memory.setdefault('sizes', []); sizes.append(float(size))
limit = sum(sizes) / len(sizes)
if size > limit: put([g * limit / size for g in grads()])
opt.step()
"""


def test_a_threshold_that_changes():
    result = loop(RUNNING_MEAN)
    assert result.verdict == "undecided", result.headline
    assert result.findings[0].code == "step-clip-varied"


def test_one_factor_for_each_size_is_a_mean():
    result = loop("opt.zero_grad(); (loss(batch) * len(batch[0]) / 8).backward(); opt.step()")
    assert result.verdict == "fail", result.headline
    assert result.findings[0].code == "step-gradient-scale"


def test_a_claimed_threshold_is_held():
    assert loop(RUNNING_MEAN, max_norm=0.5).verdict == "fail"


OF_FUNCTIONS = """
def of(values, batch):
    return nn.functional.mse_loss(torch.func.functional_call(model, values, (batch[0],)), batch[1])
now = {n: p.detach() for n, p in model.named_parameters()}
found = torch.func.grad(of)(now, batch)
for name, p in model.named_parameters():
    p.grad = factor * found[name] + 0.01 * noise * torch.randn_like(p)
opt.step()
"""
ASKED = """
for p, g in zip(params, torch.autograd.grad(loss(batch), params)):
    p.grad = factor * g + 0.01 * noise * torch.randn_like(p)
opt.step()
"""


@pytest.mark.parametrize("body", [OF_FUNCTIONS, ASKED], ids=["torch.func", "torch.autograd.grad"])
def test_noise_beside_dropout_where_nothing_is_a_backward_pass(body):
    for noise, factor, verdict in ((1, 1, "undecided"), (0, 1, "pass"), (0, 2, "fail")):
        values = f"noise, factor = {noise}, {factor}"
        result = loop(f"{values}\n{body}", first="model.insert(1, nn.Dropout(0.5))")
        assert result.verdict == verdict, result.headline
