"""NumPy steps whose dictionaries have their keys in another order than the parameters."""

import numpy as np
import pytest

from pytest_gradcheck import Training, check_step


def training(momentum, factor, has_grad):
    rng = np.random.default_rng(0)
    params = {"b": np.zeros(3), "w": rng.normal(size=(4, 3)), "a": np.ones(3)}
    batches = [(rng.normal(size=(n, 4)), rng.normal(size=(n, 3))) for n in (8, 5, 8)]

    def loss(params, batch):
        x, y = batch
        return np.mean((np.tanh(x @ params["w"]) * params["a"] + params["b"] - y) ** 2)

    def grad(params, batch):
        x, y = batch
        t = np.tanh(x @ params["w"])
        r = 2 * (t * params["a"] + params["b"] - y) / y.size
        inner = r * params["a"] * (1 - t * t)
        return {"a": (r * t).sum(axis=0), "w": x.T @ inner, "b": r.sum(axis=0)}

    def step(params, state, batch):
        grads = {name: factor * g for name, g in grad(params, batch).items()}
        velocity = {name: momentum * state["v"][name] + g for name, g in grads.items()}
        return {n: params[n] - 0.1 * v for n, v in velocity.items()}, {"v": velocity}

    return Training(
        step=step,
        loss=loss,
        batches=batches,
        params=params,
        opt_state={"v": {name: 0 * params[name] for name in ("a", "w", "b")}},
        grad=grad if has_grad else None,
    )


@pytest.mark.parametrize("has_grad", [True, False])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_keys_count_by_their_names(momentum, has_grad):
    claims = {"optimizer": "sgd", "lr": 0.1} | ({"momentum": momentum} if momentum else {})
    result = check_step(lambda: training(momentum, 1.0, has_grad), **claims)
    assert result.verdict == "pass", result.headline
    wrong = check_step(lambda: training(momentum, 2.0, has_grad), **claims)
    assert "2 times the right one" in wrong.headline
