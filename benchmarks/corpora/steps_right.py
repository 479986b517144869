"""Training loops that are right, in many forms: each alarm on one of them is false."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812  # as everybody writes it
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from corpora import steps_functional
from pytest_gradcheck import Training

Right = tuple[str, Callable[[], Training], dict[str, Any]]
T = torch.optim
OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "SGD": lambda p: T.SGD(p, 0.05),
    "momentum": lambda p: T.SGD(p, 0.02, momentum=0.9, weight_decay=0.01),
    "Nesterov": lambda p: T.SGD(p, 0.02, momentum=0.9, nesterov=True),
    "dampening": lambda p: T.SGD(p, 0.02, momentum=0.9, dampening=0.5),
    "Adam": lambda p: T.Adam(p, 1e-2, weight_decay=0.01),
    "AMSGrad": lambda p: T.Adam(p, 1e-2, amsgrad=True),
    "AdamW": lambda p: T.AdamW(p, 1e-2, weight_decay=0.1),
    "AdamW foreach": lambda p: T.AdamW(p, 1e-2, foreach=True),
    "AdamW fused": lambda p: T.AdamW(p, 1e-2, fused=True),
    "Adamax": lambda p: T.Adamax(p, 1e-2, weight_decay=0.01),
    "NAdam": lambda p: T.NAdam(p, 1e-2, weight_decay=0.01),
    "RAdam": lambda p: T.RAdam(p, 1e-2, weight_decay=0.01, decoupled_weight_decay=True),
    "RMSprop": lambda p: T.RMSprop(p, 1e-3, momentum=0.9, centered=True),
    "Adagrad": lambda p: T.Adagrad(p, 1e-2, lr_decay=0.01),
    "Adadelta": lambda p: T.Adadelta(p, 1.0),
    "Rprop": lambda p: T.Rprop(p, 1e-3),
    "ASGD": lambda p: T.ASGD(p, 1e-2),
}
FORMS = (
    "plain",
    "clip by norm",
    "clip by value",
    "accumulate",
    "micro-batches inside",
    "warm-up from 0",
    "frozen",
    "tied",
    "dropout",
    "batch norm",
    "relu",
    "scaler",
    "master weights",
    "large rate",
    "closure",
    "groups",
    "bfloat16",
    "averaged weights",
    "unused expert",
    "factor at zero",
)


class _Net(nn.Module):
    def __init__(self, form: str) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 1)
        if form == "tied":
            self.b.weight = self.a.weight
        if form == "frozen":
            self.a.requires_grad_(False)
        self.middle: nn.Module = nn.Identity()
        if form == "dropout":
            self.middle = nn.Dropout(0.3)
        if form == "batch norm":
            self.middle = nn.BatchNorm1d(8)
        self.expert = nn.Linear(8, 8) if form == "unused expert" else None
        self.low = None
        if form == "factor at zero":
            self.low = nn.ParameterList([torch.randn(8, 2) * 0.1, torch.zeros(2, 8)])
        self.act = torch.relu if form == "relu" else torch.tanh

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.act(self.a(x))
        if self.low is not None:
            h = h + h @ self.low[0] @ self.low[1]
        return self.c(self.act(self.b(self.middle(h))))


def _torch(form: str, name: str, dtype: torch.dtype, seed: int) -> Training:
    torch.manual_seed(seed)
    low = form in ("master weights", "bfloat16")
    model = _Net(form).to(torch.bfloat16 if low else dtype)
    batches = [
        (torch.randn(n, 8).to(next(model.parameters()).dtype), torch.randn(n, 1))
        for n in (12, 12, 12, 7)
    ]
    trained = [p for p in model.parameters() if p.requires_grad]
    masters = [p.detach().float().clone().requires_grad_() for p in trained]
    held: Any = masters if form == "master weights" else trained
    if form == "groups":
        held = [
            {"params": trained[::2]},
            {"params": trained[1::2], "weight_decay": 0.0, "lr": 3e-3},
        ]
        held = held if name not in ("Rprop", "ASGD") else trained
    optimizer = OPTIMIZERS[name](held)
    if form == "large rate":
        for group in optimizer.param_groups:
            group["lr"] = 30 * group["lr"]
    schedule = T.lr_scheduler.LambdaLR(optimizer, lambda t: min(1.0, t / 3))
    if form != "warm-up from 0":
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"]
    scaler = torch.amp.GradScaler(torch.get_default_device().type, init_scale=256.0)
    average = {n: p.detach().clone() for n, p in model.named_parameters()}
    calls = [0]

    def loss(batch: Any) -> torch.Tensor:
        return F.mse_loss(model(batch[0]).to(batch[1].dtype), batch[1])

    def step(batch: Any) -> None:
        if form == "closure":
            return _closed(optimizer, lambda: loss(batch))
        calls[0] += 1
        if form == "accumulate":
            size = sum(len(batches[k % 4][0]) for k in _window(calls[0] - 1))
            (loss(batch) * len(batch[0]) / size).backward()
            if calls[0] % 2:
                return None
        elif form == "micro-batches inside":
            optimizer.zero_grad()
            for x, y in zip(batch[0].split(5), batch[1].split(5), strict=True):
                (loss((x, y)) * len(x) / len(batch[0])).backward()
        elif form == "scaler":
            optimizer.zero_grad()
            scaler.scale(loss(batch)).backward()
            scaler.unscale_(optimizer)
            clip_grad_norm_(trained, 0.5)
            scaler.step(optimizer)
            scaler.update()
            return None
        else:
            optimizer.zero_grad()
            model.zero_grad()
            loss(batch).backward()
        if form == "master weights":
            for m, p in zip(masters, trained, strict=True):
                m.grad = None if p.grad is None else p.grad.float()
        if form == "clip by norm":
            clip_grad_norm_(trained, 0.3)
        if form == "clip by value":
            clip_grad_value_(trained, 0.05)
        optimizer.step()
        if form == "accumulate":
            optimizer.zero_grad()
        if form == "master weights":
            with torch.no_grad():
                for m, p in zip(masters, trained, strict=True):
                    p.copy_(m)
        if form == "warm-up from 0":
            schedule.step()
        if form == "averaged weights":
            for n, p in model.named_parameters():
                average[n].lerp_(p.detach(), 0.1)
        return None

    return Training(step=step, loss=loss, batches=batches, model=model, optimizer=optimizer)


def _window(call: int) -> tuple[int, int]:
    return (call // 2 * 2, call // 2 * 2 + 1)


def _closed(optimizer: Any, loss: Callable[[], torch.Tensor]) -> None:
    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    optimizer.step(closure)


def torch_trainings(seeds: int) -> Iterator[Right]:
    """Optimizers in every form."""
    claims: dict[str, dict[str, Any]] = {
        "clip by norm": {"max_norm": 0.3},
        "clip by value": {"max_value": 0.05},
        "accumulate": {"accumulate": 2},
        "scaler": {"max_norm": 0.5, "loss_scale": 256.0},
        "bfloat16": {"step_lost": 1.0},
    }
    for seed in range(seeds):
        for name in OPTIMIZERS:
            for form in FORMS:
                for dtype in (torch.float32, torch.float64):
                    if dtype is torch.float64 and form in ("master weights", "bfloat16"):
                        continue

                    def build(f=form, n=name, d=dtype, s=seed) -> Training:
                        return _torch(f, n, d, s)

                    label = f"{name}, {form}, {str(dtype)[6:]}, seed {seed}"
                    yield label, build, claims.get(form, {})


def _optax(name: str, form: str, seed: int) -> tuple[Callable[[], Training], dict[str, Any]]:
    made, rule, claims = OPTAX[name]
    tx: Any = made
    if form == "clip":
        tx, claims = optax.chain(optax.clip_by_global_norm(0.3), tx), claims | {"max_norm": 0.3}
    if form == "multi":
        tx = optax.MultiSteps(tx, 2)
        claims = claims | {"accumulate": 2, "weights": "batches"}
    if form == "frozen":
        parts = {"trained": tx, "frozen": optax.set_to_zero()}
        labels = {"a": "trained", "b": "frozen", "c": "trained"}
        tx, claims = optax.multi_transform(parts, labels), claims | {"frozen": "b"}
    sizes = (12, 12, 12, 7) if form == "short batch" else (12, 12, 12, 12)

    def build() -> Training:
        rng = np.random.default_rng(seed)
        p = {"a": rng.normal(size=(5, 6)), "b": rng.normal(size=6), "c": rng.normal(size=(6, 1))}
        params = {k: jnp.asarray(0.5 * v, dtype=jnp.float32) for k, v in p.items()}
        if form == "tied":
            del params["c"]
        batches = [
            tuple(
                jnp.asarray(v, dtype=jnp.float32)
                for v in (rng.normal(size=(n, 5)), rng.normal(size=(n, 1)))
            )
            for n in sizes
        ]
        if form == "dropout":
            keys = jax.random.split(jax.random.key(seed), len(batches))
            batches = [(*batch, key) for batch, key in zip(batches, keys, strict=True)]

        def hidden(p: Any, batch: Any) -> Any:
            h = batch[0] @ p["a"] + p["b"]
            if form == "norm":
                h = (h - h.mean(0)) / jnp.sqrt(h.var(0) + 1e-5) + p["b"]
            h = jnp.tanh(h)
            if form == "dropout":
                h = h * jax.random.bernoulli(batch[2], 0.8, h.shape) / 0.8
            return h

        def loss(p: Any, batch: Any) -> Any:
            last = p["a"].T[:, :1] if form == "tied" else p["c"]
            return jnp.mean((hidden(p, batch) @ last - batch[1]) ** 2)

        def step(p: Any, held: Any, batch: Any) -> Any:
            state, mean = held
            value, grads = jax.value_and_grad(loss)(p, batch)
            updates, state = tx.update(grads, state, p)
            mean = 0.9 * mean + 0.1 * (batch[0] @ p["a"]).mean(0)  # as batch norm carries one along
            return optax.apply_updates(p, updates), (state, mean), value

        donated = (0, 1) if form == "donated" else ()
        return Training(
            step=jax.jit(step, donate_argnums=donated),
            loss=loss,
            batches=batches,
            params=params,
            opt_state=(tx.init(params), jnp.zeros(6)),
            optimizer=tx,
        )

    return build, {"optimizer": rule, **claims} if form != "unclaimed" else {}


OPTAX_FORMS = (
    *("plain", "clip", "unclaimed", "donated", "multi", "short batch"),
    *("frozen", "tied", "dropout", "norm"),
)
OPTAX: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "sgd": (optax.sgd(0.05), "sgd", {"lr": 0.05}),
    "momentum": (optax.sgd(0.05, 0.9), "sgd", {"lr": 0.05, "momentum": 0.9}),
    "nesterov": (
        optax.sgd(0.05, 0.9, nesterov=True),
        "sgd",
        {"lr": 0.05, "momentum": 0.9, "nesterov": True},
    ),
    "adam": (optax.adam(1e-2), "adam", {"lr": 1e-2}),
    "adamw": (optax.adamw(1e-2, weight_decay=0.1), "adamw", {"lr": 1e-2, "weight_decay": 0.1}),
    "adamax": (optax.adamax(1e-2), "adamax", {"lr": 1e-2}),
    "nadam": (optax.nadam(1e-2), "nadam", {"lr": 1e-2}),
    "radam": (optax.radam(1e-2), "radam", {"lr": 1e-2}),
    "rmsprop": (optax.rmsprop(1e-2), "rmsprop", {"lr": 1e-2, "hyper": {"alpha": 0.9}}),
    "adagrad": (optax.adagrad(1e-1), "adagrad", {"lr": 1e-1}),
    "adadelta": (optax.adadelta(1.0), "adadelta", {"lr": 1.0}),
    "lion": (optax.lion(1e-3, weight_decay=0.1), "lion", {"lr": 1e-3, "weight_decay": 0.1}),
    "lamb": (optax.lamb(1e-2, weight_decay=0.1), "lamb", {"lr": 1e-2, "weight_decay": 0.1}),
    "lars": (
        optax.lars(0.1, weight_decay=0.1),
        "lars",
        {"lr": 0.1, "weight_decay": 0.1, "momentum": 0.9},
    ),
    "warm-up": (
        optax.adamw(optax.linear_schedule(0.0, 1e-2, 3), weight_decay=0.1),
        "adamw",
        {"schedule": lambda t: 1e-2 * min(1.0, t / 3), "weight_decay": 0.1},
    ),
}


def jax_trainings(seeds: int) -> Iterator[Right]:
    """Transformations of optax in a few forms."""
    for seed in range(seeds):
        for name in OPTAX:
            for form in OPTAX_FORMS:
                build, claims = _optax(name, form, seed)
                yield f"optax {name}, {form}, seed {seed}", build, claims


def numpy_trainings(seeds: int) -> Iterator[Right]:
    """The step by hand in its forms; plain rules with and without their claims."""
    for seed in range(seeds):
        for form, setup in {
            "plain": {},
            "clip": {"max_norm": 0.3},
            "clip that rests": {"max_norm": 100.0},
            "accumulate": {"accumulate": 2},
            "scaled": {"scale": 1024.0},
        }.items():
            claims = dict(steps_functional.CLAIMS)
            claims |= {k: v for k, v in setup.items() if k in ("max_norm", "accumulate")}
            build = steps_functional.Setup(kind="numpy", seed=seed, **setup)
            yield f"numpy adamw, {form}, seed {seed}", build, claims
            if form == "plain":
                yield f"numpy adamw, unclaimed, seed {seed}", build, {}
        for rule in ("sgd", "momentum", "rmsprop", "adagrad", "lion"):
            build, claims = _plain(rule, seed)
            yield f"numpy {rule}, seed {seed}", build, claims


def _plain(rule: str, seed: int) -> tuple[Callable[[], Training], dict[str, Any]]:
    claims = {
        "sgd": {"optimizer": "sgd", "lr": 0.05},
        "momentum": {"optimizer": "sgd", "lr": 0.05, "momentum": 0.9},
        "rmsprop": {"optimizer": "rmsprop", "lr": 0.01, "hyper": {"alpha": 0.9}},
        "adagrad": {"optimizer": "adagrad", "lr": 0.05},
        "lion": {"optimizer": "lion", "lr": 1e-3},
    }[rule]

    def build() -> Training:
        rng = np.random.default_rng(seed)
        params = {"w": rng.normal(size=(5, 3)), "b": rng.normal(size=3)}
        batches = [(rng.normal(size=(n, 5)), rng.normal(size=(n, 3))) for n in (8, 8, 3)]

        def loss(p: Any, batch: Any) -> Any:
            return np.mean(np.log(np.cosh(batch[0] @ p["w"] + p["b"] - batch[1])))

        def step(p: Any, state: Any, batch: Any) -> Any:
            x, y = batch
            r = np.tanh(x @ p["w"] + p["b"] - y) / y.size
            for k, g in {"w": x.T @ r, "b": r.sum(0)}.items():
                if rule == "sgd":
                    p[k] -= 0.05 * g
                elif rule == "momentum":
                    state[k] = 0.9 * state[k] + g
                    p[k] -= 0.05 * state[k]
                elif rule == "rmsprop":
                    state[k] = 0.9 * state[k] + 0.1 * g**2
                    p[k] -= 0.01 * g / (np.sqrt(state[k]) + 1e-8)
                elif rule == "adagrad":
                    state[k] += g**2
                    p[k] -= 0.05 * g / (np.sqrt(state[k]) + 1e-10)
                else:
                    p[k] -= 1e-3 * np.sign(0.9 * state[k] + 0.1 * g)
                    state[k] = 0.99 * state[k] + 0.01 * g
            return p, state

        state = {k: np.zeros_like(v) for k, v in params.items()}
        return Training(step=step, loss=loss, batches=batches, params=params, opt_state=state)

    return build, claims
