"""Slopes of losses of NumPy whose parameters are float32: a curved loss hides no wrong gradient."""

import numpy as np
import pytest

from pytest_gradcheck import Training, check_step


def training(seed, factor, dtype):
    """A step by hand, whose gradient of ``w`` is so many times the right one."""

    def build():
        rng = np.random.default_rng(seed)
        params = {
            "v": (3 * rng.normal(size=(4, 6))).astype(dtype),
            "w": (3 * rng.normal(size=(6, 2))).astype(dtype),
        }
        batches = [tuple(rng.normal(size=(8, n)).astype(dtype) for n in (4, 2)) for _ in range(3)]

        def loss(params, batch):
            hidden = np.sin(3 * batch[0] @ params["v"])
            return np.mean((hidden @ np.sin(params["w"]) - batch[1]) ** 2)

        def grad(params, batch):
            inner = 3 * batch[0] @ params["v"]
            hidden = np.sin(inner)
            rest = 2 * (hidden @ np.sin(params["w"]) - batch[1]) / batch[1].size
            dv = 3 * batch[0].T @ ((rest @ np.sin(params["w"]).T) * np.cos(inner))
            dw = factor * (hidden.T @ rest) * np.cos(params["w"])
            return {"v": dv.astype(dtype), "w": dw.astype(dtype)}

        def step(params, state, batch):
            grads = grad(params, batch)
            return {k: (x - 1e-3 * grads[k]).astype(dtype) for k, x in params.items()}, state

        return Training(
            step=step, loss=loss, batches=batches, params=params, opt_state=None, grad=grad
        )

    return build


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("factor", [1.0, 0.9])
@pytest.mark.parametrize("seed", range(5))
def test_a_wrong_gradient_by_hand(seed, factor, dtype):
    result = check_step(training(seed, factor, dtype), optimizer="sgd", lr=1e-3)
    assert result.verdict == ("pass" if factor == 1 else "fail"), result.headline
    assert factor == 1 or (result.findings[0].code, result.headline.count(" in w")) == (
        "step-slope",
        1,
    )
