"""What a watched training may do between loss and update, and what hides from a look at a loss."""

import io

import numpy as np
import pytest

from pytest_gradcheck import Training, check_step
from pytest_gradcheck.checks.steps import sharpness, spared

torch = pytest.importorskip("torch")
nn, F = torch.nn, torch.nn.functional
WIDTH = 64  # of a network that is taken for a large one


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """Networks of some thousand parameters are large here, which real ones are from 100 000 on."""
    for module in (spared, sharpness):
        monkeypatch.setattr(module, "LARGE", 4_000)


class Box:
    """What a graph or a configuration may be: an object that holds what counts."""

    def __init__(self, times):
        self.times = times


class Net(nn.Module):
    """Two layers; what is asked of them may be scaled."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 4)
        self.register_buffer("mask", torch.ones(WIDTH))
        self.least, self.inside, self.kept = -9.0, {"box": Box(1.0)}, []

    def forward(self, x, times=1, box=None):
        scale = torch.tensor(float(times if box is None else box.times))
        hidden = torch.tanh(self.a(x)) * self.mask
        hidden = torch.where(hidden > self.least, hidden, 0.0) * self.inside["box"].times
        self.kept[:] = [hidden]
        return self.b(hidden) * scale


def usual(model, batch):
    return F.mse_loss(model(batch[0]), batch[1])


def training(step, at, loss=usual, width=WIDTH):
    """A loop whose calls ``at`` differentiate what ``step`` gives, and the others the loss."""

    def build():
        torch.manual_seed(0)
        model = Net()
        optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
        calls = [0]

        def stepped(batch):
            calls[0] += 1
            optimizer.zero_grad()
            found = (step if calls[0] in at else loss)(model, batch)
            if found is not None:
                found.backward()
            optimizer.step()

        batches = [(torch.randn(12, width), torch.randn(12, 4)) for _ in range(7)]
        return Training(
            step=stepped,
            loss=lambda batch: loss(model, batch),
            batches=batches,
            model=model,
            optimizer=optimizer,
        )

    return build


def with_number(model, batch):
    return F.mse_loss(model(batch[0], 2), batch[1])


def with_keyword(model, batch):
    return F.mse_loss(model(batch[0], times=2.0), batch[1])


def with_object(model, batch):
    return F.mse_loss(model(batch[0], box=Box(2.0)), batch[1])


def with_accuracy(model, batch):
    """An accuracy by the memory of the output, which the backward pass needs."""
    out = model(batch[0])
    value = F.mse_loss(out, batch[1])
    seen = out.detach().numpy()
    seen[seen > 0.1] = 1.0
    return value


def swapped(model, batch):
    """The average of the weights stands there for the backward pass."""
    value = usual(model, batch)
    for p in model.parameters():
        p.data.mul_(0.5)
    value.backward()
    for p in model.parameters():
        p.data.mul_(2.0)


def second_elsewhere(model, batch):
    with torch.no_grad():
        model(batch[0])
    for p in model.parameters():
        p.data.mul_(2.0)
    value = usual(model, batch)
    for p in model.parameters():
        p.data.mul_(0.5)
    return value


def with_noise(model, batch):
    noisy = {k: p + 0.1 * torch.randn_like(p) for k, p in model.named_parameters()}
    return F.mse_loss(torch.func.functional_call(model, noisy, (batch[0],)), batch[1])


def with_other_targets(model, batch):
    """Targets that are scaled in place behind the loss."""
    targets = batch[1].clone()
    value = F.mse_loss(model(batch[0]), targets)
    targets.data.mul_(0.5)
    return value


def through_a_hook(model, batch):
    value = F.mse_loss(model(batch[0]), batch[1])
    value.grad_fn.register_prehook(lambda grads: (2 * grads[0],))
    return value


def held_in_part(model, batch):
    """The value of the loss, and by three of its four columns only."""
    out = model(batch[0])
    rest = torch.tensor([1.0, 1.0, 1.0, 0.0])
    return F.mse_loss(rest * out + (1 - rest) * out.detach(), batch[1])


def with_a_mask(model, batch):
    """Half of the hidden features, for a while."""
    model.mask.data[::2] = 0.0
    value = usual(model, batch)
    model.mask = torch.ones(WIDTH)
    return value


def with_another_mask(model, batch):
    own, model.mask = model.mask, torch.zeros(WIDTH)
    value = usual(model, batch)
    model.mask = own
    return value


def with_another_threshold(model, batch):
    model.least = 0.0
    value = usual(model, batch)
    model.least = -9.0
    return value


def with_another_box(model, batch):
    model.inside["box"].times = 0.5
    value = usual(model, batch)
    model.inside["box"].times = 1.0
    return value


def with_a_hook_forward(model, batch):
    handle = model.a.register_forward_hook(lambda module, given, out: 0.5 * out)
    value = usual(model, batch)
    handle.remove()
    return value


def with_another_part(model, batch):
    own, model.a = model.a, nn.Linear(WIDTH, WIDTH)
    value = usual(model, batch)
    model.a = own
    return value


def with_what_it_keeps(model, batch):
    value = usual(model, batch)
    model.kept[0].data.mul_(0.5)
    return value


def with_a_mask_behind(model, batch):
    value = usual(model, batch)
    model.mask.data[::2] = 0.0
    value.backward()
    model.mask.data[::2] = 1.0


FAULTS = {
    f.__name__: f
    for f in (
        with_number,
        with_keyword,
        with_object,
        with_accuracy,
        swapped,
        second_elsewhere,
        with_noise,
        with_other_targets,
        through_a_hook,
        held_in_part,
        with_a_mask,
        with_another_mask,
        with_another_threshold,
        with_another_box,
        with_a_hook_forward,
        with_another_part,
        with_what_it_keeps,
        with_a_mask_behind,
    )
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_is_not_the_loss_of_the_contract_is_held(name):
    some, every = (
        check_step(training(FAULTS[name], {5}), step_fresh=n) for n in (None, 7)
    )  # fmt: skip
    assert (some.verdict, some.headline) == (every.verdict, every.headline)
    assert some.verdict != "pass" or name == "second_elsewhere"


def test_a_loss_that_a_large_constant_rules_says_nothing():
    def offset(model, batch):
        return usual(model, batch) + 1e7

    def rolled(model, batch):
        return F.mse_loss(model(batch[0]), batch[1].roll(1, 0)) + 1e7

    assert check_step(training(rolled, {5}, loss=offset)).verdict == "fail"
    right = check_step(training(offset, {5}, loss=offset))
    assert (right.verdict, right.context.derivatives) == ("pass", 7)


def weighed(model, batch):
    """A loss with a weight for each sample, which is one, but by another graph."""
    each = (model(batch[0]) - batch[1]).square().mean(1)
    return ((1 + 0 * each.detach()) * each).mean()


def test_weights_that_leave_the_value_of_the_loss_as_it_is():
    def otherwise(model, batch):
        each = (model(batch[0]) - batch[1]).square().mean(1)
        known = torch.stack([torch.ones_like(each), each.detach()])
        turned = each.detach().roll(1)  # less what changes the value
        turned = turned - known.T @ torch.linalg.solve(known @ known.T, known @ turned)
        return ((1 + turned / turned.abs().max()) * each).mean()

    some, every = (
        check_step(training(otherwise, {5}, loss=weighed), step_fresh=n) for n in (None, 7)
    )  # fmt: skip
    assert (some.verdict, some.headline) == (every.verdict, every.headline)
    assert some.verdict == "fail"


def logged(model, batch):
    """Gradients of single samples by torch.func, for a log."""
    own = {k: p.detach() for k, p in model.named_parameters()}

    def loss(params, x, y):
        return F.mse_loss(torch.func.functional_call(model, params, (x[None],)), y[None])

    torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(own, *batch)
    return usual(model, batch)


def saved(model, batch):
    torch.save(model, io.BytesIO())
    return usual(model, batch)


class Table(nn.Module):
    """A table that is put out whole."""

    def __init__(self):
        super().__init__()
        self.rows = nn.Parameter(torch.randn(WIDTH, WIDTH))
        self.nan = float("nan")

    def forward(self):
        return self.rows.clone()


def test_a_sparse_gradient_at_the_output():
    def build():
        torch.manual_seed(0)
        model = Table()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)

        def loss(batch):
            return F.embedding(batch, model(), sparse=True).square().mean()

        def step(batch):
            optimizer.zero_grad()
            loss(batch).backward()
            optimizer.step()

        batches = [torch.randint(0, WIDTH, (16,)) for _ in range(7)]
        return Training(step=step, loss=loss, batches=batches, model=model, optimizer=optimizer)

    result = check_step(build)
    assert (result.verdict, result.headline) == ("pass", result.headline)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("step", [logged, saved])
@pytest.mark.parametrize("fresh", [None, 99])
def test_right_steps_that_do_more(step, fresh):
    result = check_step(training(step, {1, 3, 4}), step_fresh=fresh)
    assert (result.verdict, result.headline) == ("pass", result.headline)


# --- the slope of a loss in low precision ---------------------------------------------------------


def low(act, seed, is_cast, factor):
    """A network whose first weight has a hook on its gradient."""

    def build():
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(8, 16), act(), nn.Linear(16, 3))
        model[0].weight.register_hook(lambda g: factor * g)
        optimizer = torch.optim.SGD(model.parameters(), 1e-2)
        batches = [(torch.randn(8, 8), torch.randint(0, 3, (8,))) for _ in range(7)]

        def loss(batch):
            with torch.autocast("cpu", torch.bfloat16, enabled=is_cast):
                out = model(batch[0])
            return F.cross_entropy(out.float(), batch[1])

        def step(batch):
            optimizer.zero_grad()
            loss(batch).backward()
            optimizer.step()

        return Training(step=step, loss=loss, batches=batches, model=model, optimizer=optimizer)

    return build


@pytest.mark.parametrize("is_cast", [True, False])
@pytest.mark.parametrize("act", [nn.Tanh, nn.ReLU])
@pytest.mark.parametrize("seed", [0, 3])
def test_a_sign_that_a_hook_turns_is_seen_under_autocast(act, seed, is_cast):
    wrong = check_step(low(act, seed, is_cast, -1.0))
    assert (wrong.verdict, wrong.findings[0].code) == ("fail", "step-slope")
    assert wrong.findings[0].where == "0.weight"
    right = check_step(low(act, seed, is_cast, 1.0))
    assert (right.verdict, right.headline) == ("pass", right.headline)


def test_a_bias_before_batch_norm_whose_gradient_is_rounding_in_half_precision():
    def build():
        torch.manual_seed(1)
        model = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(),
            nn.Linear(512, 3),
        )  # fmt: skip
        optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
        batches = [(torch.randn(12, 3, 8, 8), torch.randint(0, 3, (12,))) for _ in range(4)]

        def loss(batch):
            with torch.autocast("cpu", torch.bfloat16):
                return F.cross_entropy(model(batch[0]), batch[1])

        def step(batch):
            optimizer.zero_grad()
            loss(batch).backward()
            optimizer.step()

        return Training(step=step, loss=loss, batches=batches, model=model, optimizer=optimizer)

    result = check_step(build)
    assert (result.verdict, result.headline) == ("pass", result.headline)


# --- what is trained, and what is not -------------------------------------------------------------


def partly(held, between, after=lambda model: None):
    """A loop whose optimizer holds some of a network."""

    def build():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
        optimizer = torch.optim.AdamW(held(model), 1e-2)
        batches = [(torch.randn(8, 4), torch.randint(0, 3, (8,))) for _ in range(7)]

        def loss(batch):
            return F.cross_entropy(model(batch[0]), batch[1])

        def step(batch):
            model.zero_grad()
            loss(batch).backward()
            between(model)
            optimizer.step()
            after(model)

        return Training(step=step, loss=loss, batches=batches, model=model, optimizer=optimizer)

    return build


def clip_all(model):
    nn.utils.clip_grad_norm_(model.parameters(), 0.2)


@pytest.mark.parametrize("claims", [{}, {"max_norm": 0.2}])
def test_a_clip_that_counts_what_no_optimizer_holds(claims):
    head = partly(lambda m: m[2].parameters(), clip_all)
    result = check_step(head, frozen="0.*", **claims)
    assert (result.verdict, result.headline) == ("pass", result.headline)
    told = [f.code for f in check_step(head, **claims).findings if f.severity == "fail"]
    assert told == ["step-not-registered"]


def test_what_is_claimed_to_be_frozen_needs_no_gradient():
    def drop(model):
        model[0].weight.grad = None

    def zero(model):
        model[0].weight.grad.zero_()

    dropped = partly(lambda m: m.parameters(), drop)
    assert check_step(dropped, frozen="0.weight").verdict == "pass"
    assert check_step(dropped).findings[0].code == "step-missing-gradient"
    decayed = check_step(partly(lambda m: m.parameters(), zero), frozen="0.weight")
    assert [f.code for f in decayed.findings if f.severity == "fail"] == ["step-frozen-moved"]


def test_a_parameter_that_is_zeroed_after_each_update_is_no_clip():
    def zeroed(model):
        model[2].bias.data.zero_()

    def clamped(model):
        model[2].bias.data.clamp_(-0.01, 0.01)

    wrong = check_step(partly(lambda m: m.parameters(), lambda m: None, zeroed))
    assert (wrong.verdict, wrong.findings[0].code) == ("fail", "step-written")
    right = check_step(partly(lambda m: m.parameters(), lambda m: None, clamped))
    assert right.verdict == "pass"
    assert np.all([f.severity != "fail" for f in right.findings])
