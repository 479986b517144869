"""Training loops in torch with one fault each, and the same loop without."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812  # as everybody writes it
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from corpora.identities import Scaled
from pytest_gradcheck import Training

SIZES = (16, 9, 16, 7, 16, 12, 5)


@dataclass(frozen=True, eq=False)
class Fault:
    """One faulty training.

    Args:
        name: What is wrong.
        training: Builds it.
        claims: Arguments of the check.
        first: Pattern of the first line: the class of the fault.
        right: Builds the same without the fault.
    """

    name: str
    training: Callable[[], Training]
    claims: dict[str, Any]
    first: str
    right: Callable[[], Training] | None = None


class Adam(torch.optim.Optimizer):
    """AdamW by hand, with one mistake of the given name."""

    def __init__(self, params: Any, lr: float = 1e-2, fault: str = "", **others: Any) -> None:
        given = {"betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1} | others
        super().__init__(params, {"lr": lr, **given})
        self._fault = fault

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # one branch a mistake
        fault = self._fault
        for group in self.param_groups:
            (b1, b2), lr, eps = group["betas"], group["lr"], group["eps"]
            decay = group["weight_decay"]
            for p in group["params"]:
                if p.grad is None:
                    if fault == "decay without gradient":
                        p.mul_(1 - lr * decay)
                    continue
                g, s = p.grad, self.state[p]
                if not s or fault == "state lost":
                    s.update(t=0, m=torch.zeros_like(p), v=torch.zeros_like(p), x=g * 0, g=g * 0)
                s["t"] = 1 if fault == "count stuck" else s["t"] + 1
                t = s["t"] + {"count late": 1}.get(fault, 0)
                if fault == "coupled decay":
                    g = g + decay * p
                if fault == "gradient touched":
                    p.grad.mul_(-1)
                    g = -p.grad
                if fault == "ascends":
                    g = -g
                if fault == "previous gradient":
                    g, s["g"] = s["g"].clone() if s["t"] > 1 else g, g.clone()
                if fault == "betas swapped":
                    b1, b2 = b2, b1
                v_before = s["v"].clone()
                s["m"].mul_(b1).add_(g * (1.0 if fault == "moment sums" else 1 - b1))
                s["v"].mul_(b2).add_(g * g * (1 - b2))
                m, v = s["m"], v_before if fault == "second moment late" and t > 1 else s["v"]
                if fault == "correction in place":
                    m.div_(1 - b1**t)
                    m_hat, v_hat = m, v / (1 - b2**t)
                elif fault == "no correction":
                    m_hat, v_hat = m, v
                elif fault == "correction multiplied":
                    m_hat, v_hat = m * (1 - b1**t), v * (1 - b2**t)
                elif fault == "no second correction":
                    m_hat, v_hat = m / (1 - b1**t), v
                else:
                    m_hat, v_hat = m / (1 - b1**t), v / (1 - b2**t)
                if fault == "eps inside":
                    root = (v_hat + eps).sqrt()
                elif fault == "eps scaled":
                    root = (v.sqrt() + eps) / (1 - b2**t) ** 0.5
                elif fault == "no root":
                    root = v_hat + eps
                elif fault == "no eps":
                    root = v_hat.sqrt()
                else:
                    root = v_hat.sqrt() + eps
                u = lr * m_hat / root
                if fault == "decay after":
                    p.sub_(u)
                    p.mul_(1 - lr * decay)
                    continue
                if fault == "decay unscaled":
                    p.mul_(1 - decay)
                elif fault == "decay twice":
                    p.mul_(1 - 2 * lr * decay)
                elif fault not in ("coupled decay", "no decay"):
                    p.mul_(1 - lr * decay)
                if fault == "first tensor only" and p is not group["params"][0]:
                    continue
                p.sub_(u * (2 if fault == "applied twice" else 1))

    def state_dict(self) -> dict[str, Any]:
        """The state, of which one part is left out."""
        found = super().state_dict()
        if self._fault == "state dict incomplete":
            for s in found["state"].values():
                s["m"] = torch.zeros_like(s["m"])
        return found


class Net(nn.Module):
    """A small network; dropout and a detached layer where asked for."""

    def __init__(self, fault: str, dropout: float) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 12), nn.Linear(12, 12), nn.Linear(12, 1)
        self.drop, self.fault = nn.Dropout(dropout), fault

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.tanh(self.a(x))
        if self.fault == "detached":
            h = h.detach()
        if self.fault == "half backward":
            h = Scaled.apply(h, 0.5)
        h = self.drop(torch.tanh(self.b(h)))
        weight = self.c.weight.data if self.fault == "data" else self.c.weight
        return F.linear(h, weight, self.c.bias)


@dataclass(frozen=True, eq=False)
class Setup:
    """How a loop is made."""

    fault: str = ""
    optimizer: Callable[[Any], Any] = field(
        default=lambda ps: torch.optim.AdamW(ps, 1e-2, (0.8, 0.95), 1e-3, 0.1)
    )
    accumulate: int = 1
    inside: int = 1
    max_norm: float | None = None
    scale: float = 1.0
    scheduler: bool = False
    dropout: float = 0.0
    dtype: torch.dtype = torch.float64
    seed: int = 0
    sizes: tuple[int, ...] = SIZES

    def __call__(self) -> Training:
        return _training(self)


def _training(s: Setup) -> Training:  # one loop, as users write it
    generator = torch.Generator(torch.get_default_device()).manual_seed(s.seed)
    torch.manual_seed(s.seed)
    model = Net(s.fault, s.dropout).to(s.dtype)
    if s.fault == "hook on one tensor":
        model.b.weight.register_hook(lambda g: 0.5 * g)
    if s.fault == "hook on all":
        for p in model.parameters():
            p.register_hook(lambda g: 0.5 * g)
    if s.fault == "frozen too late":
        pass
    elif s.fault == "frozen":
        model.a.requires_grad_(False)
    held = list(model.parameters())
    if s.fault == "not registered":
        held = held[2:]
    optimizer: Any = s.optimizer(held)
    handed: Any = optimizer
    if s.fault == "registered twice":
        second = torch.optim.SGD(held[:1], 1e-3)
        handed = [optimizer, second]
    other = copy.deepcopy(model)
    if s.fault == "updates a copy":
        optimizer = handed = s.optimizer(other.parameters())
    if s.fault == "another optimizer":
        optimizer = s.optimizer(model.parameters())
    schedule = None
    if s.scheduler:
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 1 / (1 + t))
    batches = [
        (
            torch.randn(n, 8, generator=generator, dtype=torch.float64).to(s.dtype),
            torch.randn(n, 1, generator=generator, dtype=torch.float64).to(s.dtype),
        )
        for n in s.sizes
    ]
    memory: dict[str, Any] = {"calls": 0}

    def loss(batch: Any) -> torch.Tensor:
        return F.mse_loss(model(batch[0]), batch[1])

    def backward(batch: Any, weight: float) -> None:
        value = F.mse_loss(model(batch[0]), batch[1])
        if s.fault == "loss without gradient":
            value = torch.tensor(value.item(), requires_grad=True)
        if s.fault == "sum for mean":
            value = value * len(batch[0])
        if s.fault == "negative loss":
            value = -value
        if s.fault == "extra loss":
            value = value + 0.1 * model.b.weight.square().sum()
        (value * weight * s.scale).backward()

    def clip() -> None:
        if s.max_norm is None:
            return
        parameters = [p for p in model.parameters() if p.grad is not None]
        if s.fault == "clip per tensor":
            for p in parameters:
                clip_grad_norm_([p], s.max_norm)
        elif s.fault == "clip by value":
            clip_grad_value_(parameters, s.max_norm)
        elif s.fault == "clip some":
            clip_grad_norm_(parameters[:2], s.max_norm)
        elif s.fault == "clip another norm":
            clip_grad_norm_(parameters, s.max_norm, norm_type=1.0)
        elif s.fault == "clip twice the threshold":
            clip_grad_norm_(parameters, 2 * s.max_norm)
        elif s.fault == "clip always":
            total = torch.linalg.vector_norm(torch.stack([p.grad.norm() for p in parameters]))
            for p in parameters:
                p.grad.mul_(s.max_norm / total)
        elif s.fault != "clip missing":
            clip_grad_norm_(parameters, s.max_norm)

    def unscale() -> None:
        if s.scale == 1.0 or s.fault == "not unscaled":
            return
        for p in model.parameters():
            if p.grad is not None:
                p.grad.div_(s.scale * (s.scale if s.fault == "unscaled twice" else 1.0))

    def update() -> None:
        if s.fault == "clip before unscale":
            clip()
        unscale()
        if s.fault not in (
            "clip before unscale",
            "clip after step",
            "clip each micro-batch",
            "clip before backward",
        ):
            clip()
        if s.fault == "gradient noise":
            for p in model.parameters():
                p.grad.add_(0.05 * p.grad.norm())
        if s.fault == "one gradient lost":
            model.b.weight.grad.zero_()
        if s.fault == "one gradient none":
            model.b.weight.grad = None
        if s.fault == "decay in the gradient":
            for p in model.parameters():
                p.grad.add_(p.detach(), alpha=0.1)
        if s.fault == "zeroed before the step":
            optimizer.zero_grad(set_to_none=False)
        if s.fault == "stale gradient":
            now = [p.grad.clone() for p in model.parameters()]
            for p, g in zip(model.parameters(), memory.get("old", now), strict=True):
                p.grad = g
            memory["old"] = now
        if schedule is not None and s.fault == "schedule before the step":
            schedule.step()
        if s.fault != "no step":
            optimizer.step()
        if s.fault == "step twice":
            optimizer.step()
        if s.fault == "registered twice":
            second.step()
        if s.fault == "clip after step":
            clip()
        if schedule is not None and s.fault not in ("schedule before the step", "no schedule"):
            schedule.step()
            if s.fault == "schedule twice":
                schedule.step()

    def step(batch: Any) -> None:
        memory["calls"] += 1
        number = memory["calls"]
        if s.fault == "eval mode":
            model.eval()
        if s.fault == "batch changed":
            batch[0].sub_(batch[0].mean())
        if s.fault == "first batch":
            batch = memory.setdefault("first", batch)
        if s.fault == "previous batch":
            now, batch = batch, memory.get("last", batch)
            memory["last"] = now
        parts = list(zip(*(x.tensor_split(s.inside) for x in batch), strict=True))
        is_start = (number - 1) % s.accumulate == 0
        if is_start and s.fault != "not zeroed":
            optimizer.zero_grad()
        if s.fault == "zeroed each micro-batch":
            optimizer.zero_grad()
        if s.fault == "clip before backward":
            clip()
        for part in parts:
            weight = len(part[0]) / len(batch[0])
            if s.fault == "mean of means":
                weight = 1 / len(parts)
            if s.fault == "sum over micro-batches":
                weight = 1.0
            if s.fault == "divided twice":
                weight /= len(parts)
            if s.accumulate > 1:
                weight = len(batch[0]) / _total(s, number)
                if s.fault == "equal micro-batches":
                    weight = 1 / s.accumulate
                if s.fault == "accumulated sum":
                    weight = 1.0
            backward(part, weight)
            if s.fault == "clip each micro-batch":
                clip()
        if schedule is not None and s.fault == "schedule each call":
            schedule.step()
        is_last = number % len(batches) == 0
        if number % s.accumulate == 0 or (s.fault == "stops short" and is_last):
            update()

    return Training(step=step, loss=loss, batches=batches, model=model, optimizer=handed)


def _total(s: Setup, number: int) -> int:
    """Samples of the window that a call belongs to."""
    start = (number - 1) // s.accumulate * s.accumulate
    return sum(s.sizes[k % len(s.sizes)] for k in range(start, start + s.accumulate))


ADAM = {"optimizer": "adamw"}
SCALE = r"times"


def _by_hand(fault: str, first: str, **claims: Any) -> Fault:
    def build(name: str) -> Setup:
        return Setup(optimizer=lambda ps: Adam(ps, fault=name))

    return Fault(f"adam: {fault}", build(fault), {**ADAM, **claims}, first, build(""))


def _loop(fault: str, first: str, claims: dict[str, Any] | None = None, **setup: Any) -> Fault:
    right = "frozen" if "frozen" in fault else ""
    made = (Setup(fault=name, **setup) for name in (fault, right))
    return Fault(fault, next(made), claims or {}, first, next(made))


PLAIN = {"dampening": 0.0, "nesterov": False, "maximize": False}


def _sgd(fault: str, first: str, wrong: Any, **claims: Any) -> Fault:
    right = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.05}
    return Fault(
        f"sgd: {fault}",
        Setup(optimizer=lambda ps: torch.optim.SGD(ps, **{**right, **wrong})),
        {"optimizer": "sgd", "hyper": PLAIN, **right, **claims},
        first,
        Setup(optimizer=lambda ps: torch.optim.SGD(ps, **{**right, **claims})),
    )


CLIP = {"max_norm": 0.3}


def faults() -> list[Fault]:
    """Every fault."""
    return [
        _loop("not zeroed", "on top of the ones before"),
        _loop("zeroed before the step", "received no gradient|0 times|never moved"),
        _loop("clip missing", "not clipped", CLIP, max_norm=0.3),
        _loop("clip after step", "clipped after", CLIP, max_norm=0.3),
        _loop("clip before backward", "not clipped", CLIP, max_norm=0.3),
        _loop("clip per tensor", "each tensor by itself", CLIP, max_norm=0.3),
        _loop("clip by value", "by value", CLIP, max_norm=0.3),
        _loop("clip some", "more|weight|tensor", CLIP, max_norm=0.3),
        _loop("clip another norm", "norm of order 1", CLIP, max_norm=0.3),
        _loop("clip twice the threshold", "at 0.6, not at the claimed 0.3", CLIP, max_norm=0.3),
        _loop("clip always", "at the threshold", {"max_norm": 1.0}, max_norm=1.0),
        _loop(
            "clip each micro-batch",
            "micro-batch",
            CLIP | {"accumulate": 2},
            max_norm=0.3,
            accumulate=2,
        ),
        _loop(
            "clip before unscale",
            "before the loss scale",
            CLIP | {"loss_scale": 1024.0},
            max_norm=0.3,
            scale=1024.0,
        ),
        _loop("not unscaled", "1024 times.*loss scale", {"loss_scale": 1024.0}, scale=1024.0),
        _loop("unscaled twice", SCALE, {"loss_scale": 1024.0}, scale=1024.0),
        _loop("sum for mean", "16 times.*batch size"),
        _loop("negative loss", "negative"),
        _loop("extra loss", "b.weight"),
        _loop("loss without gradient", "no gradient"),
        _loop(
            "mean of means",
            "times|another gradient|count the same",
            inside=3,
            sizes=(16, 8, 13, 7, 16, 5, 10),
        ),
        _loop("sum over micro-batches", "times|another gradient", inside=3),
        _loop("divided twice", SCALE, inside=4, sizes=(16, 8, 12, 8, 16, 12, 4)),
        _loop("equal micro-batches", "count the same", {"accumulate": 2}, accumulate=2),
        _loop("accumulated sum", "times|added", {"accumulate": 2}, accumulate=2),
        _loop("zeroed each micro-batch", "only the last", {"accumulate": 2}, accumulate=2),
        _loop("stale gradient", "update before"),
        _loop("first batch", "first batch"),
        _loop("previous batch", "batch before"),
        _loop("eval mode", "other mode", dropout=0.5),
        _loop("batch changed", "batch"),
        _loop("gradient noise", "another gradient"),
        _loop("one gradient lost", "b.weight received no gradient"),
        _loop("one gradient none", "b.weight received no gradient"),
        _loop("decay in the gradient", "decay added"),
        _loop("not registered", "no optimizer holds"),
        _loop("registered twice", "held by 2"),
        _loop("updates a copy", "no optimizer holds"),
        _loop("another optimizer", "no update"),
        _loop("no step", "no update"),
        _loop("step twice", "steps 2 times"),
        _loop("detached", "loss changes with it"),
        _loop("data", "loss changes with it"),
        _loop("half backward", "does not follow"),
        _loop("hook on one tensor", "does not follow"),
        _loop("hook on all", "does not follow"),
        _loop("frozen too late", "frozen and moves", {"frozen": "a.*"}),
        _loop("schedule before the step", "scheduler", scheduler=True),
        _loop(
            "schedule twice",
            "learning rate|scheduler",
            {"schedule": lambda t: 1e-2 / (1 + t)},
            scheduler=True,
        ),
        _loop(
            "no schedule", "learning rate", {"schedule": lambda t: 1e-2 / (1 + t)}, scheduler=True
        ),
        _loop(
            "schedule each call",
            "scheduler|learning rate",
            {"accumulate": 2, "schedule": lambda t: 1e-2 / (1 + t)},
            scheduler=True,
            accumulate=2,
        ),
        *(
            _by_hand(fault, first)
            for fault, first in {
                "no correction": "without bias correction",
                "no second correction": "without bias correction of the second",
                "correction multiplied": "multiplied",
                "correction in place": "update is not",
                "eps inside": "eps inside",
                "eps scaled": "eps added before",
                "coupled decay": "coupled decay",
                "decay after": "updated already",
                "decay unscaled": "not multiplied by the learning rate",
                "decay twice": "decay applied twice",
                "no decay": "without decay",
                "betas swapped": "betas swapped",
                "no root": "root of the second moment missing",
                "count late": "count one too large",
                "count stuck": "count always 1",
                "state lost": "state lost|count always|without",
                "ascends": "sign|uphill|negative",
                "second moment late": "second moment from before",
                "moment sums": "sums",
                "previous gradient": "update is not",
                "applied twice": "twice|learning rate",
                "first tensor only": "never moved|does not move|update",
                "decay without gradient": "without gradients",
                "no eps": "zero gradients|update",
                "state dict incomplete": "saved and loaded",
                "gradient touched": "sign|received",
            }.items()
            if fault != "gradient touched"
        ),
        _sgd("no momentum", "without momentum|momentum=0", {"momentum": 0.0}),
        _sgd("dampening", "dampening", {"dampening": 0.9}),
        _sgd("nesterov", "(?i)nesterov", {"nesterov": True}),
        _sgd("ten times the rate", "learning rate|lr=", {"lr": 0.5}),
        _sgd("no decay", "without decay|weight_decay=", {"weight_decay": 0.0}),
        _sgd("maximize", "sign|uphill|maximize", {"maximize": True}),
        Fault(
            "adam where adamw is claimed",
            Setup(optimizer=lambda ps: torch.optim.Adam(ps, 1e-2, weight_decay=0.1)),
            ADAM,
            "coupled decay",
            Setup(optimizer=lambda ps: torch.optim.AdamW(ps, 1e-2, weight_decay=0.1)),
        ),
        Fault(
            "decay of biases",
            Setup(),
            {"no_decay": "*.bias"},
            "bias",
            Setup(optimizer=_grouped),
        ),
        Fault(
            "bfloat16 without master weights",
            Setup(
                optimizer=lambda ps: torch.optim.AdamW(ps, 1e-5, weight_decay=0.1),
                dtype=torch.bfloat16,
            ),
            {},
            "lost|never moved",
            Setup(optimizer=lambda ps: torch.optim.AdamW(ps, 1e-5, weight_decay=0.1)),
        ),
    ]


def _grouped(parameters: Any) -> Any:
    held = list(parameters)
    groups = [
        {"params": held[::2], "weight_decay": 0.1},
        {"params": held[1::2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, 1e-2, (0.8, 0.95), 1e-3)
