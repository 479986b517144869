"""More loops of PyTorch that are right and unusual: stopped gradients, several losses, modes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812  # as everybody writes it
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.utils.checkpoint import checkpoint

from corpora.steps_loops import LOOPS, T, epoch, loop, mean_square, net, plain, right_loops, spoil
from pytest_gradcheck import Training

# --- gradients that are not the slope, and mean it -----------------------------------------------


def _stopped(fault: bool, model: nn.Module, loss: Callable[[Any], torch.Tensor], after: Any = None):
    opt = T.SGD([p for p in model.parameters() if p.requires_grad], 0.05)

    def step(batch: Any) -> None:
        opt.zero_grad()
        loss(batch).backward()
        spoil(fault, model)
        opt.step()
        if after is not None:
            after()

    return Training(step=step, loss=loss, batches=epoch(), model=model, optimizer=opt)


@loop("actor-critic", semi_gradient="the advantage is no function to descend")
def actor_critic(fault: bool) -> Training:
    """A shared body, the advantage detached in the loss of the actor."""
    torch.manual_seed(0)
    model = nn.ModuleDict(
        {"body": nn.Sequential(nn.Linear(4, 8), nn.Tanh()), "pi": nn.Linear(8, 3)}
    )
    model["v"] = nn.Linear(8, 1)

    def loss(batch: Any) -> torch.Tensor:
        h = model["body"](batch[0])
        value = model["v"](h).squeeze(-1)
        advantage = batch[1].squeeze(-1) - value
        chosen = (batch[0][:, 0] > 0).long()
        logp = F.log_softmax(model["pi"](h), -1).gather(1, chosen[:, None]).squeeze(1)
        return -(logp * advantage.detach()).mean() + 0.5 * advantage.pow(2).mean()

    return _stopped(fault, model, loss)


@loop("temporal difference, no_grad", semi_gradient="TD(0): the target is held")
def temporal(fault: bool) -> Training:
    """The target comes from the same network, without a graph."""
    model = net()

    def loss(batch: Any) -> torch.Tensor:
        with torch.no_grad():
            target = batch[1] + 0.9 * model(batch[0].flip(0))
        return F.smooth_l1_loss(model(batch[0]), target)

    return _stopped(fault, model, loss)


@loop("SimSiam", semi_gradient="stop-gradient of SimSiam (Chen and He 2021)")
def simsiam(fault: bool) -> Training:
    """Two views, one of them detached."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"f": nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8))})
    model["h"] = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 8))

    def loss(batch: Any) -> torch.Tensor:
        z1, z2 = model["f"](batch[0]), model["f"](batch[0] + 0.1 * batch[1])
        p1, p2 = model["h"](z1), model["h"](z2)
        pairs = ((p1, z2.detach()), (p2, z1.detach()))
        return -sum(F.cosine_similarity(p, z).mean() for p, z in pairs) / 2

    return _stopped(fault, model, loss)


@loop("BYOL")
def byol(fault: bool) -> Training:
    """A target network that follows as an average: its gradient is stopped for good."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"online": nn.Linear(4, 8), "predictor": nn.Linear(8, 8)})
    model["target"] = copy.deepcopy(model["online"]).requires_grad_(False)

    def loss(batch: Any) -> torch.Tensor:
        with torch.no_grad():
            target = model["target"](batch[0] + 0.1 * batch[1])
        p = model["predictor"](torch.tanh(model["online"](batch[0])))
        return 2 - 2 * F.cosine_similarity(p, target).mean()

    def follow() -> None:
        pairs = zip(model["target"].parameters(), model["online"].parameters(), strict=True)
        for a, b in pairs:
            a.data.lerp_(b.data, 0.1)

    return _stopped(fault, model, loss, follow)


@loop("straight-through", semi_gradient="straight-through estimator (Bengio et al. 2013)")
def straight_through(fault: bool) -> Training:
    """Rounding in the forward pass, the identity in the backward pass."""
    model = net()

    def loss(batch: Any) -> torch.Tensor:
        h = model[:4](batch[0])
        h = h + (torch.round(4 * h) / 4 - h).detach()
        return F.mse_loss(model[4](h), batch[1])

    return _stopped(fault, model, loss)


@loop("focal weights detached", semi_gradient="the weights are no part of the model")
def weighted(fault: bool) -> Training:
    """Weights of samples that come from the model, by .data."""
    model = net()

    def loss(batch: Any) -> torch.Tensor:
        off = (model(batch[0]) - batch[1]) ** 2
        return (off * torch.sigmoid(off.data)).mean()

    return _stopped(fault, model, loss)


# --- several losses and optimizers ---------------------------------------------------------------


def _adversarial(fault: bool, is_alternating: bool) -> Training:
    torch.manual_seed(0)
    model = nn.ModuleDict({"d": nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))})
    model["g"] = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 4))
    opts = [T.Adam(model["d"].parameters(), 1e-2), T.Adam(model["g"].parameters(), 5e-3)]
    torch.manual_seed(1)
    batches = [(torch.randn(n, 4), torch.randn(n, 2)) for n in (8, 8, 5)]
    count = [0]

    def of_d(batch: Any) -> torch.Tensor:
        real, fake = model["d"](batch[0]), model["d"](model["g"](batch[1]).detach())
        return F.softplus(-real).mean() + F.softplus(fake).mean()

    def of_g(batch: Any) -> torch.Tensor:
        return F.softplus(-model["d"](model["g"](batch[1]))).mean()

    def step(batch: Any) -> None:
        count[0] += 1
        for k, (opt, loss) in enumerate(zip(opts, (of_d, of_g), strict=True)):
            if is_alternating and (count[0] + k) % 2:
                continue
            opt.zero_grad()
            loss(batch).backward()
            spoil(fault and k == 1, model["g"])
            opt.step()

    return Training(step=step, loss=[of_d, of_g], batches=batches, model=model, optimizer=opts)


loop("adversarial, D then G")(lambda f: _adversarial(f, False))
loop("adversarial, D and G in turn")(lambda f: _adversarial(f, True))


@loop("blocks in turn")
def blocks(fault: bool) -> Training:
    """One loss, and two optimizers that take turns."""
    model = net()
    opts = [T.SGD(model[0].parameters(), 0.05), T.Adam(model[2:].parameters(), 1e-2)]
    loss, count = mean_square(model), [0]

    def step(batch: Any) -> None:
        count[0] += 1
        model.zero_grad()
        loss(batch).backward()
        spoil(fault, model[2])
        opts[count[0] % 2].step()

    return Training(step=step, loss=loss, batches=epoch(), model=model, optimizer=opts)


# --- precision, modes, checkpoints ---------------------------------------------------------------


@loop("autocast in the step only")
def autocast(fault: bool) -> Training:
    """The loss is handed over without it."""
    model = net()
    opt = T.AdamW(model.parameters(), 1e-2)
    loss = mean_square(model)

    def step(batch: Any) -> None:
        opt.zero_grad()
        with torch.autocast(batch[0].device.type, torch.bfloat16):
            value = loss(batch)
        value.backward()
        spoil(fault, model)
        opt.step()

    return Training(step=step, loss=loss, batches=epoch(), model=model, optimizer=opt)


def _moded(fault: bool, start: Callable[[nn.Module], Any], inside: Any) -> Training:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1))
    opt = T.SGD(model.parameters(), 0.05)
    loss = mean_square(model)
    start(model)

    def step(batch: Any) -> None:
        inside(model)
        opt.zero_grad()
        loss(batch).backward()
        spoil(fault, model)
        opt.step()

    return Training(step=step, loss=loss, batches=epoch(), model=model, optimizer=opt)


def _norm_held(model: nn.Module) -> None:
    model.train()
    model[1].eval()


loop("handed over in eval, trained in train")(
    lambda f: _moded(f, lambda m: m.eval(), lambda m: m.train())
)
loop("batch norm held by the step")(lambda f: _moded(f, lambda m: None, _norm_held))
loop("evaluated and set back")(
    lambda f: _moded(f, lambda m: None, lambda m: (m.eval(), m(torch.zeros(1, 4)), m.train()))
)


@loop("reentrant checkpoint")
def reentrant(fault: bool) -> Training:
    """Only backward goes through it."""
    model = net()
    opt = T.AdamW(model.parameters(), 1e-2)

    def loss(batch: Any) -> torch.Tensor:
        h = checkpoint(model[:4], batch[0].clone().requires_grad_(), use_reentrant=True)
        return F.mse_loss(model[4](h), batch[1])

    return plain(fault, model, opt, loss)


@loop("state carried by the loss")
def carried(fault: bool) -> Training:
    """A recurrent state that each call of the loss moves on."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"cell": nn.RNNCell(4, 6), "out": nn.Linear(6, 1)})
    opt = T.Adam(model.parameters(), 1e-2)
    state = {"h": torch.zeros(8, 6)}

    def loss(batch: Any) -> torch.Tensor:
        h = model["cell"](batch[0], state["h"].detach())
        state["h"] = h
        return F.mse_loss(model["out"](h), batch[1])

    return plain(fault, model, opt, loss, epoch()[:3])


# --- ascent, and clips ---------------------------------------------------------------------------


@loop("maximize")
def maximize(fault: bool) -> Training:
    """The loss is an objective that must rise."""
    model = net()
    opt = T.SGD(model.parameters(), 0.05, maximize=True)

    def objective(batch: Any) -> torch.Tensor:
        return -F.mse_loss(model(batch[0]), batch[1])

    def step(batch: Any) -> None:
        opt.zero_grad()
        objective(batch).backward()
        spoil(fault, model)
        opt.step()

    return Training(step=step, loss=objective, batches=epoch(), model=model, optimizer=opt)


@loop("a saddle by groups")
def saddle(fault: bool) -> Training:
    """Weights go down and multipliers up, in one optimizer."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"net": nn.Linear(4, 1), "dual": nn.Linear(1, 1, bias=False)})
    groups = [
        {"params": model["net"].parameters()},
        {"params": model["dual"].parameters(), "maximize": True},
    ]
    opt = T.SGD(groups, 0.05)

    def loss(batch: Any) -> torch.Tensor:
        out = model["net"](batch[0])
        return F.mse_loss(out, batch[1]) + (model["dual"].weight * (out.mean() - 1)).sum()

    return plain(fault, model, opt, loss)


def _normed(fault: bool) -> Training:
    model = net()
    opt = T.AdamW(model.parameters(), 1e-2)
    loss = mean_square(model)

    def step(batch: Any) -> None:
        opt.zero_grad()
        loss(batch).backward()
        total = get_total_norm([p.grad for p in model.parameters()])
        clip_grads_with_norm_(model[2].parameters(), 0.1, total)
        clip_grads_with_norm_([*model[0].parameters(), *model[4].parameters()], 0.1, total)
        spoil(fault, model)
        opt.step()

    return Training(step=step, loss=loss, batches=epoch(), model=model, optimizer=opt)


loop("clip with a norm, claimed", max_norm=0.1)(_normed)
loop("clip with a norm, seen")(_normed)

__all__ = ["LOOPS", "right_loops"]
