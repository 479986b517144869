"""How honest the reference is: bounds against true errors, stated misses, scales, kinks.

Run: ``python benchmarks/reference.py``; one thread. SciPy's ``differentiate.derivative`` and its
error estimate get the same functions and points in the same run.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from scipy import differentiate, special

from pytest_gradcheck import check_gradient
from pytest_gradcheck.backends.numpy import BACKEND
from pytest_gradcheck.checks.bind import bind
from pytest_gradcheck.checks.cost import Cost
from pytest_gradcheck.checks.derivative import HandGrad
from pytest_gradcheck.checks.point import start
from pytest_gradcheck.numerics.power import miss_probability, visible_error

POINTS = 64

# name: (function, derivative in float64, smallest and largest |x|, both signs)
FUNCTIONS: dict[str, tuple[Any, Any, float, float, bool]] = {
    "exp": (np.exp, np.exp, 0.01, 20, True),
    "log": (np.log, lambda x: 1 / x, 0.01, 100, False),
    "sin": (np.sin, np.cos, 0.01, 50, True),
    "cos": (np.cos, lambda x: -np.sin(x), 0.01, 50, True),
    "tan": (np.tan, lambda x: 1 / np.cos(x) ** 2, 0.01, 1.5, True),
    "sin 100 x": (lambda x: np.sin(100 * x), lambda x: 100 * np.cos(100 * x), 0.01, 3, True),
    "x^2": (lambda x: x * x, lambda x: 2 * x, 0.01, 100, True),
    "x^5": (lambda x: x**5, lambda x: 5 * x**4, 0.01, 10, True),
    "1/x": (lambda x: 1 / x, lambda x: -1 / x**2, 0.01, 100, True),
    "1/(1+x^2)": (lambda x: 1 / (1 + x * x), lambda x: -2 * x / (1 + x * x) ** 2, 0.01, 50, True),
    "sqrt": (np.sqrt, lambda x: 0.5 / np.sqrt(x), 0.01, 100, False),
    "cbrt": (np.cbrt, lambda x: 1 / (3 * np.cbrt(x) ** 2), 0.01, 100, True),
    "x^1.5": (lambda x: x**1.5, lambda x: 1.5 * np.sqrt(x), 0.01, 100, False),
    "tanh": (np.tanh, lambda x: 1 / np.cosh(x) ** 2, 0.01, 8, True),
    "sigmoid": (special.expit, lambda x: special.expit(x) * special.expit(-x), 0.01, 20, True),
    "softplus": (lambda x: np.logaddexp(x, 0 * x), special.expit, 0.01, 20, True),
    "silu": (
        lambda x: x * special.expit(x),
        lambda x: special.expit(x) * (1 + x * special.expit(-x)),
        0.01,
        20,
        True,
    ),
    "erf": (special.erf, lambda x: 2 / math.sqrt(math.pi) * np.exp(-x * x), 0.01, 3, True),
    "erfc": (special.erfc, lambda x: -2 / math.sqrt(math.pi) * np.exp(-x * x), 0.01, 5, True),
    "gelu": (
        lambda x: x * special.ndtr(x),
        lambda x: special.ndtr(x) + x * np.exp(-x * x / 2) / math.sqrt(2 * math.pi),
        0.01,
        8,
        True,
    ),
    "gauss": (lambda x: np.exp(-x * x), lambda x: -2 * x * np.exp(-x * x), 0.01, 4, True),
    "atan": (np.arctan, lambda x: 1 / (1 + x * x), 0.01, 50, True),
    "asinh": (np.arcsinh, lambda x: 1 / np.sqrt(1 + x * x), 0.01, 50, True),
    "asin": (np.arcsin, lambda x: 1 / np.sqrt(1 - x * x), 0.01, 0.95, True),
    "atanh": (np.arctanh, lambda x: 1 / (1 - x * x), 0.01, 0.95, True),
    "cosh": (np.cosh, np.sinh, 0.01, 10, True),
    "log1p": (np.log1p, lambda x: 1 / (1 + x), 0.01, 100, False),
    "expm1": (np.expm1, np.exp, 0.01, 20, True),
    "x exp(-x)": (lambda x: x * np.exp(-x), lambda x: (1 - x) * np.exp(-x), 0.01, 10, True),
    "x log x": (lambda x: x * np.log(x), lambda x: np.log(x) + 1, 0.01, 50, False),
    "x sin x": (lambda x: x * np.sin(x), lambda x: np.sin(x) + x * np.cos(x), 0.01, 30, True),
    "sin(x)/x": (
        lambda x: np.sin(x) / x,
        lambda x: (x * np.cos(x) - np.sin(x)) / x**2,
        0.3,
        30,
        True,
    ),
    "exp(sin)": (
        lambda x: np.exp(np.sin(x)),
        lambda x: np.cos(x) * np.exp(np.sin(x)),
        0.01,
        9,
        True,
    ),
    "gamma": (special.gamma, lambda x: special.gamma(x) * special.digamma(x), 0.1, 12, False),
    "log gamma": (special.gammaln, special.digamma, 0.1, 50, False),
    "digamma": (special.digamma, lambda x: special.polygamma(1, x), 0.1, 50, False),
    "j0": (special.j0, lambda x: -special.j1(x), 0.1, 30, False),
    "i0e": (special.i0e, lambda x: special.i1e(x) - special.i0e(x), 0.1, 30, False),
    "1e3 + sin": (lambda x: 1000 + np.sin(x), np.cos, 0.01, 10, True),
    "1e6 + x^2": (lambda x: 1e6 + x * x, lambda x: 2 * x, 1, 100, True),
}


def points(low: float, high: float, signed: bool) -> np.ndarray:
    """Points in geometric progression, of alternating sign where both are allowed."""
    sizes = np.geomspace(low, high, POINTS)
    return np.where(np.arange(POINTS) % 2, -sizes, sizes) if signed else sizes


def in_dtype(f: Callable[..., Any], dtype: Any) -> Callable[..., Any]:
    """The function with its value rounded to a precision, as NumPy code in it would be."""
    return lambda x: np.asarray(f(x)).astype(dtype)


def bounds(dtype: Any) -> Iterator[tuple[str, float, float, float]]:
    """Name, true error, bound and size of the derivative for every function and point."""
    one = [np.asarray(1.0, dtype=dtype)]
    for name, (f, df, low, high, signed) in FUNCTIONS.items():
        for x in points(low, high, signed).astype(dtype):
            problem = bind(in_dtype(f, dtype), (x,), {})
            with BACKEND.guard() as guard:
                probe = start(problem, HandGrad(df), guard, Cost())
                direction = probe.direction(0, {0: 1.0})
                line = probe.along(direction, [one], probe.floor([one]))
            true = float(df(np.float64(x))) * float(direction[0])
            found = line.estimate
            yield name, abs(float(found.value[0]) - true), float(found.bound[0]), abs(true)


def scipy_bounds() -> Iterator[tuple[str, float, float, float]]:
    """The same from SciPy's derivative and its error estimate, in float64."""
    for name, (f, df, low, high, signed) in FUNCTIONS.items():
        x = points(low, high, signed)
        found = differentiate.derivative(lambda t, f=f: np.asarray(f(t)), x)
        for value, error, true in zip(found.df, found.error, df(x), strict=True):
            yield name, abs(value - true), error, abs(true)


def coverage() -> None:
    """Table: how often the true error is inside the bound."""
    print("| bound | inside | median bound / derivative | no answer | worst |")
    print("|---|---|---|---|---|")
    rows = {
        "ours, float64": list(bounds(np.float64)),
        "ours, float32 (native)": list(bounds(np.float32)),
        "scipy.differentiate.derivative, float64": list(scipy_bounds()),
    }
    for title, cases in rows.items():
        known = [case for case in cases if math.isfinite(case[2])]
        # What the true derivative itself is rounded by is not the reference's error.
        inside = [c for c in known if c[1] <= c[2] + 4 * 2.0**-52 * c[3]]
        outside = [c[0] for c in known if c not in inside]
        worst = max(set(outside), key=outside.count, default="-")
        relative = float(np.median([c[2] / c[3] for c in known if c[3]]))
        print(
            f"| {title} | {len(inside)} of {len(known)} ({len(inside) / len(known):.2%}) | "
            f"{relative:.1e} | {len(cases) - len(known)} | {worst} ({outside.count(worst)}) |"
        )


def misses() -> None:
    """Table: stated probability of a miss against simulation."""
    print("\n| directions | stated | simulated | ratio |\n|---|---|---|---|")
    rng = np.random.default_rng(0)
    for count in (1, 2, 4, 8):
        hidden = list(rng.uniform(0.5, 2.0, count))
        error = visible_error(hidden, 1e-2)
        stated = miss_probability(hidden, error)
        shown = np.abs(rng.standard_normal((8_000_000 // count, count))) * error
        simulated = float((shown <= hidden).all(axis=1).mean())
        print(f"| {count} | {stated:.5f} | {simulated:.5f} | {simulated / stated:.3f} |")


SCALES = (1e-12, 1e-6, 1.0, 1e6, 1e12)
SMOOTH: dict[str, tuple[Any, Any]] = {
    "sum of squares": (lambda x: x @ x, lambda x: 2 * x),
    "sum of sines": (lambda x: np.sin(x).sum(), np.cos),
    "log-sum-exp": (special.logsumexp, special.softmax),
    "norm": (lambda x: np.sqrt(x @ x), lambda x: x / np.sqrt(x @ x)),
    "log of sum of squares": (lambda x: np.log(x @ x), lambda x: 2 * x / (x @ x)),
    "product": (np.prod, lambda x: np.prod(x) / x),
}
WRONG: dict[str, Callable[[Any], Any]] = {
    "right": lambda g: g,
    "zero": lambda g: 0 * g,
    "1 %": lambda g: 1.01 * g,
    "1e-5": lambda g: (1 + 1e-5) * g,
    "one element": lambda g: g * np.where(np.arange(len(g)) == 2, 1.5, 1.0),
}


def scaling() -> None:
    """Table: verdicts of c f(x / s) over all scales, for right and wrong gradients."""
    print("\n| gradient | same verdict at every scale | verdict |\n|---|---|---|")
    x = np.array([0.7, -0.4, 1.3, 0.9, -1.1])
    for kind, wrong in WRONG.items():
        same, verdicts = 0, []
        for f, g in SMOOTH.values():
            found = [_scaled(f, g, wrong, x, c, s) for c in SCALES for s in SCALES]
            same += sum(verdict == found[12] for verdict in found)
            verdicts += found
        named = ", ".join(f"{verdicts.count(v)} {v}" for v in sorted(set(verdicts)))
        print(f"| {kind} | {same} of {len(verdicts)} | {named} |")


def _scaled(f: Any, g: Any, wrong: Any, x: np.ndarray, c: float, s: float) -> str:
    return check_gradient(
        lambda t: c * f(t / s), x * s, grad=lambda t: wrong(c / s * g(t / s)), seed=1
    ).verdict


def kinked(seed: int) -> Iterator[tuple[str, Any, torch.Tensor]]:
    """Functions at points with kinks or near them, all differentiated by torch itself."""
    torch.manual_seed(seed)
    width = (100, 1_000, 10_000, 100_000)[seed % 4]
    w, v = torch.randn(width, 3).double(), torch.randn(width).double() / width**0.5
    few = torch.tensor([0.0, 1.0, -1.0, 0.0, 2.0, 2.0]).double()
    noise = torch.randn(6).double()
    yield f"relu layer, width {width}", lambda x: torch.relu(w @ x) @ v, torch.randn(3).double()
    yield f"abs layer, width {width}", lambda x: (w @ x).abs() @ v, torch.randn(3).double()
    yield "relu at zeros", torch.relu, few
    yield "leaky relu at zeros", torch.nn.functional.leaky_relu, few
    yield "abs at zeros", torch.abs, few
    yield "clamp at its ends", lambda x: x.clamp(-1, 1), few
    yield "max of ties", lambda x: x.max(), few
    yield "amax of ties", lambda x: x.amax(), few
    yield "sort of ties", lambda x: torch.sort(x, stable=True).values * noise, few
    yield "median of ties", lambda x: x.median(), few
    yield "maximum of equals", lambda x: torch.maximum(x, noise), noise.clone()
    yield "max pooling of ties", lambda x: torch.nn.functional.max_pool1d(x[None], 2), few
    yield "hardtanh", torch.nn.functional.hardtanh, few
    yield "huber at its edge", lambda x: torch.nn.functional.huber_loss(x, 0 * x), few
    yield "where", lambda x: torch.where(x > 0, x * x, -x), few
    yield "l1 norm at zeros", lambda x: x.norm(1), few
    yield "top-k of ties", lambda x: x.topk(2).values.sum() + x.sum(), few
    yield "hinge", lambda x: torch.relu(1 - x).sum(), few
    yield "cummax of ties", lambda x: x.cummax(0).values, few
    yield "logsumexp of max", lambda x: torch.logsumexp(torch.maximum(x, noise), 0), noise


class Scaled(torch.autograd.Function):
    """The identity with a gradient that is 5 % too large."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:  # the interface
        return x.clone()

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> torch.Tensor:  # is torch's own
        return 1.05 * g


def kinks(rounds: int = 50) -> None:
    """Table: verdicts on right and on wrong gradients of kinked functions."""
    print("\n| kinked functions | pass | fail | undecided | vacuous |\n|---|---|---|---|---|")
    for title, wrong in (("right", False), ("5 % wrong", True)):
        found: list[str] = []
        for seed in range(rounds):
            for name, f, x in kinked(seed):
                g = (lambda x, f=f: f(Scaled.apply(x))) if wrong else f
                verdict = check_gradient(g, x, seed=seed).verdict
                found.append(verdict)
                if verdict != ("fail" if wrong else "pass"):
                    print(f"<!-- {title}: {name}, seed {seed}: {verdict} -->")
        counts = [found.count(v) for v in ("pass", "fail", "undecided", "vacuous")]
        print(f"| {len(found)} {title} | " + " | ".join(map(str, counts)) + " |")


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    np.seterr(all="ignore")
    coverage()
    misses()
    scaling()
    kinks()


if __name__ == "__main__":
    main()
