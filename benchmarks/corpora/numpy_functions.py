"""SciPy special functions and NumPy code with derivatives written by hand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from scipy import linalg, special

from corpora.case import Case

RNG = np.random.default_rng(0)
X = np.array([0.3, -0.7, 1.2, 2.1, -1.6])
P = np.array([0.4, 0.9, 1.7, 2.6, 4.2])
U = np.array([0.1, 0.35, 0.5, 0.72, 0.9])
A, B = RNG.normal(size=(4, 3)), RNG.normal(size=(3, 4))
S = RNG.normal(size=(4, 4))
PD = S @ S.T + 4 * np.eye(4)
SQUARE = S + 4 * np.eye(4)
LABELS = np.array([0, 2, 1, 0])

# name: (function, derivative, point), elementwise
SPECIAL: dict[str, tuple[Any, Any, np.ndarray]] = {
    "erf": (special.erf, lambda x: 2 / np.sqrt(np.pi) * np.exp(-(x**2)), X),
    "erfc": (special.erfc, lambda x: -2 / np.sqrt(np.pi) * np.exp(-(x**2)), X),
    "erfinv": (
        special.erfinv,
        lambda x: np.sqrt(np.pi) / 2 * np.exp(special.erfinv(x) ** 2),
        U - 0.5,
    ),
    "ndtr": (special.ndtr, lambda x: np.exp(-x * x / 2) / np.sqrt(2 * np.pi), X),
    "log_ndtr": (
        special.log_ndtr,
        lambda x: np.exp(-x * x / 2 - special.log_ndtr(x)) / np.sqrt(2 * np.pi),
        X,
    ),
    "ndtri": (
        special.ndtri,
        lambda x: np.sqrt(2 * np.pi) * np.exp(special.ndtri(x) ** 2 / 2),
        U,
    ),
    "gammaln": (special.gammaln, special.digamma, P),
    "gamma": (special.gamma, lambda x: special.gamma(x) * special.digamma(x), P),
    "digamma": (special.digamma, lambda x: special.polygamma(1, x), P),
    "expit": (special.expit, lambda x: special.expit(x) * special.expit(-x), X),
    "logit": (special.logit, lambda x: 1 / (x * (1 - x)), U),
    "log_expit": (special.log_expit, lambda x: special.expit(-x), X),
    "entr": (special.entr, lambda x: -np.log(x) - 1, P),
    "xlogy": (lambda x: special.xlogy(x, x), lambda x: np.log(x) + 1, P),
    "j0": (special.j0, lambda x: -special.j1(x), P),
    "j1": (special.j1, lambda x: special.j0(x) - special.j1(x) / x, P),
    "y0": (special.y0, lambda x: -special.y1(x), P),
    "i0": (special.i0, special.i1, X),
    "i0e": (special.i0e, lambda x: special.i1e(x) - special.i0e(x), P),
    "k0": (special.k0, lambda x: -special.k1(x), P),
    "airy": (lambda x: special.airy(x)[0], lambda x: special.airy(x)[1], X),
    "dawsn": (special.dawsn, lambda x: 1 - 2 * x * special.dawsn(x), X),
    "expi": (special.expi, lambda x: np.exp(x) / x, P),
    "exp1": (special.exp1, lambda x: -np.exp(-x) / x, P),
    "lambertw": (
        lambda x: special.lambertw(x).real,
        lambda x: special.lambertw(x).real / (x * (1 + special.lambertw(x).real)),
        P,
    ),
    "sinc": (
        np.sinc,
        lambda x: (np.cos(np.pi * x) - np.sinc(x)) / x,
        X,
    ),
    "betaln": (
        lambda x: special.betaln(x, 2.0),
        lambda x: special.digamma(x) - special.digamma(x + 2),
        P,
    ),
    "zeta": (lambda x: special.zeta(3.0, x), lambda x: -3 * special.zeta(4.0, x), P),
    "spence": (special.spence, lambda x: np.log(x) / (1 - x), P),
    "kl_div": (lambda x: special.kl_div(x, 1.3), lambda x: np.log(x / 1.3), P),
}


def special_cases(dtype: str) -> Iterator[Case]:
    """SciPy's special functions."""
    for name, (f, df, x) in SPECIAL.items():
        if dtype == "float64":
            yield Case(name, "numpy", dtype, f, [x], lambda w, x, df=df: [w * df(x)])


def softmax(x: np.ndarray) -> np.ndarray:
    """Row by row."""
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def layer_norm(x: np.ndarray) -> np.ndarray:
    """Row by row."""
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-3)


def _layer_norm_vjp(w: np.ndarray, x: np.ndarray) -> list[np.ndarray]:
    y, s = layer_norm(x), np.sqrt(x.var(-1, keepdims=True) + 1e-3)
    return [(w - w.mean(-1, keepdims=True) - y * (w * y).mean(-1, keepdims=True)) / s]


def _attention(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    return softmax(q @ k.T) @ v


def _attention_vjp(w: Any, q: Any, k: Any, v: Any) -> list[np.ndarray]:
    p = softmax(q @ k.T)
    dp = w @ v.T
    ds = p * (dp - (dp * p).sum(-1, keepdims=True))
    return [ds @ k, ds.T @ q, p.T @ w]


def _cell(x: np.ndarray, h: np.ndarray) -> np.ndarray:
    return np.tanh(x @ B) * special.expit(h)


def _cell_vjp(w: Any, x: Any, h: Any) -> list[np.ndarray]:
    a, s = np.tanh(x @ B), special.expit(h)
    return [(w * s * (1 - a**2)) @ B.T, w * a * s * (1 - s)]


def _convolution(x: np.ndarray, k: np.ndarray) -> np.ndarray:
    return np.convolve(x, k, "valid")


def _convolution_vjp(w: Any, x: Any, k: Any) -> list[np.ndarray]:
    return [np.convolve(w, k[::-1], "full"), np.convolve(x[::-1], w, "valid")]


def _distances(x: np.ndarray) -> np.ndarray:
    return np.exp(-((x[:, None] - x[None]) ** 2).sum(-1))


def _distances_vjp(w: Any, x: Any) -> list[np.ndarray]:
    m = (w + w.T) * _distances(x)
    return [-2 * (m.sum(1)[:, None] * x - m @ x)]


def _entropy(x: np.ndarray) -> np.ndarray:
    return -np.log(softmax(x)[np.arange(4), LABELS]).mean()


def _entropy_vjp(w: Any, x: Any) -> list[np.ndarray]:
    return [w * (softmax(x) - np.eye(3)[LABELS]) / 4]


def _pooled(x: np.ndarray) -> np.ndarray:
    return x.reshape(-1, 2).max(1)


def _pooled_vjp(w: Any, x: Any) -> list[np.ndarray]:
    pairs = x.reshape(-1, 2)
    return [(w[:, None] * (pairs == pairs.max(1, keepdims=True))).reshape(-1)]


def _inverse_vjp(w: Any, m: Any) -> list[np.ndarray]:
    i = np.linalg.inv(m)
    return [-(i.T @ w @ i.T)]


def _solve_vjp(w: Any, m: Any, b: Any) -> list[np.ndarray]:
    g = np.linalg.solve(m.T, w)
    return [-np.outer(g, np.linalg.solve(m, b)), g]


def _cholesky_vjp(w: Any, m: Any) -> list[np.ndarray]:
    low = np.linalg.cholesky(m @ m.T + np.eye(4))
    inner = np.tril(low.T @ w)
    inner[np.diag_indices(4)] /= 2
    half = linalg.solve_triangular(low.T, inner, lower=False)
    whole = linalg.solve_triangular(low.T, half.T, lower=False).T
    return [(whole + whole.T) @ m]


V = RNG.normal(size=8)
# name: (function, vjp, inputs)
WRITTEN: dict[str, tuple[Any, Any, list[np.ndarray]]] = {
    "linear": (lambda x, y: x @ y, lambda w, x, y: [w @ y.T, x.T @ w], [A, B]),
    "softmax": (
        softmax,
        lambda w, x: [softmax(x) * (w - (w * softmax(x)).sum(-1, keepdims=True))],
        [A],
    ),
    "cross entropy": (_entropy, _entropy_vjp, [A]),
    "layer norm": (layer_norm, _layer_norm_vjp, [A]),
    "attention": (_attention, _attention_vjp, [A, A[::-1] + 0.3, A * 0.7]),
    "gated cell": (_cell, _cell_vjp, [A, RNG.normal(size=(4, 4))]),
    "convolution": (_convolution, _convolution_vjp, [V, X[:3]]),
    "rbf kernel": (_distances, _distances_vjp, [A]),
    "max pooling": (_pooled, _pooled_vjp, [V]),
    "relu": (lambda x: np.maximum(x, 0), lambda w, x: [w * (x > 0)], [V]),
    "huber": (
        lambda x: np.where(np.abs(x) < 1, x * x / 2, np.abs(x) - 0.5).sum(),
        lambda w, x: [w * np.clip(x, -1, 1)],
        [V],
    ),
    "logsumexp": (special.logsumexp, lambda w, x: [w * special.softmax(x)], [V]),
    "inverse": (np.linalg.inv, _inverse_vjp, [SQUARE]),
    "log determinant": (
        lambda m: np.linalg.slogdet(m)[1],
        lambda w, m: [w * np.linalg.inv(m).T],
        [SQUARE],
    ),
    "solve": (np.linalg.solve, _solve_vjp, [SQUARE, RNG.normal(size=4)]),
    "cholesky": (
        lambda m: np.linalg.cholesky(m @ m.T + np.eye(4)),
        _cholesky_vjp,
        [S],
    ),
    "cumulative sum": (np.cumsum, lambda w, x: [np.cumsum(w[::-1])[::-1]], [V]),
    "power spectrum": (
        lambda x: np.abs(np.fft.fft(x)) ** 2,
        lambda w, x: [2 * len(x) * np.fft.ifft(w * np.fft.fft(x)).real],
        [V],
    ),
    "gaussian likelihood": (
        lambda m, s: (np.log(s) + ((P - m) / s) ** 2 / 2).sum(),
        lambda w, m, s: [w * (m - P) / s**2, w * (1 / s - (P - m) ** 2 / s**3)],
        [X, U + 0.5],
    ),
    "outer product": (np.outer, lambda w, a, b: [w @ b, w.T @ a], [X, P]),
    "norm": (np.linalg.norm, lambda w, x: [w * x / np.linalg.norm(x)], [V]),
    "product": (np.prod, lambda w, x: [w * np.prod(x) / x], [P]),
}


def written_cases(dtype: str) -> Iterator[Case]:
    """NumPy code as people write it."""
    for name, (f, vjp, inputs) in WRITTEN.items():
        if dtype == "float64":
            yield Case(name, "numpy", dtype, f, inputs, vjp)
