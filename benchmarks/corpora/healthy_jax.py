"""JAX models that train, as their authors initialise them: no check of the flow may accuse one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

HE = nn.initializers.he_normal()


@dataclass(frozen=True, slots=True)
class Model:
    """One model, its batch and its loss; ``make(seed)`` gives its parameters."""

    name: str
    make: Callable[[int], Any]
    batch: Any
    loss: Callable[[Any, Any], Any]


def classify(scores: Any, labels: Any) -> Any:
    """Mean cross entropy."""
    return optax.softmax_cross_entropy_with_integer_labels(scores, labels).mean()


def regress(answers: Any, targets: Any) -> Any:
    """Mean squared error."""
    return jnp.mean((answers - targets) ** 2)


class Perceptron(nn.Module):
    """Dense layers, normalised or not."""

    depth: int = 4
    width: int = 64
    act: str = "relu"
    is_normed: bool = False

    @nn.compact
    def __call__(self, x: Any) -> Any:
        for _ in range(self.depth):
            x = nn.Dense(self.width, kernel_init=HE)(x)
            x = nn.LayerNorm()(x) if self.is_normed else x
            x = getattr(nn, self.act)(x)
        return nn.Dense(3)(x)


class Residual(nn.Module):
    """Pre-activation blocks with batch normalisation."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = nn.Conv(16, (3, 3))(x)
        for _ in range(4):
            h = nn.relu(nn.BatchNorm(use_running_average=False)(x))
            h = nn.BatchNorm(use_running_average=False)(nn.Conv(16, (3, 3))(h))
            x = x + nn.Conv(16, (3, 3))(nn.relu(h))
        return nn.Dense(3)(nn.relu(x).mean((1, 2)))


class Transformer(nn.Module):
    """Four blocks, normalised before or after."""

    is_pre: bool = True

    @nn.compact
    def __call__(self, x: Any) -> Any:
        h = nn.Embed(20, 32)(x) + self.param("place", nn.initializers.normal(0.02), (10, 32))
        for _ in range(4):
            z = nn.LayerNorm()(h) if self.is_pre else h
            h = h + nn.MultiHeadDotProductAttention(num_heads=4)(z, z)
            z = h = h if self.is_pre else nn.LayerNorm()(h)
            z = nn.LayerNorm()(z) if self.is_pre else z
            h = h + nn.Dense(32)(nn.gelu(nn.Dense(64)(z)))
            h = h if self.is_pre else nn.LayerNorm()(h)
        return nn.Dense(20)(nn.LayerNorm()(h))


class Recurrent(nn.Module):
    """A recurrent layer and a last one."""

    cell: Any

    @nn.compact
    def __call__(self, x: Any) -> Any:
        return nn.Dense(3)(nn.RNN(self.cell(16))(x)[:, -1])


class Excitation(nn.Module):
    """Convolutions with a gate for each channel (Hu et al. 2018)."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = nn.relu(nn.Conv(16, (3, 3))(x))
        gate = nn.sigmoid(nn.Dense(16)(nn.relu(nn.Dense(8)(x.mean((1, 2))))))
        x = nn.relu(nn.Conv(16, (3, 3))(x * gate[:, None, None]))
        return nn.Dense(3)(x.mean((1, 2)))


class Gated(nn.Module):
    """Gated blocks with root-mean-square normalisation (Shazeer 2020)."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = nn.Dense(32)(x)
        for _ in range(4):
            z = nn.RMSNorm()(x)
            x = x + nn.Dense(32)(nn.silu(nn.Dense(64)(z)) * nn.Dense(64)(z))
        return nn.Dense(3)(nn.RMSNorm()(x))


class WeightNormed(nn.Module):
    """Weights that are normalised before each product."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        for _ in range(4):
            x = nn.relu(nn.WeightNorm(nn.Dense(64))(x))
        return nn.Dense(3)(x)


def _of(name: str, module: nn.Module, x: Any, y: Any, cost: Callable[..., Any] = classify) -> Model:
    variables = module.init(jax.random.key(0), x)
    rest = {kind: value for kind, value in variables.items() if kind != "params"}

    def loss(params: Any, batch: Any) -> Any:
        answers, _ = module.apply({"params": params, **rest}, batch[0], mutable=list(rest))
        return cost(answers, batch[1])

    return Model(name, lambda seed: module.init(jax.random.key(seed), x)["params"], (x, y), loss)


def models() -> Iterator[Model]:
    """All of them."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> Any:
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    x, y, labels = normal(32, 8), normal(32, 3), jnp.asarray(rng.integers(0, 3, 32))
    images, series, few = normal(16, 12, 12, 3), normal(16, 12, 4), labels[:16]
    tokens = jnp.asarray(rng.integers(0, 20, (16, 10)))
    yield _of("perceptron", Perceptron(), x, labels)
    yield _of("perceptron, normalised, depth 20", Perceptron(20, 32, "relu", True), x, labels)
    yield _of("perceptron, GELU, normalised", Perceptron(6, 64, "gelu", True), x, labels)
    yield _of("perceptron, tanh", Perceptron(6, 64, "tanh"), x, labels)
    yield _of("perceptron, SiLU, squared error", Perceptron(6, 64, "silu"), x, y, regress)
    yield _of("residual network", Residual(), images, few)
    yield _of("transformer, before", Transformer(), tokens, tokens)
    yield _of("transformer, after", Transformer(False), tokens, tokens)
    yield _of("LSTM", Recurrent(nn.LSTMCell), series, few)
    yield _of("GRU", Recurrent(nn.GRUCell), series, few)
    yield _of("squeeze and excitation", Excitation(), images, few)
    yield _of("gated", Gated(), x, labels)
    yield _of("normalised weights", WeightNormed(), x, labels)
    yield Model("adversarial", _adversaries, (normal(32, 4), x), _adversarial)
    yield Model(
        "Equinox",
        lambda seed: eqx.nn.MLP(8, 3, 64, 3, key=jax.random.key(seed)),
        (x, labels),
        lambda model, batch: classify(jax.vmap(model)(batch[0]), batch[1]),
    )
    yield Model("stacked in a scan", _stack, (x, labels), _stacked)


def _he(key: Any, *shape: int) -> Any:
    return jax.random.normal(key, shape) * (2 / shape[-2]) ** 0.5


def _adversaries(seed: int) -> Any:
    keys = jax.random.split(jax.random.key(seed), 4)
    return {
        "generator": {"a": _he(keys[0], 4, 32), "b": _he(keys[1], 32, 8)},
        "critic": {"a": _he(keys[2], 8, 32), "b": _he(keys[3], 32, 1)},
    }


def _adversarial(params: Any, batch: Any) -> Any:
    def judged(critic: Any, x: Any) -> Any:
        return jax.nn.leaky_relu(x @ critic["a"], 0.2) @ critic["b"]

    stopped, own = jax.lax.stop_gradient, params["generator"]
    fake = jax.nn.relu(batch[0] @ own["a"]) @ own["b"]
    fools = jax.nn.softplus(-judged(stopped(params["critic"]), fake)).mean()
    sees = jax.nn.softplus(judged(params["critic"], stopped(fake))).mean()
    return fools + sees + jax.nn.softplus(-judged(params["critic"], batch[1])).mean()


def _stack(seed: int) -> Any:
    keys = jax.random.split(jax.random.key(seed), 3)
    return {"in": _he(keys[0], 8, 32), "mid": _he(keys[1], 6, 32, 32), "out": _he(keys[2], 32, 3)}


def _stacked(params: Any, batch: Any) -> Any:
    h = jax.nn.relu(batch[0] @ params["in"])
    h, _ = jax.lax.scan(lambda h, w: (jax.nn.relu(h @ w), None), h, params["mid"])
    return classify(h @ params["out"] / 2, batch[1])
