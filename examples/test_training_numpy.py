"""Training by hand in NumPy: backward, clip and Adam all written out.

The optimizer is claimed by its name; what it received is read from its first moment.
"""

import numpy as np

from pytest_gradcheck import Training


def forward(params, x):
    return np.tanh(x @ params["w1"] + params["b1"])


def loss(params, batch):
    x, y = batch
    return np.mean((forward(params, x) @ params["w2"] - y) ** 2)


def backward(params, batch):
    x, y = batch
    hidden = forward(params, x)
    error = 2 * (hidden @ params["w2"] - y) / y.size
    inner = (error @ params["w2"].T) * (1 - hidden**2)
    return {"w1": x.T @ inner, "b1": inner.sum(axis=0), "w2": hidden.T @ error}


def clip(grads, max_norm):
    norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
    scale = max_norm / norm if norm > max_norm else 1.0
    return {name: scale * g for name, g in grads.items()}, norm


def adam(params, state, grads, lr=0.01, betas=(0.9, 0.999), eps=1e-8):
    t = state["t"] + 1
    new, m, v = {}, {}, {}
    for name, g in grads.items():
        m[name] = betas[0] * state["m"][name] + (1 - betas[0]) * g
        v[name] = betas[1] * state["v"][name] + (1 - betas[1]) * g**2
        m_hat, v_hat = m[name] / (1 - betas[0] ** t), v[name] / (1 - betas[1] ** t)
        new[name] = params[name] - lr * m_hat / (np.sqrt(v_hat) + eps)
    return new, {"t": t, "m": m, "v": v}


def training():
    rng = np.random.default_rng(0)
    params = {
        "w1": rng.normal(size=(5, 6)),
        "b1": np.zeros(6),
        "w2": rng.normal(size=(6, 1)),
    }
    batches = [(rng.normal(size=(n, 5)), rng.normal(size=(n, 1))) for n in (16, 16, 7)]

    def step(params, state, batch):
        grads, _ = clip(backward(params, batch), 0.5)
        return adam(params, state, grads)

    def zeros():
        return {name: np.zeros_like(x) for name, x in params.items()}

    state = {"t": 0, "m": zeros(), "v": zeros()}
    return Training(step=step, loss=loss, batches=batches, params=params, opt_state=state)


def test_step(gradstep):
    gradstep(training, optimizer="adam", lr=0.01, max_norm=0.5)


def test_clip(gradclip):
    gradclip(clip, max_norm=0.5)


def test_backward(gradcheck):
    start = training()
    gradcheck(loss, start.params, start.batches[0], wrt="params", grad=backward)
