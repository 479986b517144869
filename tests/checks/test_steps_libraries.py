"""Loops as libraries have them: containers of their own, nested states, clips that always bite."""

from __future__ import annotations

import sys
from collections.abc import MutableMapping
from types import ModuleType

import pytest

from pytest_gradcheck import Training, UsageError, check_flow, check_gradient, check_step

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402  # needs torch
from torch.nn import functional as F  # noqa: E402, N812  # needs torch


class Irrep(tuple):
    """As e3nn has it: a tuple that has no length."""

    __slots__ = ()

    def __len__(self):
        raise NotImplementedError


class Rows(MutableMapping):
    """As tensordict has it: a mapping that is iterated by rows, and knows how many there are."""

    def __init__(self, held, count):
        self.held, self.count = dict(held), count

    def __getitem__(self, key):
        if isinstance(key, slice):
            return {k: x[key] for k, x in self.held.items()}
        return self.held[key]

    def __setitem__(self, key, value):
        self.held[key] = value

    def __delitem__(self, key):
        del self.held[key]

    def __iter__(self):
        return iter(range(self.count))

    def __len__(self):
        return self.count

    def keys(self):
        return self.held.keys()

    def copy(self):
        return Rows(self.held, self.count)

    def update(self, other):
        self.held.update(other)


def network(width=1):
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, width))


def check(loss, batch=None, make=torch.optim.SGD, step=None, **claims):
    def training():
        torch.manual_seed(0)
        model = network()
        optimizer = make(model.parameters(), 1e-2)

        def plain(batch):
            optimizer.zero_grad()
            loss(model, batch).backward()
            optimizer.step()

        def own(batch):
            step(model, optimizer, loss(model, batch))

        made = [(batch or numbers)(n) for n in (8, 8, 3)]
        return Training(
            step=own if step else plain,
            loss=lambda batch: loss(model, batch),
            batches=made,
            model=model,
            optimizer=optimizer,
        )

    return check_step(training, **claims)


def numbers(n):
    return torch.randn(n, 4), torch.randn(n, 1)


def squared(model, batch):
    return F.mse_loss(model(batch[0]), batch[1])


def test_a_module_holds_a_tuple_without_a_length():
    class Holding(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.irrep = network(), Irrep((1, 1))

        def forward(self, x):
            return self.inner(x)

    torch.manual_seed(0)
    model, x = Holding(), torch.randn(32, 4)
    assert check_gradient(model, x[:3]).verdict == "pass"
    assert check_flow(model, lambda m, b: m(b).pow(2).mean(), x).verdict == "pass"
    held = Irrep((1, 1))

    def loss(model, batch):
        return squared(model, batch) + 0.0 * held[0]

    assert check(loss).verdict == "pass"


def test_a_mapping_is_iterated_by_rows():
    def rows(n):
        x, y = numbers(n)
        return Rows({"x": x, "y": y}, n)

    def loss(model, batch):
        part = batch[0 : batch.count]
        return F.mse_loss(model(part["x"]), part["y"])

    assert check(loss, rows).verdict == "pass"


@pytest.mark.parametrize("kind", ["added", "taken", "written"])
def test_a_batch_may_be_given_further_keys_but_no_other_numbers(kind):
    def named(n):
        x, y = numbers(n)
        return {"x": x, "y": y}

    def loss(model, batch):
        if kind == "written":
            batch["x"].mul_(0.5)
        batch["out"] = model(batch["x"])
        return F.mse_loss(batch["out"], batch.pop("y") if kind == "taken" else batch["y"].clone())

    found = check(loss, named)
    assert ("step-batch-changed" in {f.code for f in found.findings}) == (kind == "written")
    assert (found.verdict == "pass") == (kind != "written"), found.headline


class Nested(torch.optim.Optimizer):
    """Momentum that lies deep in the state."""

    make = staticmethod(lambda m: {"a": {"b": {"m": m}}})
    take = staticmethod(lambda s: s["a"]["b"]["m"])

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    if not self.state[p]:
                        self.state[p].update(self.make(torch.zeros_like(p)))
                    m = self.take(self.state[p]).lerp_(p.grad, 0.1)
                    p.sub_(m, alpha=group["lr"])


class InLists(Nested):
    make = staticmethod(lambda m: {"a": [[m]]})
    take = staticmethod(lambda s: s["a"][0][0])


class InDictOfLists(Nested):
    make = staticmethod(lambda m: {"a": {"m": [m]}})
    take = staticmethod(lambda s: s["a"]["m"][0])


@pytest.mark.parametrize("make", [Nested, InLists, InDictOfLists])
def test_a_state_may_be_nested(make):
    found = check(squared, make=make)
    assert found.verdict == "pass", found.headline


@pytest.mark.parametrize("factor", [1.0, 2.0, 1024.0])
@pytest.mark.parametrize("claims", [{}, {"max_norm": 1e-2}], ids=["seen", "claimed"])
def test_a_factor_before_a_clip_that_always_bites(factor, claims):
    def step(model, optimizer, loss):
        optimizer.zero_grad()
        (factor * loss).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1e-2)
        optimizer.step()

    found = check(squared, step=step, **claims)
    if factor == 1.0:
        assert found.verdict == "pass", found.headline
        return
    assert found.verdict == "fail", found.headline
    assert f"the clip is given {factor:.4g} times the right gradient" in found.headline


def test_a_scaled_gradient_may_be_clipped_to_a_scaled_threshold():
    def step(model, optimizer, loss):
        optimizer.zero_grad()
        (8.0 * loss).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 8e-2)
        for p in model.parameters():
            p.grad /= 8.0
        optimizer.step()

    found = check(squared, step=step, max_norm=1e-2)
    assert found.verdict == "pass", found.headline


@pytest.mark.parametrize("seed", range(3))
def test_a_sample_that_cuts_the_graph(seed):
    """``sample`` for ``rsample``: the same numbers, and no gradient through them."""

    def training(is_right):
        torch.manual_seed(seed)
        inner, outer = nn.Linear(12, 8), nn.Linear(4, 12)
        model = nn.ModuleList([inner, outer])
        optimizer = torch.optim.Adam(model.parameters(), 1e-3)

        def loss(x):
            mean, log = inner(x).chunk(2, -1)
            drawn = torch.distributions.Normal(mean, (0.5 * log).exp())
            z = drawn.rsample() if is_right else drawn.sample()
            off = F.binary_cross_entropy_with_logits(outer(z), x, reduction="sum")
            return (off - 0.5 * (1 + log - mean**2 - log.exp()).sum()) / len(x)

        def step(x):
            optimizer.zero_grad()
            loss(x).backward()
            optimizer.step()

        batches = [torch.rand(n, 12) for n in (16, 16, 5)]
        return Training(step=step, loss=loss, batches=batches, model=model, optimizer=optimizer)

    assert check_step(lambda: training(is_right=True)).verdict == "pass"
    assert check_step(lambda: training(is_right=False)).verdict == "fail"


@pytest.mark.parametrize("place", ["in row 3 alone", "in element [3, 2] alone"])
def test_where_a_gradient_is_wrong_is_told(place):
    def step(model, optimizer, loss):
        optimizer.zero_grad()
        loss.backward()
        row = model[0].weight.grad[3]
        (row if "row" in place else row[2:3]).mul_(1.5)
        optimizer.step()

    found = check(squared, step=step)
    assert (found.verdict, found.findings[0].where) == ("fail", "0.weight")
    assert "for 0.weight, off by" in found.headline
    assert place in found.headline, found.headline


def test_tensors_in_the_place_of_arrays_are_told_where_to_go():
    params = {"w": torch.ones(3)}
    with pytest.raises(UsageError, match=r"given as model=.*ParameterList"):
        check_step(
            Training(
                step=lambda p, s, b: (p, s),
                loss=lambda p, b: (p["w"] ** 2).sum(),
                batches=[1.0],
                params=params,
            ),
            backend="numpy",
        )


def test_a_derivative_inside_of_a_loss_without_its_graph_is_told():
    def used(model, batch):
        out = model(batch[0])
        torch.autograd.grad(out.sum(), list(model.parameters()))
        return out.pow(2).mean()

    with pytest.raises(UsageError, match="create_graph=True"):
        check(used)


def test_a_clip_that_never_bites_hides_nothing():
    """A norm is logged by a clip without a bound, before the gradient is what it should be."""

    def step(model, optimizer, loss):
        optimizer.zero_grad()
        (4.0 * loss).backward()
        nn.utils.clip_grad_norm_(model.parameters(), float("inf"))
        nn.utils.clip_grad_norm_(model.parameters(), 1e6)
        for p in model.parameters():
            p.grad /= 4.0
        optimizer.step()

    found = check(squared, step=step)
    assert found.verdict == "pass", found.headline


def cached(model, batch):
    """A contrast between embeddings, whose gradients are kept and sent on by a hook (GradCache)."""
    with torch.no_grad():
        held = [model(x) for x in batch]
    held = [h.requires_grad_() for h in held]
    with torch.enable_grad():
        value = F.cross_entropy(held[0] @ held[1].T, torch.arange(len(held[0])))
    if not torch.is_grad_enabled():
        return value.detach()
    value.backward()

    def goes_on(grad):
        with torch.enable_grad():
            for x, h in zip(batch, held, strict=True):
                ((model(x) * h.grad).sum() * grad).backward()

    value = value.detach().requires_grad_()
    value.register_hook(goes_on)
    return value


def pairs(n):
    return torch.randn(n, 4), torch.randn(n, 4)


def test_a_loss_whose_hook_goes_on_by_backward():
    found = check(cached, pairs)
    assert found.verdict == "pass", found.headline

    def twice(model, optimizer, loss):
        optimizer.zero_grad()
        (2.0 * loss).backward()
        optimizer.step()

    found = check(cached, pairs, step=twice)
    assert found.findings[0].code == "step-gradient-scale", found.headline


def test_a_backward_that_must_be_the_one_of_a_framework(monkeypatch):
    """As Lightning Fabric has it: its modules refuse any other."""
    wrappers = ModuleType("lightning.fabric.wrappers")
    wrappers._in_fabric_backward = False
    monkeypatch.setitem(sys.modules, "lightning.fabric.wrappers", wrappers)

    def refuses(grad):
        if not wrappers._in_fabric_backward:
            raise RuntimeError("requires you to call `fabric.backward(loss)`")

    def loss(model, batch):
        answer = model(batch[0])
        if answer.requires_grad:
            answer.register_hook(refuses)
        return F.mse_loss(answer, batch[1])

    def stepped(factor):
        def step(model, optimizer, loss):
            optimizer.zero_grad()
            wrappers._in_fabric_backward = True
            (factor * loss).backward()
            wrappers._in_fabric_backward = False
            optimizer.step()

        return step

    assert check(loss, step=stepped(1.0)).verdict == "pass"
    assert check(loss, step=stepped(3.0)).findings[0].code == "step-gradient-scale"


class ScheduleFree:
    """An optimizer around another, which works at parameters of its own (Defazio 2024)."""

    def __init__(self, params, lr):
        self.base, self.steps, self.kept = torch.optim.SGD(params, lr), 0, {}

    @property
    def param_groups(self):
        return self.base.param_groups

    @property
    def state(self):
        return self.base.state

    def zero_grad(self):
        self.base.zero_grad()

    def state_dict(self):
        return {"base": self.base.state_dict(), "steps": self.steps, "kept": dict(self.kept)}

    def load_state_dict(self, state):
        self.base.load_state_dict(state["base"])
        self.steps, self.kept = state["steps"], dict(state["kept"])

    @torch.no_grad()
    def step(self):
        params = [p for group in self.param_groups for p in group["params"]]
        self.steps += 1
        for p in params:
            p.copy_(self.kept.get(p, (p, p))[0])
        self.base.step()
        for p in params:
            mean = self.kept.get(p, (p, p))[1].lerp(p, 1 / self.steps)
            self.kept[p] = p.clone(), mean
            p.lerp_(mean, 0.9)


def test_an_optimizer_that_swaps_weights_around_the_one_inside():
    found = check(squared, make=lambda p, lr: ScheduleFree(p, 0.1))
    assert found.verdict == "pass", found.headline
    assert "ScheduleFree" in found.headline

    def kept(model, optimizer, loss):
        loss.backward()
        optimizer.step()

    found = check(squared, make=lambda p, lr: ScheduleFree(p, 0.1), step=kept)
    assert found.findings[0].code == "step-gradient-accumulates", found.headline


@pytest.mark.parametrize("factor", [1.0, 1.5])
def test_a_step_that_moves_parameters_before_an_optimizer_that_was_not_handed_over(factor):
    """Weights that are clamped, beside a mask of minus infinity that is a parameter too."""

    def training():
        torch.manual_seed(0)
        model = network()
        model.mask = nn.Parameter(torch.full((3,), -torch.inf), requires_grad=False)
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 1e-2)

        def loss(batch):
            return squared(model, batch)

        def step(batch):
            optimizer.zero_grad()
            (factor * loss(batch)).backward()
            with torch.no_grad():
                model[0].weight.clamp_(-0.3, 0.3)
            optimizer.step()

        made = [numbers(n) for n in (8, 8, 3)]
        return Training(step=step, loss=loss, batches=made, model=model)

    found = check_step(training)
    assert found.verdict == ("pass" if factor == 1 else "fail"), found.headline
