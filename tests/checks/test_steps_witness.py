"""Calls of a large training without a fresh gradient: what a step differentiates is seen."""

import copy
import gc
import importlib
import itertools
import weakref
from types import SimpleNamespace

import pytest
from identities import scaled

from pytest_gradcheck import Training, check_step
from pytest_gradcheck.checks.steps import sharpness, spared

torch = pytest.importorskip("torch")
nn, F, T = torch.nn, torch.nn.functional, torch.optim
checkpoint = pytest.importorskip("torch.utils.checkpoint").checkpoint

ALL = {"step_fresh": 99}
WIDTH = 64  # of a network that is taken for a large one


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """Networks of some thousand parameters are large here, which real ones are from 100 000 on."""
    for module in (spared, sharpness):
        monkeypatch.setattr(module, "LARGE", 4_000)


class Net(nn.Module):
    """Two layers, with what faults and right twins ask for."""

    def __init__(self, middle=nn.Tanh):
        super().__init__()
        self.a, self.middle, self.b = nn.Linear(WIDTH, WIDTH), middle(), nn.Linear(WIDTH, 4)
        self.cut = False

    def forward(self, x):
        hidden = self.middle(self.a(x))
        return self.b(hidden.detach() if self.cut else hidden)


def batch_of(x, y):
    return x, y


def usual_loss(t, batch):
    return F.mse_loss(t.model(batch[0]), batch[1])


def usual_step(t, batch):
    t.opt.zero_grad()
    t.loss(batch).backward()
    t.opt.step()


def training(
    fault=None, at=(), count=7, model=Net, loss=usual_loss, step=usual_step, batch=batch_of, lr=1e-4
):
    """A training whose calls ``at`` are made as a ``fault`` makes them."""

    def build():
        torch.manual_seed(0)
        t = SimpleNamespace(model=model(), calls=[], refs=[])
        t.opt = T.AdamW(t.model.parameters(), lr)
        t.schedule = T.lr_scheduler.CosineAnnealingLR(t.opt, 100)
        t.loss = lambda batch: loss(t, batch)
        rows = [(torch.randn(32, WIDTH), torch.randn(32, 4)) for _ in range(count)]

        def stepped(batch):
            t.calls.append(1)
            (fault if len(t.calls) in at else step)(t, batch)

        batches = [batch(*row) for row in rows]
        return Training(step=stepped, loss=t.loss, batches=batches, model=t.model, optimizer=t.opt)

    return build


def held(result):
    (table,) = (e for e in result.evidence if e.name == "updates")
    column = table.columns.index("right gradient")
    return [k for k, row in enumerate(table.rows, start=1) if row[column] is not None]


# --- faults ---------------------------------------------------------------------------------------


def of_loss(changed):
    """A step that differentiates another loss."""

    def step(t, batch):
        t.opt.zero_grad()
        changed(t, batch).backward()
        t.opt.step()

    return step


def of_gradients(changed):
    """A step that changes the gradients after its backward pass."""

    def step(t, batch):
        t.opt.zero_grad()
        t.loss(batch).backward()
        for p in t.model.parameters():
            changed(p)
        t.opt.step()

    return step


def doubled_by_hooks(t, batch):
    handles = [p.register_hook(lambda g: 2 * g) for p in t.model.parameters()]
    usual_step(t, batch)
    for handle in handles:
        handle.remove()


def doubled_by_a_hook_inside(t, batch):
    t.opt.zero_grad()
    out = t.model(batch[0])
    out.register_hook(lambda g: 2 * g)
    F.mse_loss(out, batch[1]).backward()
    t.opt.step()


def cut(t, batch):
    t.model.cut = True
    usual_step(t, batch)
    t.model.cut = False


def not_cleared(t, batch):
    t.loss(batch).backward()
    t.opt.step()


def given_two(t, batch):
    t.opt.zero_grad()
    t.loss(batch).backward(torch.tensor(2.0))
    t.opt.step()


def at_other_parameters(t, batch):
    t.opt.zero_grad()
    with torch.no_grad():
        for p in t.model.parameters():
            p.data.mul_(1.5)
    t.loss(batch).backward()
    with torch.no_grad():
        for p in t.model.parameters():
            p.data.div_(1.5)
    t.opt.step()


def half(batch):
    return batch[0][:16], batch[1][:16]


def rolled(t, batch):
    return F.mse_loss(t.model(batch[0]), batch[1].roll(1, 0))


def decayed(t, batch):
    return t.loss(batch) + 1e-2 * sum(p.square().sum() for p in t.model.parameters())


def weighed(factor):
    """The value of the loss, and its gradient times a factor."""

    def loss(t, batch):
        found = usual_loss(t, batch)
        return factor(t) * found + (1 - factor(t)) * found.detach()

    return loss


FAULTS = {
    "loss times two": of_loss(lambda t, batch: 2 * t.loss(batch)),
    "gradients times two": of_gradients(lambda p: p.grad.mul_(2)),
    "their data times two": of_gradients(lambda p: p.grad.data.mul_(2)),
    "a hook on each parameter": doubled_by_hooks,
    "a hook on the output": doubled_by_a_hook_inside,
    "a detach inside of the model": cut,
    "more of the loss than is held back": of_loss(weighed(lambda t: 2.0)),
    "a gradient of two to begin with": given_two,
    "half of the batch": of_loss(lambda t, batch: t.loss(half(batch))),
    "targets of other samples": of_loss(rolled),
    "another loss": of_loss(lambda t, batch: F.l1_loss(t.model(batch[0]), batch[1])),
    "gradients not cleared": not_cleared,
    "a decay in the loss": of_loss(decayed),
    "at other parameters": at_other_parameters,
}


# Where the model itself is another one for a while, the gradient inside of the call is right.
MEANT = ("a detach inside of the model", "at other parameters")


LATE = ("loss times two", "a hook on the output", "gradients not cleared", "a decay in the loss")


@pytest.mark.parametrize(
    ("name", "number", "count"),
    [*((name, 2, 7) for name in FAULTS), *((name, 9, 16) for name in LATE)],
)
def test_a_fault_at_one_call_that_is_not_held_is_told_as_if_all_were(name, number, count):
    some, every = (check_step(training(FAULTS[name], {number}, count), **c) for c in ({}, ALL))
    assert number in held(some)
    assert (some.verdict, some.headline) == (every.verdict, every.headline)
    assert some.verdict == ("pass" if name in MEANT else "fail")
    assert name in MEANT or f"update {number}" in some.findings[0].message


def test_gradients_that_are_asked_for_and_doubled():
    def doubled(t, batch):
        by_grad(t, batch, factor=2)

    result = check_step(training(doubled, {5}, step=by_grad))
    assert (result.verdict, "update 5" in result.findings[0].message) == ("fail", True)


def test_a_factor_in_the_graph_that_changes():
    step = of_loss(weighed(lambda t: 2.0 if len(t.calls) == 5 else 1.0))
    result = check_step(training(step=step))
    assert (result.verdict, "update 5" in result.findings[0].message) == ("fail", True)


# --- right twins ----------------------------------------------------------------------------------


class Tied(nn.Module):
    """An encoder, and its transpose for a decoder."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 4)

    def forward(self, x):
        return self.b(F.linear(torch.tanh(self.a(x)), self.a.weight.T))


class Saving(Net):
    """Its first layer is computed once more in the backward pass."""

    def forward(self, x):
        return self.b(checkpoint(lambda x: self.middle(self.a(x)), x, use_reentrant=False))


class Random(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(WIDTH, WIDTH), nn.Dropout(0.1), nn.Tanh(), nn.Linear(WIDTH, 4))


def noisy(t, batch):
    """What is drawn beside the model is drawn again."""
    out = t.model(batch[0] + 0.01 * torch.randn_like(batch[0]))
    return F.mse_loss(out, batch[1] + 0.01 * torch.randn_like(out))


def dropping(t, batch):
    return F.mse_loss(F.dropout(t.model(batch[0]), 0.1), batch[1])


def siamese(t, batch):
    one, other = t.model(batch[0]), t.model(batch[0].flip(1))
    return F.mse_loss(one, batch[1]) + F.mse_loss(one, other)


def with_decay(t, batch):
    return usual_loss(t, batch) + 1e-3 * sum(p.square().sum() for p in t.model.parameters())


def of_a_dict(t, batch):
    return F.mse_loss(t.model(batch["x"]), batch["y"])


def cast(t, batch):
    t.opt.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = t.loss(batch)
    loss.backward()
    t.opt.step()


def by_grad(t, batch, factor=1):
    ours = list(t.model.parameters())
    for p, g in zip(ours, torch.autograd.grad(t.loss(batch), ours), strict=True):
        p.grad = factor * g
    t.opt.step()


def zeroed(t, batch):
    t.opt.zero_grad(set_to_none=False)
    t.loss(batch).backward()
    t.opt.step()


def scheduled(t, batch):
    usual_step(t, batch)
    t.schedule.step()


def logged(t, batch):
    """A loss that is written out, with a forward pass for an accuracy after it."""
    t.opt.zero_grad()
    out = t.model(batch[0])
    loss = (out - batch[1]).square().mean()
    loss.backward()
    t.opt.step()
    with torch.no_grad():
        t.seen = t.model(batch[0]).mean()


def copied(t, batch):
    """An average of the parameters, in a copy of the model."""
    usual_step(t, batch)
    t.average = copy.deepcopy(t.model)
    with torch.no_grad():
        t.average(batch[0])


RIGHT = {
    "plain": {},
    "dropout": {"model": Random},
    "batch norm": {"model": lambda: Net(lambda: nn.BatchNorm1d(WIDTH))},
    "autocast": {"step": cast},
    "a scheduler": {"step": scheduled},
    "gradients set to zero": {"step": zeroed},
    "gradients that are asked for": {"step": by_grad},
    "tied weights": {"model": Tied},
    "two forwards": {"loss": siamese},
    "a decay in the loss": {"loss": with_decay},
    "numbers drawn in the loss": {"loss": noisy},
    "dropout in the loss": {"loss": dropping},
    "batches of names": {"loss": of_a_dict, "batch": lambda x, y: {"x": x, "y": y}},
    "checkpoints": {"model": Saving},
    "written out": {"step": logged},
    "a copy of the model": {"step": copied},
}


# By more than a factor of three from call to call; and a loss that is nearly the same number.
VARYING = {"dropout in the loss": 1, "a decay in the loss": 6}


@pytest.fixture
def right(request, monkeypatch):
    """A name; the gradient of a bias before a narrow batch norm, which is rounding, varies."""
    if request.param == "batch norm":
        monkeypatch.setitem(globals(), "WIDTH", 320)
    return request.param


@pytest.mark.parametrize("right", RIGHT, indirect=True)
def test_right_trainings_are_spared(right):
    result = check_step(training(**RIGHT[right]))
    assert (result.verdict, held(result)[0]) == ("pass", 1)
    assert len(held(result)) <= 1 + VARYING.get(right, 0)


def test_a_default_device_asks_twice_for_one_gradient():
    torch.set_default_device("cpu")
    try:
        result = check_step(training(step=by_grad))
    finally:
        torch.set_default_device(None)
    assert (result.verdict, held(result)) == ("pass", [1])


def moved(result):
    """How far each update moved the parameters."""
    (table,) = (e for e in result.evidence if e.name == "updates")
    return [row[table.columns.index("moved by")] for row in table.rows]


@pytest.mark.parametrize("name", ["dropout", "batch norm", "numbers drawn in the loss", "autocast"])
def test_a_training_that_is_watched_goes_on_as_it_would(name):
    some, every = (check_step(training(**RIGHT[name]), **claims) for claims in ({}, ALL))
    assert moved(some) == moved(every)


@pytest.mark.parametrize("right", RIGHT, indirect=True)
def test_right_trainings_of_long_epochs_are_spared(right):
    result = check_step(training(count=16, **RIGHT[right]))
    assert (result.verdict, [1, 14]) == ("pass", [n for n in held(result) if n in (1, 14)])
    assert len(held(result)) <= 2 + 2 * VARYING.get(right, 0)


# --- where nothing can be seen --------------------------------------------------------------------


own = scaled(1.0)  # a right backward pass, and of one's own


def in_parts(t, batch):
    """The parts of the model, and not the model itself."""
    return F.mse_loss(t.model.b(t.model.middle(t.model.a(batch[0]))), batch[1])


def penalised(t, batch):
    x = batch[0].clone().requires_grad_()
    out = t.model(x)
    (grad,) = torch.autograd.grad(out.sum(), x, create_graph=True)
    return F.mse_loss(out, batch[1]) + grad.square().mean()


def twice(t, batch):
    t.opt.zero_grad()
    for half in (batch[0][:16], batch[1][:16]), (batch[0][16:], batch[1][16:]):
        (t.loss(half) / 2).backward()
    t.opt.step()


class Reentrant(Net):
    def forward(self, x):
        x.requires_grad_(True)
        return self.b(checkpoint(lambda x: self.middle(self.a(x)), x, use_reentrant=True))


def distilled(t, batch):
    """Another model beside it."""
    if not hasattr(t, "teacher"):
        t.teacher = copy.deepcopy(t.model)
    out = t.model(batch[0])
    return F.mse_loss(out, batch[1]) + F.mse_loss(out, t.teacher(batch[0]).detach())


def annealed(t, batch):
    """A weight that is another one at each call."""
    out = t.model(batch[0])
    return F.mse_loss(out, batch[1]) + 0.01 * len(t.calls) * out.square().mean()


UNSEEN = {
    "a backward of one's own": {
        "loss": lambda t, batch: F.mse_loss(own(t.model(batch[0])), batch[1])
    },
    "parts of the model": {"loss": in_parts},
    "a gradient of a gradient": {"loss": penalised},
    "two backward passes": {"step": twice},
    "checkpoints of the older kind": {"model": Reentrant},
    "another model beside it": {"loss": distilled},
    "a graph of its own at each call": {"loss": annealed},
}


@pytest.mark.parametrize("name", UNSEEN)
def test_all_first_calls_where_nothing_can_be_seen(name):
    result = check_step(training(**UNSEEN[name]))
    assert (result.verdict, held(result)) == ("pass", [1, 2, 3, 4, 5, 6, 7])


def test_of_a_long_epoch_most_later_ones_are_spared_by_size():
    result = check_step(training(count=16, **UNSEEN["a graph of its own at each call"]))
    assert (result.verdict, held(result)) == ("pass", [1, 2, 3, 4, 5, 6, 7, 14, 16])


@pytest.mark.parametrize(
    ("place", "limit"), [("torch_forwards", "MOST"), ("torch_shape", "MOST_NODES")]
)
def test_what_would_take_much_is_not_looked_at(monkeypatch, place, limit):
    part = importlib.import_module(f"pytest_gradcheck.backends.{place}")
    monkeypatch.setattr(part, limit, 4)
    assert held(check_step(training())) == [1, 2, 3, 4, 5, 6, 7]


def test_no_graph_is_kept():
    calls, kept = itertools.count(), itertools.count()  # which no check sets back

    def step(t, batch):
        t.opt.zero_grad()
        loss = t.loss(batch)
        gc.collect()
        next(kept if any(ref() is not None for ref in t.refs) else calls)
        t.refs.append(weakref.ref(loss))
        loss.backward()
        t.opt.step()

    assert held(check_step(training(step=step))) == [1]
    assert (next(calls), next(kept)) == (7, 0)
