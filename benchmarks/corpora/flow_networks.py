"""AutoTrainer's networks written for each backend, from the same weights and data."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  # as PyTorch writes it
from torch import Tensor, nn

from corpora import autotrainer
from corpora.autotrainer import Network

TINY = 1e-7  # Keras keeps probabilities this far from 0 and 1


class TorchNetwork(nn.Module):
    """One network as a module, activations as functions."""

    def __init__(self, network: Network, seed: int) -> None:
        super().__init__()
        self.network = network
        self.layers = nn.ModuleList(map(_linear, autotrainer.weights(network, seed)))

    def forward(self, x: Tensor) -> Tensor:
        """Scores, or probabilities where a sigmoid ends it."""
        functions = {"exp": torch.exp, "sigmoid": torch.sigmoid, "relu": torch.relu}
        act = functions.get(self.network.activation, torch.tanh)
        for layer in self.layers[:-1]:
            x = act(layer(x))
        x = self.layers[-1](x)
        return {"sigmoid": torch.sigmoid, "tanh": torch.tanh}.get(self.network.final, _same)(x)


def _same(x: Any) -> Any:
    return x


def _linear(w: np.ndarray) -> nn.Linear:
    layer = nn.Linear(*w.shape)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(w.T))
        layer.bias.zero_()
    return layer


def torch_loss(network: Network) -> Any:
    """Cross entropy, of probabilities where a sigmoid ends the network."""

    def loss(model: Any, batch: Any) -> Tensor:
        x, y = batch
        if network.classes == 1:
            p = model(x)[:, 0]
            return -torch.log(torch.where(y == 1, p, 1 - p) + TINY).mean()
        if network.final != "sigmoid":
            return F.cross_entropy(model(x), y)
        p = model(x)
        p = p / p.sum(1, keepdim=True).clamp(min=TINY)
        return -torch.log(p[torch.arange(len(y)), y] + TINY).mean()

    return loss


def jax_loss(network: Network) -> Any:
    """The same of a list of matrices and biases."""
    functions = {"exp": jnp.exp, "sigmoid": jax.nn.sigmoid, "relu": jax.nn.relu}
    act = functions.get(network.activation, jnp.tanh)

    def loss(params: Any, batch: Any) -> Any:
        x, y = batch
        for p in params[:-1]:
            x = act(x @ p["w"] + p["b"])
        x = x @ params[-1]["w"] + params[-1]["b"]
        if network.classes == 1:
            q = jax.nn.sigmoid(x[:, 0])
            return -jnp.mean(jnp.log(jnp.where(y == 1, q, 1 - q) + TINY))
        if network.final == "sigmoid":
            q = jax.nn.sigmoid(x)
            q = q / jnp.maximum(q.sum(1, keepdims=True), TINY)
            return -jnp.mean(jnp.log(q[jnp.arange(len(y)), y] + TINY))
        x = jnp.tanh(x) if network.final == "tanh" else x
        return -jnp.mean(jax.nn.log_softmax(x)[jnp.arange(len(y)), y])

    return loss


def jax_make(network: Network) -> Any:
    """Draws such a list."""
    return lambda seed: [
        {"w": jnp.asarray(w), "b": jnp.zeros(w.shape[1])}
        for w in autotrainer.weights(network, seed)
    ]


_SLOPES = {
    "exp": (np.exp, lambda a: a),
    "sigmoid": (lambda z: 1 / (1 + np.exp(-z)), lambda a: a * (1 - a)),
    "relu": (lambda z: np.maximum(z, 0), lambda a: (a > 0) * 1.0),
    "tanh": (np.tanh, lambda a: 1 - a * a),
}


def numpy_loss(network: Network) -> Any:
    """The same by hand, with every layer and its gradient recorded."""
    f, slope = _SLOPES[network.activation]

    def loss(weights: Any, batch: Any) -> Any:
        x, y = batch
        outs = [x]
        products = []
        for w in weights[:-1]:
            products.append(outs[-1] @ w)
            outs.append(f(products[-1]))
        products.append(outs[-1] @ weights[-1])
        value, g = _numpy_head(network, products[-1], y)
        record = [(f"{len(weights) - 1}", products[-1], g)]
        gradients = [outs[-1].T @ g]
        for k in range(len(weights) - 2, -1, -1):
            g = g @ weights[k + 1].T
            record.append((f"{k}.{network.activation}", outs[k + 1], g))
            g = g * slope(outs[k + 1])
            record.append((f"{k}", products[k], g))
            gradients.append(outs[k].T @ g)
        return value, record[::-1], gradients[::-1]

    return loss


def _numpy_head(network: Network, z: np.ndarray, y: np.ndarray) -> tuple[float, np.ndarray]:
    count, rows = len(y), np.arange(len(y))
    p = 1 / (1 + np.exp(-z))
    if network.classes == 1:
        q = np.where(y == 1, p[:, 0], 1 - p[:, 0]) + TINY
        g = np.where(y == 1, -1, 1) * (p * (1 - p))[:, 0] / q / count
        return float(-np.mean(np.log(q))), g[:, None]
    if network.final == "sigmoid":
        total = np.maximum(p.sum(1, keepdims=True), TINY)
        q = p / total
        told = np.zeros_like(q)
        told[rows, y] = -1 / (q[rows, y] + TINY) / count
        g = told / total - (told * p).sum(1, keepdims=True) / total**2
        return float(-np.mean(np.log(q[rows, y] + TINY))), g * p * (1 - p)
    out = np.tanh(z) if network.final == "tanh" else z
    e = np.exp(out - out.max(1, keepdims=True))
    q = e / e.sum(1, keepdims=True)
    g = (q - np.eye(q.shape[1])[y]) / count
    return float(-np.mean(np.log(q[rows, y]))), g * (1 - out**2) if network.final == "tanh" else g


def asked(network: Network, backend: str) -> dict[str, Any]:
    """The arguments of a check."""
    x, y = autotrainer.data(network, 0)
    if backend == "torch":
        batch: Any = (torch.tensor(x), torch.tensor(y))
        loss, make = torch_loss(network), lambda seed: TorchNetwork(network, seed)
    elif backend == "jax":
        batch = (jnp.asarray(x), jnp.asarray(y))
        loss, make = jax_loss(network), jax_make(network)
    else:
        batch = (x, y)
        loss, make = numpy_loss(network), lambda seed: autotrainer.weights(network, seed)
    return {"model": None, "loss": loss, "batch": batch, "make": make, "backend": backend}
