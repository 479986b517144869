"""Functional training steps in NumPy and JAX with one fault each, and the same without."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from corpora.steps_torch import Fault
from pytest_gradcheck import Training

SIZES = (16, 9, 16, 7, 16, 12, 5)
RATE, BETAS, EPS, DECAY = 1e-2, (0.8, 0.95), 1e-3, 0.1
CLAIMS: dict[str, Any] = {
    "optimizer": "adamw",
    "lr": RATE,
    "betas": BETAS,
    "eps": EPS,
    "weight_decay": DECAY,
}


@dataclass(frozen=True, eq=False)
class Setup:
    """How a step is made: by hand in NumPy or in JAX, or with optax."""

    fault: str = ""
    kind: str = "numpy"
    max_norm: float | None = None
    accumulate: int = 1
    scale: float = 1.0
    tx: Any = None
    seed: int = 0
    sizes: tuple[int, ...] = SIZES

    def __call__(self) -> Training:
        return _training(self)


def _forward(xp: Any, p: Any, x: Any) -> Any:
    h = xp.tanh(x @ p["a"] + p["b"])
    return xp.tanh(h @ p["c"] + p["d"]) @ p["e"]


def _numpy_grad(p: Any, batch: Any) -> dict[str, np.ndarray]:
    x, y = batch
    h = np.tanh(x @ p["a"] + p["b"])
    k = np.tanh(h @ p["c"] + p["d"])
    r = 2 * (k @ p["e"] - y) / y.size
    dk = (r @ p["e"].T) * (1 - k**2)
    dh = (dk @ p["c"].T) * (1 - h**2)
    return {"a": x.T @ dh, "b": dh.sum(0), "c": h.T @ dk, "d": dk.sum(0), "e": k.T @ r}


def _norm(xp: Any, g: dict[str, Any], order: float = 2.0) -> Any:
    return xp.sum(xp.stack([xp.sum(xp.abs(v) ** order) for v in g.values()])) ** (1 / order)


def _clip(xp: Any, s: Setup, g: dict[str, Any]) -> dict[str, Any]:
    if s.max_norm is None or s.fault == "clip missing":
        return g
    c = s.max_norm
    if s.fault == "clip per tensor":
        return {k: v * xp.minimum(1.0, c / xp.sqrt(xp.sum(v**2))) for k, v in g.items()}
    if s.fault == "clip by value":
        return {k: xp.clip(v, -c, c) for k, v in g.items()}
    order = 1.0 if s.fault == "clip another norm" else 2.0
    c = 2 * c if s.fault == "clip twice the threshold" else c
    size = _norm(xp, g, order)
    size = size**2 if s.fault == "clip by the squared norm" else size
    factor = c / size if s.fault == "clip always" else xp.minimum(1.0, c / size)
    return {k: v * factor for k, v in g.items()}


def _training(s: Setup) -> Training:  # one step, as users write it
    is_numpy = s.kind == "numpy"
    xp: Any = np if is_numpy else jnp
    rng = np.random.default_rng(s.seed)
    shapes = {"a": (6, 8), "b": (8,), "c": (8, 8), "d": (8,), "e": (8, 1)}
    start = {k: rng.normal(size=shape) * 0.4 for k, shape in shapes.items()}
    batches = [(rng.normal(size=(n, 6)), rng.normal(size=(n, 1))) for n in s.sizes]
    params = {k: xp.asarray(v) for k, v in start.items()}
    batches = [tuple(xp.asarray(v) for v in b) for b in batches]
    memory: dict[str, Any] = {}

    def loss(p: Any, batch: Any) -> Any:
        x, y = batch
        return xp.mean((_forward(xp, p, x) - y) ** 2)

    def trained(p: Any, batch: Any) -> Any:
        value = loss(p, batch)
        if s.fault == "sum for mean":
            value = value * len(batch[0])
        if s.fault == "negative loss":
            value = -value
        if s.fault == "stop gradient":
            q = {**p, "c": jax.lax.stop_gradient(p["c"])}
            value = loss(q, batch)
        return value * s.scale

    def gradient(p: Any, batch: Any) -> dict[str, Any]:
        if not is_numpy:
            return dict(jax.grad(trained)(p, batch))
        factor = s.scale * (len(batch[0]) if s.fault == "sum for mean" else 1)
        factor *= -1 if s.fault == "negative loss" else 1
        g = {k: v * factor for k, v in _numpy_grad(p, batch).items()}
        if s.fault == "stop gradient":
            g["c"] = np.zeros_like(g["c"])
        return g

    def changed(p: Any, g: dict[str, Any]) -> dict[str, Any]:
        if s.scale != 1 and s.fault != "not unscaled":
            g = {k: v / s.scale for k, v in g.items()}
        if s.fault == "one gradient lost":
            g = {**g, "c": xp.zeros_like(g["c"])}
        if s.fault == "one gradient halved":
            g = {**g, "c": g["c"] / 2}
        if s.fault == "one gradient negative":
            g = {**g, "c": -g["c"]}
        if s.fault == "one gradient transposed":
            g = {**g, "c": g["c"].T}
        if s.fault == "decay in the gradient":
            g = {k: v + 0.1 * p[k] for k, v in g.items()}
        if s.fault == "gradient offset":
            g = {k: v + 0.05 * xp.sqrt(xp.sum(v**2)) for k, v in g.items()}
        return _clip(xp, s, g)

    def adam(p: Any, state: Any, g: Any) -> Any:  # one branch a mistake
        f = s.fault
        t = state["t"] + 1
        n = t + 1 if f == "count late" else xp.ones_like(t) if f == "count stuck" else t
        b1, b2 = BETAS[::-1] if f == "betas swapped" else BETAS
        c1, c2 = 1 - b1**n, 1 - b2**n
        if f == "no correction":
            c1 = c2 = 1.0
        if f == "no second correction":
            c2 = 1.0
        if f == "correction multiplied":
            c1, c2 = 1 / c1, 1 / c2
        q, m, v = {}, {}, {}
        for k in p:
            d = -g[k] if f == "ascends" else g[k]
            if f == "coupled decay":
                d = d + DECAY * p[k]
            share = 1.0 if f == "moment sums" else 1 - b1
            m[k] = b1 * state["m"][k] + share * d
            v[k] = b2 * state["v"][k] + (1 - b2) * d * d
            second = state["v"][k] if f == "second moment late" else v[k]
            root = xp.sqrt(second / c2) + EPS
            if f == "second moment late":
                root = xp.where(t > 1, root, xp.sqrt(v[k] / c2) + EPS)
            if f == "eps inside":
                root = xp.sqrt(second / c2 + EPS)
            if f == "eps scaled":
                root = (xp.sqrt(second) + EPS) / xp.sqrt(c2)
            if f == "no root":
                root = second / c2 + EPS
            u = RATE * (m[k] / c1) / root
            u = u * {"applied twice": 2.0, "ten times the rate": 10.0}.get(f, 1.0)
            decay = RATE * DECAY * (0 if f in ("coupled decay", "no decay") else 1)
            decay = {
                "decay unscaled": DECAY,
                "decay twice": 2 * RATE * DECAY,
                "ten times the rate": 10 * RATE * DECAY,
            }.get(f, decay)
            base = p[k] - u if f == "decay after" else p[k]
            q[k] = p[k] - u - decay * base
        if f == "adam forgets its state":
            return p if f == "no update" else q, {**state, "t": t}
        if f == "state lost":
            return q, state
        if f == "no update":
            return p, {"t": t, "m": m, "v": v}
        if f == "one tensor not moved":
            q["c"] = p["c"]
        return q, {"t": t, "m": m, "v": v}

    def zeros() -> Any:
        return {k: xp.zeros_like(x) for k, x in params.items()}

    def step(p: Any, state: Any, batch: Any) -> Any:
        if s.fault == "batch changed":
            batch[0][:] = batch[0] - batch[0].mean()
        if s.fault == "first batch":
            batch = memory.setdefault("first", batch)
        if s.fault == "previous batch":
            now, batch = batch, memory.get("last", batch)
            memory["last"] = now
        g = gradient(memory.get("old", p) if s.fault == "old parameters" else p, batch)
        memory["old"] = p
        if s.fault == "not zeroed":
            memory["sum"] = g = {k: v + memory.get("sum", zeros())[k] for k, v in g.items()}
        if s.fault == "stale gradient":
            now, g = g, memory.get("g", g)
            memory["g"] = now
        if s.accumulate > 1:
            return _accumulated(p, state, g, batch)
        return apply(p, state, changed(p, g))

    def _accumulated(p: Any, state: Any, g: Any, batch: Any) -> Any:
        window = memory.setdefault("window", [])
        n = len(batch[0])
        window.append((n, _clip(xp, s, g) if s.fault == "clip each micro-batch" else g))
        if len(window) < s.accumulate:
            return p, state
        total = sum(w for w, _ in window)
        weights = [w / total for w, _ in window]
        if s.fault == "equal micro-batches":
            weights = [1 / len(window)] * len(window)
        if s.fault == "accumulated sum":
            weights = [1.0] * len(window)
        if s.fault == "last micro-batch only":
            weights = [0.0] * (len(window) - 1) + [1.0]
        g = {k: sum(w * x[k] for w, (_, x) in zip(weights, window, strict=True)) for k in p}
        window.clear()
        return apply(p, state, g if s.fault == "clip each micro-batch" else changed(p, g))

    def apply(p: Any, state: Any, g: Any) -> Any:
        if s.tx is None:
            return adam(p, state, g)
        updates, new = s.tx.update(g, state, p)
        if s.fault == "optax: applied twice":
            updates = jax.tree.map(lambda u: 2 * u, updates)
        if s.fault == "optax: subtracted":
            updates = jax.tree.map(lambda u: -u, updates)
        if s.fault == "optax: one tensor not moved":
            updates = {**updates, "c": jnp.zeros_like(updates["c"])}
        if s.fault == "optax: gradients applied":
            updates = jax.tree.map(lambda u: -RATE * u, g)
        new = state if s.fault == "optax: state not carried on" else new
        return optax.apply_updates(p, updates), new

    state = {"t": xp.asarray(0), "m": zeros(), "v": zeros()}
    if s.tx is not None:
        state = s.tx.init(params)
    stateful = ("first batch", "previous batch", "old parameters", "not zeroed", "stale gradient")
    made: Any = step
    if not is_numpy and s.fault not in stateful and s.accumulate == 1:
        made = jax.jit(step)
    return Training(
        step=made, loss=loss, batches=batches, params=params, opt_state=state, optimizer=s.tx
    )


ARITHMETIC = {
    "no correction": "without bias correction",
    "no second correction": "bias correction of the second",
    "correction multiplied": "multiplied",
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
    "state lost": "state lost|moments lost",
    "ascends": "sign|negative",
    "second moment late": "second moment from before",
    "moment sums": "sums",
    "applied twice": "twice|learning rate",
    "ten times the rate": "learning rate",
    "no update": "does not move|never moved|no update",
    "one tensor not moved": "c\\b",
}
GRADIENTS = {
    "sum for mean": "times.*batch size",
    "negative loss": "negative",
    "stop gradient": "c received no gradient",
    "one gradient lost": "c received no gradient",
    "one gradient halved": "c received 0.5",
    "one gradient negative": "c received the negative",
    "one gradient transposed": "c\\b",
    "decay in the gradient": "decay added",
    "gradient offset": "another gradient",
    "first batch": "first batch",
    "previous batch": "batch before",
    "not zeroed": "on top of the ones before",
    "stale gradient": "update before",
    "old parameters": "parameters of the update before",
}
CLIPS = {
    "clip missing": "not clipped",
    "clip per tensor": "each tensor by itself",
    "clip by value": "by value",
    "clip another norm": "norm of order 1",
    "clip twice the threshold": "times",
    "clip by the squared norm": "square of the norm",
    "clip always": "at the threshold",
}
WINDOWS = {
    "equal micro-batches": "count the same",
    "accumulated sum": "added|times",
    "last micro-batch only": "only the last",
}


def faults_of(kind: str) -> list[Fault]:
    """Every fault of one framework."""
    tx = None if kind == "numpy" else optax.adamw(RATE, *BETAS, EPS, weight_decay=DECAY)
    found = [_fault(kind, f, first, CLAIMS) for f, first in ARITHMETIC.items()]
    found += [_fault(kind, f, first, CLAIMS, tx=tx) for f, first in GRADIENTS.items()]
    for f, first in CLIPS.items():
        c = 1.5 if f == "clip always" else 0.3
        found.append(_fault(kind, f, first, CLAIMS | {"max_norm": c}, tx=tx, max_norm=c))
    for f, first in WINDOWS.items():
        claims = CLAIMS | {"accumulate": 2}
        found.append(_fault(kind, f, first, claims, tx=tx, accumulate=2))
    claims = CLAIMS | {"loss_scale": 1024.0}
    told = "1024 times.*loss scale"
    found.append(_fault(kind, "not unscaled", told, claims, tx=tx, scale=1024.0))
    if kind == "numpy":
        found.append(_fault(kind, "batch changed", "batch", CLAIMS))
        return found
    for f, first in {
        "optax: applied twice": "2 times what the optimizer says",
        "optax: subtracted": "negative of what the optimizer says",
        "optax: one tensor not moved": "c\\b",
        "optax: gradients applied": "otherwise than the optimizer|times what",
        "optax: state not carried on": "state .* is not carried on",
    }.items():
        found.append(_fault(kind, f, first, {}, tx=tx))
    return found


def _fault(kind: str, name: str, first: str, claims: Any, **setup: Any) -> Fault:
    made: tuple[Callable[[], Training], ...] = tuple(
        Setup(fault=f, kind=kind, **setup) for f in (name, "")
    )
    return Fault(name, made[0], dict(claims), first, made[1])
