"""Update rules of optimizers, one tensor at a time, in float64: the oracle that a step is held to.

A rule takes a gradient, the parameter, its own state (a dictionary of arrays that it returns anew),
the number of the update (from 1) and hyperparameters, and returns the update without decoupled
decay. Switches among the hyperparameters (``eps_in``, ``correct``, ...) make the named variants of
``variants.py``; their defaults are the published algorithms as PyTorch implements them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from pytest_gradcheck.numerics.orthogonal import orthogonal

State = dict[str, np.ndarray]
Hyper = Mapping[str, Any]
Rule = Callable[[np.ndarray, np.ndarray, State, int, Hyper], "tuple[np.ndarray, State]"]


def sgd(g: np.ndarray, x: np.ndarray, s: State, t: int, h: Hyper) -> tuple[np.ndarray, State]:
    """Stochastic gradient descent with momentum (Sutskever et al. 2013, equations 1 to 4)."""
    momentum = h.get("momentum") or 0.0
    if not momentum:
        return -h["lr"] * g, s
    dampening = h.get("dampening") or 0.0
    first = g if h.get("undampened", True) else (1 - dampening) * g
    buffer = momentum * s["b"] + (1 - dampening) * g if "b" in s else first
    used = g + momentum * buffer if h.get("nesterov") else buffer
    return -h["lr"] * used, {"b": buffer}


def _moments(
    g: np.ndarray, s: State, h: Hyper, power: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    b1, b2 = h["betas"]
    m = h.get("weight", 1 - b1) * g
    v = g * g if power is None else power.copy()
    v *= 1 - b2  # in place, or most of the time is spent on memory
    if "m" in s and "v" in s:
        m += b1 * s["m"]
        v += b2 * s["v"]
    return m, v


def _root(v: np.ndarray, correction: float, h: Hyper) -> np.ndarray:
    """The denominator: the root of the corrected second moment, and eps where it stands."""
    eps = h["eps"]
    where = h.get("eps_in", "outside")
    power = h.get("power", 0.5)
    root: np.ndarray
    if where == "inside":
        root = (v / correction + eps) ** power
    elif where == "scaled":  # added before the correction of the bias
        root = (v**power + eps) / correction**power
    else:
        root = v / correction
        root **= power
        root += eps
    return root


def _corrections(t: int, h: Hyper) -> tuple[float, float]:
    b1, b2 = h["betas"]
    t = t + int(h.get("late", 0))
    c1, c2 = 1 - b1**t, 1 - b2**t
    kind = h.get("correct", "both")
    if kind in ("none", "second"):
        c1 = 1.0
    if kind in ("none", "first"):
        c2 = 1.0
    if kind == "multiplied":
        c1, c2 = 1 / c1, 1 / c2
    return (c1 or 1e-300), (c2 or 1e-300)


def adam(g: np.ndarray, x: np.ndarray, s: State, t: int, h: Hyper) -> tuple[np.ndarray, State]:
    """Adam (Kingma and Ba 2015, algorithm 1); AMSGrad (Reddi et al. 2018) with ``amsgrad``."""
    m, v = _moments(g, s, h)
    if h.get("stale"):  # the moments before this gradient
        m_used, v_used = s.get("m", np.zeros_like(g)), v
    elif h.get("early"):
        m_used, v_used = m, s.get("v", v)
    else:
        m_used, v_used = m, v
    c1, c2 = _corrections(t, h)
    state = {"m": m, "v": v}
    if h.get("amsgrad"):
        corrected = h.get("amsgrad") == "corrected"
        largest = np.maximum(s.get("x", np.zeros_like(v)), v / c2 if corrected else v)
        state["x"], v_used = largest, largest
        c2 = 1.0 if corrected else c2
    if h.get("nesterov") == "optax":
        b1 = h["betas"][0]
        m_hat = b1 * m / (1 - b1 ** (t + 1)) + (1 - b1) * g / (1 - b1**t)
        return -h["lr"] * m_hat / _root(v_used, c2, h), state
    update = (-h["lr"] / c1) * m_used
    update /= _root(v_used, c2, h)
    return update, state


def adamax(g: np.ndarray, x: np.ndarray, s: State, t: int, h: Hyper) -> tuple[np.ndarray, State]:
    """Adamax (Kingma and Ba 2015, algorithm 2)."""
    b1, b2 = h["betas"]
    m = b1 * s.get("m", np.zeros_like(g)) + (1 - b1) * g
    u = np.maximum(b2 * s.get("u", np.zeros_like(g)), np.abs(g) + h["eps"])
    c1 = _corrections(t, h)[0]
    return -h["lr"] * m / c1 / u, {"m": m, "u": u}


def nadam(g: np.ndarray, x: np.ndarray, s: State, t: int, h: Hyper) -> tuple[np.ndarray, State]:
    """Adam with Nesterov momentum (Dozat 2016), with PyTorch's schedule of the momentum."""
    b1, b2 = h["betas"]
    decay = h.get("momentum_decay", 4e-3)
    mu, ahead = (b1 * (1 - 0.5 * 0.96 ** (n * decay)) for n in (t, t + 1))
    product = float(s.get("p", np.ones(()))) * mu
    m, v = _moments(g, s, h)
    root = _root(v, 1 - b2**t, h)
    update = (1 - mu) / (1 - product) * g + ahead / (1 - product * ahead) * m
    return -h["lr"] * update / root, {"m": m, "v": v, "p": np.array(product)}


def radam(g: np.ndarray, x: np.ndarray, s: State, t: int, h: Hyper) -> tuple[np.ndarray, State]:
    """Rectified Adam (Liu et al. 2020, algorithm 2)."""
    b1, b2 = h["betas"]
    m, v = _moments(g, s, h)
    limit = 2 / (1 - b2) - 1
    length = limit - 2 * t * b2**t / (1 - b2**t)
    m_hat = m / (1 - b1**t)
    if length <= h.get("threshold", 5.0):
        return -h["lr"] * m_hat, {"m": m, "v": v}
    rectified = math.sqrt(
        (length - 4) * (length - 2) * limit / ((limit - 4) * (limit - 2) * length)
    )
    if h.get("eps_in") == "corrected":
        root = np.sqrt(v / (1 - b2**t)) + h["eps"]
    else:
        root = (np.sqrt(v) + h["eps"]) / math.sqrt(1 - b2**t)
    return -h["lr"] * rectified * m_hat / root, {"m": m, "v": v}


def rmsprop(g: np.ndarray, x: np.ndarray, s: State, t: int, h: Hyper) -> tuple[np.ndarray, State]:
    """RMSprop (Hinton 2012, lecture 6e), centered and with momentum where asked for."""
    alpha = h["alpha"]
    start = np.full_like(g, h.get("initial", 0.0))
    v = alpha * s.get("v", start) + (1 - alpha) * g * g
    state: State = {"v": v}
    if h.get("centered"):
        state["a"] = alpha * s.get("a", np.zeros_like(g)) + (1 - alpha) * g
        v = v - state["a"] ** 2
    update = g / _root(v, 1.0, h)
    if h.get("momentum"):
        update = h["momentum"] * s.get("b", np.zeros_like(g)) + update
        state["b"] = update
    return -h["lr"] * update, state


def adagrad(g: np.ndarray, x: np.ndarray, s: State, t: int, h: Hyper) -> tuple[np.ndarray, State]:
    """Adagrad (Duchi, Hazan and Singer 2011, figure 1)."""
    start = np.full_like(g, h.get("initial_accumulator_value", 0.0))
    total = s.get("v", start) + g * g
    rate = h["lr"] / (1 + (t - 1) * (h.get("lr_decay") or 0.0))
    return -rate * g / _root(total, 1.0, h), {"v": total}


def adadelta(g: np.ndarray, x: np.ndarray, s: State, t: int, h: Hyper) -> tuple[np.ndarray, State]:
    """Adadelta (Zeiler 2012, algorithm 1)."""
    rho, eps = h["rho"], h["eps"]
    v = rho * s.get("v", np.zeros_like(g)) + (1 - rho) * g * g
    moved = s.get("d", np.zeros_like(g))
    delta = np.sqrt(moved + eps) / np.sqrt(v + eps) * g
    return -h["lr"] * delta, {"v": v, "d": rho * moved + (1 - rho) * delta**2}


def lion(g: np.ndarray, x: np.ndarray, s: State, t: int, h: Hyper) -> tuple[np.ndarray, State]:
    """Lion (Chen et al. 2023, algorithm 2)."""
    b1, b2 = h["betas"]
    m = s.get("m", np.zeros_like(g))
    return -h["lr"] * np.sign(b1 * m + (1 - b1) * g), {"m": b2 * m + (1 - b2) * g}


def _trust(x: np.ndarray, u: np.ndarray) -> float:
    size, other = float(np.linalg.norm(x)), float(np.linalg.norm(u))
    return size / other if size > 0 and other > 0 else 1.0


def lamb(g: np.ndarray, x: np.ndarray, s: State, t: int, h: Hyper) -> tuple[np.ndarray, State]:
    """LAMB (You et al. 2020, algorithm 2); its decay stands inside the trust ratio."""
    update, state = adam(g, x, s, t, {**h, "lr": -1.0})
    update = update + (h.get("inner_decay") or 0.0) * x
    return -h["lr"] * _trust(x, update) * update, state


def lars(g: np.ndarray, x: np.ndarray, s: State, t: int, h: Hyper) -> tuple[np.ndarray, State]:
    """LARS (You, Gitman and Ginsburg 2017, algorithm 1), decay inside the ratio."""
    g = g + (h.get("inner_decay") or 0.0) * x
    update = -h["lr"] * h.get("trust_coefficient", 1e-3) * _trust(x, g) * g
    momentum = h.get("momentum") or 0.0
    buffer = update + momentum * s.get("b", np.zeros_like(g))
    used = update + momentum * buffer if h.get("nesterov") else buffer
    return used, {"b": buffer}


def muon(g: np.ndarray, x: np.ndarray, s: State, t: int, h: Hyper) -> tuple[np.ndarray, State]:
    """Muon (Jordan et al. 2024): momentum, orthogonalised by five Newton-Schulz steps."""
    momentum = h.get("momentum", 0.95)
    buffer = momentum * s.get("b", np.zeros_like(g)) + (1 - momentum) * g
    used = (1 - momentum) * g + momentum * buffer if h.get("nesterov", True) else buffer
    scale = {
        "match_rms_adamw": 0.2 * math.sqrt(max(g.shape)),
        "original": math.sqrt(max(1.0, g.shape[0] / g.shape[1])),
    }
    rate = h["lr"] * scale[h.get("adjust_lr_fn") or "original"]
    return -rate * orthogonal(used, h), {"b": buffer}


RULES: dict[str, Rule] = {
    "sgd": sgd,
    "adam": adam,
    "adamw": adam,
    "adamax": adamax,
    "nadam": nadam,
    "nadamw": nadam,
    "radam": radam,
    "rmsprop": rmsprop,
    "adagrad": adagrad,
    "adadelta": adadelta,
    "lion": lion,
    "lamb": lamb,
    "lars": lars,
    "muon": muon,
}
# Where the decay of an optimizer stands, unless its own hyperparameters say otherwise.
DECAY = {"adamw": "decoupled", "nadamw": "decoupled", "lion": "decoupled", "muon": "decoupled"}
DECAY |= {"lamb": "inner", "lars": "inner"}
DEFAULTS: dict[str, dict[str, Any]] = {
    "sgd": {"lr": 1e-3, "momentum": 0.0},
    "adam": {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8},
    "adamw": {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8},
    "adamax": {"lr": 2e-3, "betas": (0.9, 0.999), "eps": 1e-8},
    "nadam": {"lr": 2e-3, "betas": (0.9, 0.999), "eps": 1e-8},
    "nadamw": {"lr": 2e-3, "betas": (0.9, 0.999), "eps": 1e-8},
    "radam": {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8},
    "rmsprop": {"lr": 1e-2, "alpha": 0.99, "eps": 1e-8},
    "adagrad": {"lr": 1e-2, "eps": 1e-10},
    "adadelta": {"lr": 1.0, "rho": 0.9, "eps": 1e-6},
    "lion": {"lr": 1e-4, "betas": (0.9, 0.99)},
    "lamb": {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-6},
    "lars": {"lr": 1e-3, "momentum": 0.9},
    "muon": {"lr": 1e-3, "momentum": 0.95},
}
# Rules that look at a tensor as a whole; the others take each element by itself.
WHOLE = frozenset({"lamb", "lars", "muon"})
# Muon orthogonalises in bfloat16, of which each machine sums and rounds a little otherwise.
COARSE = {"muon": 0.15}


def replayed(
    name: str, g: np.ndarray, x: np.ndarray, s: State, t: int, h: Hyper
) -> tuple[np.ndarray, State]:
    """The whole update of one tensor, decay included, and the new state.

    Args:
        name: A name of ``RULES``.
        g: Gradient.
        x: Parameter before.
        s: State before.
        t: Number of the update, from 1.
        h: Hyperparameters. ``decay`` says where the decay stands: ``coupled`` (in the gradient),
            ``decoupled`` (Loshchilov and Hutter 2019), ``after`` (on what is updated already),
            ``unscaled`` (not times the learning rate), ``none``.
    """
    rate, decay = h.get("weight_decay") or 0.0, h.get("decay", DECAY.get(name, "coupled"))
    g = -g if h.get("maximize") else g
    if decay == "coupled" and rate:
        g = g + rate * x
    if decay == "inner":
        h = {**h, "inner_decay": rate}
    update, state = RULES[name](g, x, s, t, h)
    update = update * h["times"] if "times" in h else update
    if decay == "decoupled":
        update = update - h["lr"] * rate * x
    elif decay == "after":
        update = update - h["lr"] * rate * (x + update)
    elif decay == "unscaled":
        update = update - rate * x
    elif decay == "added":
        update = update + h["lr"] * rate * x
    return update, state
