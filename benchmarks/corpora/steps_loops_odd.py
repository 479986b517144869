"""Loops of PyTorch that update at odd times: every other call, several times, before a batch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812  # as everybody writes it

from corpora.steps_loops import T, epoch, loop, mean_square, net, plain, spoil
from corpora.steps_loops_more import LOOPS, right_loops
from pytest_gradcheck import Training

# --- several optimizers, several updates ---------------------------------------------------------


def _critics(fault: bool, every: int, times: int) -> Training:
    """A critic that is updated several times a call, and a generator not at every call."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"d": nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))})
    model["g"] = nn.Linear(2, 4)
    opts = [T.RMSprop(model["d"].parameters(), 1e-2), T.Adam(model["g"].parameters(), 5e-3)]
    torch.manual_seed(1)
    batches = [(torch.randn(8, 4), torch.randn(8, 2)) for _ in range(4)]
    count = [0]

    def of_d(batch: Any) -> torch.Tensor:
        return model["d"](model["g"](batch[1]).detach()).mean() - model["d"](batch[0]).mean()

    def of_g(batch: Any) -> torch.Tensor:
        return -model["d"](model["g"](batch[1])).mean()

    def step(batch: Any) -> None:
        count[0] += 1
        for _ in range(times):
            opts[0].zero_grad()
            of_d(batch).backward()
            opts[0].step()
        if count[0] % every == 0:
            opts[1].zero_grad()
            of_g(batch).backward()
            spoil(fault, model["g"])
            opts[1].step()

    return Training(step=step, loss=[of_d, of_g], batches=batches, model=model, optimizer=opts)


loop("a generator at every other call")(lambda f: _critics(f, 2, 1))
loop("a generator at every third call")(lambda f: _critics(f, 3, 1))
loop("a critic twice in a call")(lambda f: _critics(f, 1, 2))


# --- state that moves in a call ------------------------------------------------------------------


@loop("momentum encoder and its queue")
def encoder(fault: bool) -> Training:
    """The encoder follows before the loss, and the queue after it (He et al. 2020)."""
    torch.manual_seed(0)
    query, key = nn.Linear(4, 6), nn.Linear(4, 6)
    key.load_state_dict(query.state_dict())
    key.requires_grad_(False)
    state = {"queue": F.normalize(torch.randn(6, 16), dim=0)}
    opt = T.SGD(query.parameters(), 0.1)

    def loss(batch: Any) -> torch.Tensor:
        q = F.normalize(query(batch[0]), dim=1)
        with torch.no_grad():
            k = F.normalize(key(batch[0] + 0.1), dim=1)
        logits = torch.cat([(q * k).sum(1, keepdim=True), q @ state["queue"]], 1)
        return F.cross_entropy(logits / 0.2, torch.zeros(len(q), dtype=torch.long))

    def step(batch: Any) -> None:
        with torch.no_grad():
            for a, b in zip(key.parameters(), query.parameters(), strict=True):
                a.lerp_(b, 0.3)
            keys = F.normalize(key(batch[0] + 0.1), dim=1)
        opt.zero_grad()
        loss(batch).backward()
        spoil(fault, query)
        opt.step()
        state["queue"] = torch.cat([state["queue"], keys.T], 1)[:, -16:]

    return Training(step=step, loss=loss, batches=epoch(), model=query, optimizer=opt)


@loop("a baseline before and a weight after")
def baseline(fault: bool) -> Training:
    """A running mean that the step moves first, and a weight that it moves last."""
    model = net()
    opt = T.AdamW(model.parameters(), 1e-2)
    state = {"mean": 0.0, "weight": 1.0}

    def loss(batch: Any) -> torch.Tensor:
        out = model(batch[0])
        return (out * (batch[1] - state["mean"])).mean() + state["weight"] * out.pow(2).mean()

    def step(batch: Any) -> None:
        state["mean"] = 0.5 * state["mean"] + 0.5 * float(batch[1].mean())
        opt.zero_grad()
        loss(batch).backward()
        spoil(fault, model)
        opt.step()
        state["weight"] *= 0.8

    return Training(step=step, loss=loss, batches=epoch(), model=model, optimizer=opt)


@loop("target network, claimed frozen", frozen="target.*")
def target(fault: bool) -> Training:
    """It stands in the model, takes gradients, and follows as an average (Polyak)."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"online": nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))})
    model["target"] = copy.deepcopy(model["online"])
    opt = T.Adam(model["online"].parameters(), 1e-2)

    def loss(batch: Any) -> torch.Tensor:
        with torch.no_grad():
            wanted = batch[1] + 0.9 * model["target"](batch[0].flip(0))
        return F.smooth_l1_loss(model["online"](batch[0]), wanted)

    def step(batch: Any) -> None:
        opt.zero_grad()
        loss(batch).backward()
        spoil(fault, model["online"])
        opt.step()
        with torch.no_grad():
            pairs = zip(model["target"].parameters(), model["online"].parameters(), strict=True)
            for a, b in pairs:
                a.lerp_(b, 0.05)

    return Training(step=step, loss=loss, batches=epoch(), model=model, optimizer=opt)


# --- optimizers around another -------------------------------------------------------------------


class Sam(T.Optimizer):
    """Sharpness-aware minimization (Foret et al. 2021), with a closure for the second gradient."""

    def __init__(self, params: Any, lr: float, rho: float = 0.05) -> None:
        super().__init__(params, {"lr": lr, "rho": rho})
        self.base = T.SGD(self.param_groups, lr=lr)
        self.param_groups = self.base.param_groups

    @torch.no_grad()
    def step(self, closure: Callable[[], Any]) -> None:  # type: ignore[override]  # as it is used
        """Climb, take the gradient there, come back and descend."""
        held = [p for group in self.param_groups for p in group["params"]]
        size = torch.stack([p.grad.norm() for p in held]).norm()
        moves = [p.grad * 0.05 / size for p in held]
        for p, move in zip(held, moves, strict=True):
            p.add_(move)
        torch.enable_grad()(closure)()
        for p, move in zip(held, moves, strict=True):
            p.sub_(move)
        self.base.step()


@loop("SAM with a closure")
def sam(fault: bool) -> Training:
    """A gradient before the step, and one inside of it."""
    model = net()
    opt = Sam(model.parameters(), 0.05)
    loss = mean_square(model)

    def step(batch: Any) -> None:
        def closure() -> torch.Tensor:
            opt.zero_grad()
            value = loss(batch)
            value.backward()
            spoil(fault, model)
            return value

        closure()
        opt.step(closure)

    return Training(step=step, loss=loss, batches=epoch(), model=model, optimizer=opt)


class Lookahead(T.Optimizer):
    """Slow weights that fast ones come back to (Zhang et al. 2019)."""

    def __init__(self, base: T.Optimizer, every: int = 3) -> None:
        super().__init__(base.param_groups, {})
        self.base, self.param_groups, self.every, self.count = base, base.param_groups, every, 0
        self.slow = [[p.detach().clone() for p in g["params"]] for g in self.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """All of it: the state of the fast weights, the slow weights, the count."""
        return {"base": self.base.state_dict(), "slow": self.slow, "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from it."""
        self.base.load_state_dict(state["base"])
        self.param_groups = self.base.param_groups
        self.slow, self.count = state["slow"], state["count"]

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # as it is used
        """A step of the fast weights; at every third one both meet."""
        self.base.step()
        self.count += 1
        if self.count % self.every:
            return
        for group, slow in zip(self.param_groups, self.slow, strict=True):
            for p, old in zip(group["params"], slow, strict=True):
                old.lerp_(p, 0.5)
                p.copy_(old)


@loop("Lookahead")
def lookahead(fault: bool) -> Training:
    """Parameters move without a gradient when slow weights are met, and stay there."""
    model = net()
    opt = Lookahead(T.Adam(model.parameters(), 1e-2))
    loss = mean_square(model)

    return plain(fault, model, opt, loss)


# --- dead layers, tokens -------------------------------------------------------------------------


@loop("a dead layer")
def dead(fault: bool) -> Training:
    """Rectifiers that are off for every sample, beside a way around them."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"off": nn.Linear(4, 8), "on": nn.Linear(4, 1), "out": nn.Linear(8, 1)})
    nn.init.constant_(model["off"].weight, 0.3)
    nn.init.constant_(model["off"].bias, -1.3)  # nearly on
    opt = T.AdamW(list(model.parameters()), 1e-3, weight_decay=0.0)

    def loss(batch: Any) -> torch.Tensor:
        x = batch[0].abs().clamp(max=1.0)
        return F.mse_loss(model["on"](x) + model["out"](torch.relu(model["off"](x))), batch[1])

    return plain(fault, model, opt, loss)


def tokens(fault: bool, is_mean: bool = False) -> Training:
    """Batches of other widths; each token counts the same, those that are ignored do not."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(20, 8), nn.Linear(8, 20))
    opt = T.AdamW(model.parameters(), 1e-3)
    batches, number = [], [0]
    for n in (4, 12, 6, 16):
        x = torch.randint(20, (4, n))
        y = x.clone()
        y[:, n // 2 :] = -100
        batches.append((x, y))

    def loss(batch: Any) -> torch.Tensor:
        return F.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten(), ignore_index=-100)

    def step(batch: Any) -> None:
        start = number[0] % 4 // 2 * 2
        counts = [int((b[1] != -100).sum()) for b in batches[start : start + 2]]
        share = 0.5 if is_mean else counts[number[0] % 2] / sum(counts)
        number[0] += 1
        (loss(batch) * share).backward()
        if number[0] % 2 == 0:
            spoil(fault, model)
            opt.step()
            opt.zero_grad()

    return Training(step=step, loss=loss, batches=batches, model=model, optimizer=opt)


loop("tokens of batches of other widths", accumulate=2)(tokens)

__all__ = ["LOOPS", "right_loops", "tokens"]
