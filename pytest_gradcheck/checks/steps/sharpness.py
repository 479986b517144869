"""How sharp the loss is where the training starts: reported, never failed on.

Power iteration on the Hessian by differences of gradients. Gradient descent is stable below
``lr * largest eigenvalue = 2``, and training at large hovers there (Cohen et al. 2021).
"""

from __future__ import annotations

import numpy as np

from pytest_gradcheck.checks.steps.expected import flat
from pytest_gradcheck.checks.steps.measure import Run, Window
from pytest_gradcheck.numerics import clipping, precision
from pytest_gradcheck.results import Finding

PRODUCTS = 3  # within 10 % of the largest eigenvalue on small networks


def finding(run: Run, window: Window) -> Finding | None:
    """The largest eigenvalue, alone and times the learning rate; None where it cannot be had."""
    start = flat(window.micro[0], window.at)
    direction = start
    eigenvalue = 0.0
    dtype = run.coarsest
    if dtype in ("float16", "bfloat16"):
        return None
    h = precision.epsilon(dtype) ** 0.5 * max(clipping.norm(window.at, 2), 1.0) * 10
    for _ in range(PRODUCTS):
        size = float(np.linalg.norm(direction))
        if not size or not np.isfinite(size):
            return None
        direction = direction / size
        moved = [
            x + h * v for x, v in zip(window.at, clipping.split(direction, window.at), strict=True)
        ]
        _, grads = run.loop.gradient(window.batches[0], moved, window.marks[0])
        product = (flat(grads, window.at) - start) / h
        eigenvalue = float(np.vdot(direction, product))
        direction = product
    rates = [h_["lr"] for u in window.updates for h_ in u.hyper if h_.get("lr")]
    rate = max(rates, default=float("nan"))
    told = f"lr times it is {rate * eigenvalue:.3g}" if rates else "the learning rate is unknown"
    return Finding(
        code="step-sharpness",
        severity="note",
        message=f"the largest eigenvalue of the Hessian is about {eigenvalue:.3g} at the start; "
        f"{told} (plain gradient descent is stable below 2)",
        numbers=(("eigenvalue", eigenvalue), ("product", rate * eigenvalue)),
    )
