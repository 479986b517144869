"""A small network of NumPy with its gradient by hand."""

import numpy as np


def gradient(p, batch):
    x, y = batch
    h = np.tanh(x @ p["w"] + p["b"])
    r = 2 * (h @ p["v"] - y) / y.size
    d = (r @ p["v"].T) * (1 - h**2)
    return {"w": x.T @ d, "b": d.sum(0), "v": h.T @ r}


def loss(p, batch):
    x, y = batch
    return np.mean((np.tanh(x @ p["w"] + p["b"]) @ p["v"] - y) ** 2)
