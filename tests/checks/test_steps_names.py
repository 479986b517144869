"""First lines that name the mistake: in a part of the tensors, of the clips, of the passes."""

import numpy as np
import pytest
from loops import loop

from pytest_gradcheck import Training, check_step

torch = pytest.importorskip("torch")

PASS = "opt.zero_grad(); loss(batch).backward(); "
CLIPPED = {
    "clip([p for p in params if p.ndim > 1], 0.01)": "given 2 of 4 tensors",
    "clip(params[:3], 0.01)": "given 3 of 4 tensors",
    "clip(params, 0.02)": "the clip is at 0.02, not at the claimed 0.01",
    "nn.utils.clip_grad_norm_(params, 0.01, norm_type=1)": "norm of order 1, not that of order 2",
    "nn.utils.clip_grad_norm_(params, 0.01, norm_type=torch.inf)": "norm of order inf",
    "[clip(params[:2], 0.01), clip(params[2:], 0.01)]": "2 clips take a part",
    "nn.utils.clip_grads_with_norm_(params, 0.01, sum(p.grad.abs().sum() for p in params))": (
        "the clip takes a norm "
    ),
}


@pytest.mark.parametrize("clip", CLIPPED)
def test_clips_that_are_others_than_claimed(clip):
    result = loop(f"{PASS}{clip}; opt.step()", max_norm=0.01)
    assert result.verdict == "fail"
    assert CLIPPED[clip] in result.headline


def test_the_right_clip():
    assert loop(f"{PASS}clip(params, 0.01); opt.step()", max_norm=0.01).verdict == "pass"


@pytest.mark.parametrize("claims", [{}, {"max_norm": 0.1}])
def test_a_clip_before_a_scale_that_grows_is_removed(claims):
    result = loop(
        "opt.zero_grad(); grown.scale(loss(batch)).backward(); clip(params, 0.1); grown.step(opt); "
        "grown.update()",
        optimizer="SGD(params, 1e-2)",
        first="grown = torch.amp.GradScaler('cpu', init_scale=1024.0, growth_interval=3)",
        **claims,
    )
    assert "clipped before the loss scale was removed" in result.headline


def test_a_part_that_is_not_zeroed():
    result = loop("[p.grad and p or setattr(p, 'grad', None) for p in ()]; " + PASS + "opt.step()")
    assert result.verdict == "pass", result.headline
    half = "[setattr(p, 'grad', None) for p in params[:2]]; loss(batch).backward(); opt.step()"
    result = loop(half)
    assert "2.weight and 1 more received the gradient on top of the ones before" in result.headline


def _chunks(weights):
    return f"""
opt.zero_grad()
whole = batch
for k, w in enumerate({weights}): (w * loss(tuple(x[k::3] for x in whole))).backward()
opt.step()
"""


def test_chunks_that_are_not_divided():
    sizes = {"sizes": (9, 9, 9, 6)}
    result = loop(_chunks((1 / 3,) * 3), **sizes)
    assert result.verdict == "pass", result.headline
    result = loop(_chunks((1, 1, 1)), **sizes)
    assert "3 times (the number of backward passes) the right gradient" in result.headline
    result = loop(_chunks((1, 1, 1)), sizes=(20, 20, 20, 19))
    assert "the gradients of 3 backward passes are added, not averaged" in result.headline


def test_another_loss_that_nobody_zeroed():
    other = "(9 * model(batch[0])).mean().backward()"
    body = f"opt.zero_grad(); {other}; loss(batch).backward(); opt.step()"
    result = loop(body)
    assert "2 backward passes on top of one another" in result.headline


def test_micro_batches_that_are_divided_by_a_constant():
    result = loop(
        "(loss(batch) / (2 + number % 2)).backward(); number % 2 or (opt.step(), opt.zero_grad())",
        accumulate=2,
    )
    assert "count 0.333 and 0.5 in a window, where 0.615 and 0.385 is right" in result.headline


@pytest.mark.parametrize("kind", ["numpy", "jax"])
def test_tensors_that_are_left_out_of_a_clip(kind):
    xp = np if kind == "numpy" else pytest.importorskip("jax.numpy")

    def training(names=("w", "b")):
        rng = np.random.default_rng(0)
        params = {"w": rng.normal(size=(4, 3)), "b": rng.normal(size=3), "c": rng.normal(size=3)}
        params = {k: xp.asarray(x) for k, x in params.items()}
        batches = [tuple(rng.normal(size=(8, n)) for n in (4, 3)) for _ in range(3)]

        def loss(p, batch):
            return xp.mean((xp.tanh(batch[0] @ p["w"] + p["b"]) * p["c"] - batch[1]) ** 2)

        def grad(p, batch):
            h = xp.tanh(batch[0] @ p["w"] + p["b"])
            r = 2 * (h * p["c"] - batch[1]) / batch[1].size
            d = r * p["c"] * (1 - h**2)
            return {"w": batch[0].T @ d, "b": d.sum(axis=0), "c": (r * h).sum(axis=0)}

        def step(p, velocity, batch):
            g = grad(p, batch)
            size = xp.sqrt(sum((g[k] ** 2).sum() for k in names))
            g = {k: x * 0.01 / size if k in names else x for k, x in g.items()}
            velocity = {k: 0.9 * velocity[k] + g[k] for k in g}
            return {k: p[k] - 0.1 * velocity[k] for k in p}, velocity

        state = {k: 0 * x for k, x in params.items()}
        return Training(step=step, loss=loss, batches=batches, params=params, opt_state=state)

    claims = {"optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "max_norm": 0.01}
    assert check_step(lambda: training(("w", "b", "c")), **claims).verdict == "pass"
    result = check_step(training, **claims)
    assert "c is left out of the clip by the norm" in result.headline


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("p.grad.round_(decimals=2)", "another gradient than that of the loss for"),
        ("p.grad.mul_(1.001)", "1.001 times the right gradient"),
        ("p.grad.mul_(1.01)", "1.01 times the right gradient"),
    ],
)
def test_what_is_nearly_right_is_called_a_multiple_only_where_it_is(change, told):
    steps = f"opt.zero_grad(); loss(batch).backward(); [{change} for p in params]; opt.step()"
    assert told in loop(steps).headline


def test_micro_batches_that_are_clipped_with_their_share():
    body = """
for p, g in zip(params, torch.autograd.grad(loss(batch) * share(2), params)):
    memory.setdefault('new', []).append(g)
size = sum(g.pow(2).sum() for g in memory['new']) ** 0.5
for p, g in zip(params, memory.pop('new')):
    p.grad = g * min(1, 0.1 / size) + (0 if p.grad is None else p.grad)
if number % 2 == 0: opt.step(); opt.zero_grad()
"""
    result = loop(body, accumulate=2, max_norm=0.1)
    assert result.findings[0].code == "step-clip-micro"
    assert "with its share of the window" in result.headline


def test_clips_between_backward_passes_of_one_call():
    result = loop("""
opt.zero_grad()
for part in (slice(0, 3), slice(3, None)):
    (loss(tuple(x[part] for x in batch)) * 0.5).backward(); clip(params, 0.1)
opt.step()
""")
    assert result.findings[0].code == "step-clip-micro"


def test_a_tensor_that_gets_nothing_where_only_some_updates_are_clipped():
    result = loop(
        PASS + "model[2].zero_grad(); clip(params, 0.5); opt.step()",
        max_norm=0.5,
    )
    assert result.findings[0].code == "step-missing-gradient"
    assert "2.weight" in result.headline


@pytest.mark.parametrize(("zeroed", "verdict"), [(True, "pass"), (False, "fail")])
def test_gradients_on_top_where_another_network_moves_in_between(zeroed, verdict):
    def training():
        torch.manual_seed(0)
        critic, maker = torch.nn.Linear(2, 1), torch.nn.Linear(2, 2)
        optimizers = [torch.optim.Adam(m.parameters(), 1e-2) for m in (critic, maker)]
        calls = []

        def of_critic(batch):
            made = maker(batch[1]).detach()
            return critic(made).square().mean() - critic(batch[0]).mean()

        def of_maker(batch):
            return -critic(maker(batch[1])).tanh().mean()

        def step(batch):
            calls.append(0)
            optimizers[0].zero_grad()
            of_critic(batch).backward()
            optimizers[0].step()
            if len(calls) % 2 == 0:
                if zeroed:
                    optimizers[1].zero_grad()
                of_maker(batch).backward()
                optimizers[1].step()

        return Training(
            step=step,
            loss=[of_critic, of_maker],
            batches=[(torch.randn(n, 2) + 2, torch.randn(n, 2)) for n in (16, 16, 16, 6)],
            model=torch.nn.ModuleList([critic, maker]),
            optimizer=optimizers,
        )

    result = check_step(training)
    assert result.verdict == verdict, result.headline
    assert zeroed or "on top of the ones before" in result.headline


@pytest.mark.parametrize("threshold", [None, 1e-3])
def test_rows_in_the_place_of_tokens(threshold):
    """Of a gradient that is clipped always, nothing but the parts of the micro-batches is seen."""

    def training(count):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Embedding(11, 8), torch.nn.Linear(8, 11))
        opt = torch.optim.AdamW(model.parameters(), 1e-2)
        batches = []
        for rows, tokens in ((2, 3), (4, 5), (3, 6), (6, 2), (5, 4), (2, 7)):
            targets = torch.randint(0, 11, (rows, 7))
            targets[:, tokens:] = -100
            batches.append((torch.randint(0, 11, (rows, 7)), targets))
        gathered = []

        def loss(batch):
            logits = model(batch[0]).flatten(0, 1)
            return torch.nn.functional.cross_entropy(logits, batch[1].flatten())

        def step(batch):
            gathered.append(batch)
            if len(gathered) < 2:
                return
            opt.zero_grad()
            total = sum(map(count, gathered))
            for each in gathered:
                (loss(each) * count(each) / total).backward()
            gathered.clear()
            if threshold:
                torch.nn.utils.clip_grad_norm_(model.parameters(), threshold)
            opt.step()

        return Training(step=step, loss=loss, batches=batches, model=model, optimizer=opt)

    def tokens(batch):
        return float((batch[1] != -100).sum())

    claims = {"accumulate": 2, "weights": tokens, "max_norm": threshold}
    right = check_step(lambda: training(tokens), **claims)
    assert right.verdict == "pass", right.headline
    wrong = check_step(lambda: training(lambda batch: float(len(batch[0]))), **claims)
    assert "micro-batches count 0.333 and 0.667 in a window, where 0.231" in wrong.headline
