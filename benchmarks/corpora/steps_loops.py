"""Training loops of PyTorch that are right, and are easily accused: each does something unusual.

A loop builds its training; with ``fault`` it also makes one mistake (three times the gradient, just
before the optimizer), which must be caught whatever is unusual about the rest.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812  # as everybody writes it
from torch.nn.utils import clip_grad_norm_

from pytest_gradcheck import Training

T = torch.optim
Loop = Callable[[bool], Training]
LOOPS: dict[str, tuple[Loop, dict[str, Any]]] = {}
SHORT = 6


def loop(name: str, **claims: Any) -> Callable[[Loop], Loop]:
    """Register a loop by its name, with what it claims."""

    def register(build: Loop) -> Loop:
        LOOPS[name] = (build, claims)
        return build

    return register


def right_loops() -> Iterator[tuple[str, Callable[[], Training], dict[str, Any]]]:
    """Every loop without its mistake."""
    for name, (build, claims) in LOOPS.items():
        yield name, lambda b=build: b(False), claims


def net(*, act: Callable[[], nn.Module] = nn.Tanh) -> nn.Sequential:
    """A small network, always the same."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), act(), nn.Linear(8, 8), act(), nn.Linear(8, 1))


def epoch(width: int = 1) -> list[Any]:
    """Four batches, the last one short."""
    torch.manual_seed(1)
    return [(torch.randn(n, 4), torch.randn(n, width)) for n in (8, 8, 8, 5)]


def spoil(fault: bool, *modules: nn.Module) -> None:
    """The mistake, where it is asked for."""
    for p in (p for m in modules for p in m.parameters() if fault and p.grad is not None):
        p.grad.mul_(3)


def mean_square(model: nn.Module) -> Callable[[Any], torch.Tensor]:
    """The usual loss."""
    return lambda batch: F.mse_loss(model(batch[0]), batch[1])


# --- loss scales that the optimizer removes ------------------------------------------------------


def plain(
    fault: bool, model: nn.Module, opt: Any, loss: Any, batches: Sequence[Any] | None = None
) -> Training:
    """What is unusual is outside of the step."""

    def step(batch: Any) -> None:
        opt.zero_grad()
        loss(batch).backward()
        spoil(fault, model)
        opt.step()

    batches = epoch() if batches is None else batches
    return Training(step=step, loss=loss, batches=batches, model=model, optimizer=opt)


def _fused(fault: bool, optimizer: Any, is_unscaled: bool) -> Training:
    model = net()
    opt = optimizer(model.parameters())
    scaler = torch.amp.GradScaler(
        torch.get_default_device().type, init_scale=1024.0, growth_interval=3
    )
    loss = mean_square(model)

    def step(batch: Any) -> None:
        opt.zero_grad()
        scaler.scale(loss(batch)).backward()
        if is_unscaled:
            scaler.unscale_(opt)
            clip_grad_norm_(model.parameters(), 0.1)
        spoil(fault, model)
        scaler.step(opt)
        scaler.update()

    return Training(step=step, loss=loss, batches=epoch(), model=model, optimizer=opt)


for _name, _make in {
    "SGD": lambda ps: T.SGD(ps, 0.05, momentum=0.9, fused=True),
    "Adam": lambda ps: T.Adam(ps, 1e-2, fused=True),
    "AdamW": lambda ps: T.AdamW(ps, 1e-2, fused=True),
    "Adagrad": lambda ps: T.Adagrad(ps, 1e-2, fused=torch.get_default_device().type == "cpu"),
}.items():
    loop(f"scaler, fused {_name}")(lambda f, m=_make: _fused(f, m, False))
    loop(f"scaler, fused {_name}, clipped")(lambda f, m=_make: _fused(f, m, True))


@loop("scaler, fused AdamW, overflow")
def overflow(fault: bool) -> Training:
    """The scale is too large at first: the optimizer itself leaves that update out."""
    model = net()
    opt = T.AdamW(model.parameters(), 1e-2, fused=True)
    scaler = torch.amp.GradScaler(
        torch.get_default_device().type, init_scale=2.0**126, backoff_factor=2.0**-60
    )

    def loss(batch: Any) -> torch.Tensor:
        return 100 * F.mse_loss(model(batch[0]), batch[1])

    def step(batch: Any) -> None:
        opt.zero_grad()
        scaler.scale(loss(batch)).backward()
        spoil(fault, model)
        scaler.step(opt)
        scaler.update()

    return Training(step=step, loss=loss, batches=epoch(), model=model, optimizer=opt)


# --- who is trained changes on the way -----------------------------------------------------------


@loop("unfreezing, held from the start")
def unfreezing(fault: bool) -> Training:
    """The optimizer holds everything; layers take gradients one after the other."""
    model = net()
    model[0].requires_grad_(False)
    model[2].requires_grad_(False)
    opt = T.AdamW(model.parameters(), 1e-2)
    loss, count = mean_square(model), [0]

    def step(batch: Any) -> None:
        count[0] += 1
        if count[0] == 3:
            model[2].requires_grad_(True)
        if count[0] == 5:
            model[0].requires_grad_(True)
        opt.zero_grad()
        loss(batch).backward()
        spoil(fault and count[0] > 4, model[0])
        opt.step()

    return Training(step=step, loss=loss, batches=epoch(), model=model, optimizer=opt)


@loop("unfreezing, groups added")
def adding(fault: bool) -> Training:
    """The optimizer gets the layers when they take gradients."""
    model = net()
    model[0].requires_grad_(False)
    opt = T.SGD([p for p in model.parameters() if p.requires_grad], 0.05, momentum=0.9)
    loss, count = mean_square(model), [0]

    def step(batch: Any) -> None:
        count[0] += 1
        if count[0] == 4:
            model[0].requires_grad_(True)
            opt.add_param_group({"params": model[0].parameters(), "lr": 0.01})
        opt.zero_grad()
        loss(batch).backward()
        spoil(fault and count[0] > 3, model[0])
        opt.step()

    return Training(step=step, loss=loss, batches=epoch(), model=model, optimizer=opt)


@loop("freezing on the way")
def freezing(fault: bool) -> Training:
    """A layer is trained at first, and then left alone."""
    model = net()
    opt = T.SGD(model.parameters(), 0.05, momentum=0.9)
    loss, count = mean_square(model), [0]

    def step(batch: Any) -> None:
        count[0] += 1
        if count[0] == 4:
            model[0].requires_grad_(False)
        opt.zero_grad()
        loss(batch).backward()
        spoil(fault, model)
        opt.step()

    return Training(step=step, loss=loss, batches=epoch(), model=model, optimizer=opt)


# --- order ---------------------------------------------------------------------------------------


def _scheduled(fault: bool, when: Callable[[int], bool], rate: Any, is_first: bool) -> Training:
    model = net()
    opt = T.AdamW(model.parameters(), 1e-2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        schedule = T.lr_scheduler.LambdaLR(opt, rate)
    loss, count = mean_square(model), [0]

    def step(batch: Any) -> None:
        if is_first and when(count[0]):
            schedule.step()
        opt.zero_grad()
        loss(batch).backward()
        spoil(fault, model)
        opt.step()
        count[0] += 1

    return Training(step=step, loss=loss, batches=epoch(), model=model, optimizer=opt)


@loop("scheduler at the start of an epoch")
def at_epoch(fault: bool) -> Training:
    """From the second epoch on: the same as at the end of the one before."""
    return _scheduled(fault, lambda k: k > 0 and k % 4 == 0, lambda t: 0.5**t, True)


@loop("scheduler before the optimizer, warm-up from 0")
def before(fault: bool) -> Training:
    """The rate that is left out is 0: nothing would move with it."""
    return _scheduled(fault, lambda k: True, lambda t: min(1.0, t / 3), True)


@loop("scheduler before the optimizer, claimed", schedule=lambda t: 1e-2 * 0.9 ** (t + 1))
def claimed(fault: bool) -> Training:
    """By design, as the claimed schedule says."""
    return _scheduled(fault, lambda k: True, lambda t: 0.9**t, True)


@loop("two schedulers")
def two_schedulers(fault: bool) -> Training:
    """Each one once for an update."""
    model = net()
    opt = T.AdamW(model.parameters(), 1e-2)
    both = [T.lr_scheduler.ExponentialLR(opt, 0.9), T.lr_scheduler.StepLR(opt, 3)]
    loss = mean_square(model)

    def step(batch: Any) -> None:
        opt.zero_grad()
        loss(batch).backward()
        spoil(fault, model)
        opt.step()
        for schedule in both:
            schedule.step()

    return Training(step=step, loss=loss, batches=epoch(), model=model, optimizer=opt)


def _short(fault: bool, is_accumulated: bool) -> Training:
    model = net()
    opt = T.AdamW(model.parameters(), 1e-2)
    loss, count = mean_square(model), [0]

    def step(batch: Any) -> None:
        if len(batch[0]) < SHORT:
            return
        count[0] += 1
        (loss(batch) / (2 if is_accumulated else 1)).backward()
        if is_accumulated and count[0] % 2:
            return
        spoil(fault, model)
        opt.step()
        opt.zero_grad()

    return Training(step=step, loss=loss, batches=epoch(), model=model, optimizer=opt)


loop("a short batch is left out")(lambda f: _short(f, False))
loop("a short batch is left out, accumulating", accumulate=2)(lambda f: _short(f, True))
