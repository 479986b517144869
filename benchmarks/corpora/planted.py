"""Faults put into models that were healthy, with what a check should say about each.

A fault names the symptoms that are right (codes without ``flow-``), the layers that are right (any
for a fault that is everywhere), and the causes that are right (empty where the symptom is the
cause). Both are written down before a check is run.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import Tensor, nn

from corpora.healthy import classify, mlp


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault and how it is asked about.

    Args:
        name: What was done.
        backend: Which framework.
        make: Draws the model (``make()`` or ``make(seed)``).
        loss: The loss.
        batch: Its batch.
        symptoms: Right ones.
        layers: Right ones, by how their names begin; empty for a fault that is everywhere.
        causes: Right ones, without ``flow-cause-``; empty where there is none to confirm.
        model: A model that is not drawn.
    """

    name: str
    backend: str
    make: Callable[..., Any] | None
    loss: Callable[..., Any]
    batch: Any
    symptoms: tuple[str, ...]
    layers: tuple[str, ...] = ()
    causes: tuple[str, ...] = ()
    model: Any = None


def _plain(depth: int, act: Callable[[], nn.Module], draw: Callable[[nn.Linear, int], None]) -> Any:
    def make() -> nn.Module:
        parts: list[nn.Module] = []
        for k in range(depth - 1):
            layer = nn.Linear(16 if k == 0 else 64, 64)
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
            draw(layer, k)
            parts += [layer, act()]
        return nn.Sequential(*parts, nn.Linear(64, 10))

    return make


def _times(factor: float, only: int | None = None) -> Callable[[nn.Linear, int], None]:
    def draw(layer: nn.Linear, k: int) -> None:
        if only is None or k == only:
            with torch.no_grad():
                layer.weight.mul_(factor)

    return draw


def _glorot(layer: nn.Linear, k: int) -> None:
    nn.init.xavier_normal_(layer.weight)


def _then(*draws: Callable[[nn.Linear, int], None]) -> Callable[[nn.Linear, int], None]:
    def draw(layer: nn.Linear, k: int) -> None:
        for one in draws:
            one(layer, k)

    return draw


def _constant(layer: nn.Linear, k: int) -> None:
    nn.init.constant_(layer.weight, 0.05)


def _bias(value: float, only: int | None = None) -> Callable[[nn.Linear, int], None]:
    def draw(layer: nn.Linear, k: int) -> None:
        if only is None or k == only:
            nn.init.constant_(layer.bias, value)

    return draw


class _Forward(nn.Module):
    """Four layers whose forward is given."""

    def __init__(self, run: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Linear(16, 64), nn.Linear(64, 64), nn.Linear(64, 64)
        self.head = nn.Linear(64, 10)
        self._run = run

    def forward(self, x: Tensor) -> Tensor:
        """The answer."""
        return self._run(self, x)


def _detached(m: Any, x: Tensor) -> Tensor:
    h = torch.relu(m.two(torch.relu(m.one(x)))).detach()
    return m.head(torch.relu(m.three(h)))


def _branch(m: Any, x: Tensor) -> Tensor:
    h = torch.relu(m.one(x))
    return m.head(torch.relu(m.two(h)) + torch.relu(m.three(h.detach())).detach())


def _left_out(m: Any, x: Tensor) -> Tensor:
    return m.head(torch.relu(m.three(torch.relu(m.one(x)))))


def _no_grad(m: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        h = torch.relu(m.one(x))
    return m.head(torch.relu(m.three(torch.relu(m.two(h)))))


def _masked_log(m: Any, x: Tensor) -> Tensor:
    h = m.three(torch.relu(m.two(torch.relu(m.one(x)))))
    p = torch.exp(h) * (x[:, :1] > 0)  # rows of zeros
    return m.head(torch.where(p > 0, p * torch.log(p), torch.zeros_like(p)))


def _masked_sqrt(m: Any, x: Tensor) -> Tensor:
    h = m.three(torch.relu(m.two(torch.relu(m.one(x)))))
    return m.head(torch.where(h > 0, torch.sqrt(h), torch.zeros_like(h)))


def _norm_of_zero(m: Any, x: Tensor) -> Tensor:
    h = torch.relu(m.three(torch.relu(m.two(torch.relu(m.one(x))))))
    return m.head(h / (1 + (h - h).square().sum(1, keepdim=True).sqrt()))


def _zeroed(m: Any, x: Tensor) -> Tensor:
    return m.head(torch.relu(m.three(torch.relu(m.two(0.0 * torch.relu(m.one(x)))))))


def _half_overflow(m: Any, x: Tensor) -> Tensor:
    h = torch.relu(m.three(torch.relu(m.two(torch.relu(m.one(x))))) * 3000).half()
    return m.head((h * h).float().sqrt())


def _log(m: Any, x: Tensor) -> Tensor:
    return m.head(torch.log(m.three(m.two(m.one(x)))))


class _Frozen(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = mlp("relu", 64, 4)()
        for p in self.body[2].parameters():
            p.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class _Recurrence(nn.Module):
    def __init__(self, gain: float, kind: str = "tanh") -> None:
        super().__init__()
        self.body = nn.RNNCell(8, 32, nonlinearity=kind)
        self.head = nn.Linear(32, 10)
        nn.init.orthogonal_(self.body.weight_hh, gain)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(len(x), 32)
        for t in range(x.shape[1]):
            h = self.body(x[:, t], h)
        return self.head(h)


class _BothWays(nn.Module):
    def __init__(self, kind: str, gain: float) -> None:
        super().__init__()
        self.body = getattr(nn, kind)(8, 32, batch_first=True, bidirectional=True)
        self.head = nn.Linear(64, 10)
        for name, p in self.body.named_parameters():
            if "weight_hh" in name:
                nn.init.normal_(p, std=gain * 32**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)[0]
        return self.head(torch.cat([h[:, -1, :32], h[:, 0, 32:]], 1))


def _sure(scale: float) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        model = nn.Sequential(*mlp("relu", 64, 3)(), nn.Sigmoid())
        with torch.no_grad():
            model[-2].weight.mul_(scale)
        return model

    return make


def _of_probabilities(model: nn.Module, batch: Any) -> Tensor:
    x, y = batch
    return nn.functional.binary_cross_entropy(model(x), nn.functional.one_hot(y, 10).float())


def torch_faults() -> Iterator[Fault]:
    """Faults of PyTorch models."""
    generator = torch.Generator().manual_seed(11)
    x = torch.randn(64, 16, generator=generator)
    y = torch.randint(0, 10, (64,), generator=generator)
    flat = (x, y)

    def of(
        name: str, make: Any, symptoms: str, layers: str = "", causes: str = "", **more: Any
    ) -> Fault:
        given = {"loss": classify, "batch": flat} | more
        return Fault(
            name,
            "torch",
            make,
            symptoms=tuple(symptoms.split()),
            layers=tuple(layers.split()),
            causes=tuple(causes.split()),
            **given,
        )

    none = _times(1.0)
    yield of("sigmoid x 10", _plain(10, nn.Sigmoid, none), "vanishing", "", "activation")
    yield of("sigmoid x 16", _plain(16, nn.Sigmoid, _glorot), "vanishing", "", "activation")
    yield of(
        "hardsigmoid x 10", _plain(10, nn.Hardsigmoid, none), "vanishing", "", "activation init"
    )
    yield of("relu too small", _plain(10, nn.ReLU, _times(0.05)), "vanishing", "", "init")
    yield of("tanh too small", _plain(10, nn.Tanh, _times(0.05)), "vanishing", "", "init")
    yield of("gelu too small", _plain(12, nn.GELU, _times(0.1)), "vanishing", "", "init activation")
    yield of("relu too large", _plain(10, nn.ReLU, _times(8.0)), "exploding first-loss", "", "init")
    yield of("tanh too large", _plain(20, nn.Tanh, _times(5.0)), "exploding saturated", "", "init")
    yield of("constant", _plain(5, nn.Tanh, _constant), "symmetric")
    yield of("constant relu", _plain(5, nn.ReLU, _constant), "symmetric")
    yield of("all zero", _plain(5, nn.ReLU, _times(0.0)), "symmetric")
    yield of("biases of -10", _plain(5, nn.ReLU, _bias(-10.0)), "dead", "", "bias")
    yield of("bias of -20 in one", _plain(6, nn.ReLU, _bias(-20.0, 2)), "dead", "4 5", "bias layer")
    yield of(
        "sigmoid biases of 10",
        _plain(4, nn.Sigmoid, _bias(10.0)),
        "saturated vanishing",
        "",
        "bias",
    )
    yield of("detached", lambda: _Forward(_detached), "missing", "one two")
    yield of("detached branch", lambda: _Forward(_branch), "missing", "three")
    yield of("left out", lambda: _Forward(_left_out), "missing", "two")
    yield of("no_grad", lambda: _Forward(_no_grad), "missing", "one")
    yield of("frozen", _Frozen, "frozen", "body.2")
    yield of("times zero", lambda: _Forward(_zeroed), "zero", "one two three")
    yield of(
        "inputs x 255", mlp("relu", 64, 4), "first-loss exploding", "", "input", batch=(255 * x, y)
    )
    yield of(
        "tanh inputs x 1000", mlp("tanh", 64, 4), "saturated", "1", "input", batch=(1000 * x, y)
    )
    yield of("masked log", lambda: _Forward(_masked_log), "nonfinite", "log where mul")
    yield of("masked sqrt", lambda: _Forward(_masked_sqrt), "nonfinite", "sqrt where two")
    yield of("norm of zero", lambda: _Forward(_norm_of_zero), "nonfinite", "sqrt")
    yield of("half overflow", lambda: _Forward(_half_overflow), "nonfinite", "half mul")
    yield of("log of a negative", lambda: _Forward(_log), "nonfinite", "log")
    yield of("exp in depth", _plain(8, _Exp, none), "nonfinite", "", "activation")
    steps = torch.randn(32, 20, 8, generator=generator), torch.randint(0, 10, (32,))
    yield of(
        "recurrence grows",
        lambda: _Recurrence(3.0, "relu"),
        "time-growing exploding first-loss",
        "body",
        "",
        batch=steps,
    )
    for kind in ("RNN", "GRU"):
        yield of(
            f"{kind} of two directions grows",
            lambda kind=kind: _BothWays(kind, 16.0),
            "time-growing",
            "body",
            batch=steps,
        )
    yield of("probabilities x 300", _sure(300.0), "first-loss", "", "layer", loss=_of_probabilities)
    for k in (3, 6):
        make = _plain(9, nn.Tanh, _then(_times(2**-0.5), _times(1e-5, k)))
        yield of(f"layer {k} x 1e-5", make, "vanishing", f"{2 * k}", "layer")
        make = _plain(9, nn.Tanh, _then(_times(2**-0.5), _times(1e3, k)))
        yield of(f"tanh layer {k} x 1e3", make, "saturated", f"{2 * k} {2 * k + 1}", "layer")
        make = _plain(9, nn.ReLU, _times(1e4, k))
        yield of(f"relu layer {k} x 1e4", make, "first-loss exploding", f"{2 * k}", "layer")


class _Exp(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.exp(x)


def _draws(depth: int, factor: float = 1.0, bias: float = 0.0, only: int | None = None) -> Any:
    def make(seed: int) -> Any:
        rng = np.random.default_rng(seed)
        sizes = [16, *[64] * (depth - 1), 10]
        layers = []
        for k, (a, b) in enumerate(itertools.pairwise(sizes)):
            is_odd = k < depth - 1 and only in (None, k)
            w = rng.normal(0, (2 / a) ** 0.5 * (factor if is_odd else 1.0), (a, b))
            layers.append({"w": w.astype(np.float32), "b": np.full(b, bias * is_odd, np.float32)})
        return {f"layer{k}": layer for k, layer in enumerate(layers)}

    return make


def _jax_net(act: Any, run: Any = None) -> Any:
    def loss(params: Any, batch: Any) -> Any:
        h, y = batch
        names = sorted(params, key=lambda n: int(n[5:]))
        for k, name in enumerate(names):
            h = h @ params[name]["w"] + params[name]["b"]
            if k < len(names) - 1:
                h = act(h)
            if run is not None:
                h = run(k, h)
        return -jnp.mean(jax.nn.log_softmax(h)[jnp.arange(len(y)), y])

    return loss


def jax_faults() -> Iterator[Fault]:
    """Faults of JAX functions."""
    rng = np.random.default_rng(5)
    x, y = rng.normal(size=(64, 16)).astype(np.float32), rng.integers(0, 10, 64)

    def of(
        name: str,
        make: Any,
        loss: Any,
        symptoms: str,
        layers: str = "",
        causes: str = "",
        scale: float = 1.0,
    ) -> Fault:
        def draw(seed: int) -> Any:
            return jax.tree.map(jnp.asarray, make(seed))

        return Fault(
            name,
            "jax",
            draw,
            loss,
            (jnp.asarray(x * scale), jnp.asarray(y)),
            tuple(symptoms.split()),
            tuple(layers.split()),
            tuple(causes.split()),
        )

    def stop(k: int, h: Any) -> Any:
        return jax.lax.stop_gradient(h) if k == 1 else h

    def masked(k: int, h: Any) -> Any:
        p = jnp.exp(h) * (h[:, :1] > 0)
        return jnp.where(p > 0, p * jnp.log(p), 0.0) if k == 1 else h

    def root(k: int, h: Any) -> Any:
        return h + jnp.linalg.norm(h - h, axis=1, keepdims=True) if k == 1 else h

    relu, tanh, sigmoid = jax.nn.relu, jnp.tanh, jax.nn.sigmoid
    yield of("sigmoid x 10", _draws(10), _jax_net(sigmoid), "vanishing", "", "activation")
    yield of("relu too small", _draws(10, 0.05), _jax_net(relu), "vanishing", "", "init")
    yield of("tanh too small", _draws(10, 0.05), _jax_net(tanh), "vanishing", "", "init")
    yield of("relu too large", _draws(10, 8.0), _jax_net(relu), "exploding first-loss", "", "init")
    yield of("tanh too large", _draws(20, 5.0), _jax_net(tanh), "exploding saturated", "", "init")
    yield of("biases of -10", _draws(5, 1.0, -10.0), _jax_net(relu), "dead", "", "bias")
    yield of(
        "bias of -20 in one",
        _draws(6, 1.0, -20.0, 2),
        _jax_net(relu),
        "dead",
        "layer2",
        "bias layer",
    )
    yield of("stopped", _draws(4), _jax_net(relu, stop), "missing zero", "layer0 layer1")
    yield of("masked log", _draws(4), _jax_net(lambda h: h, masked), "nonfinite", "layer1")
    yield of("norm of zero", _draws(4), _jax_net(relu, root), "nonfinite", "layer1")
    yield of("inputs x 255", _draws(4), _jax_net(relu), "first-loss exploding", "", "input", 255.0)
    yield of(
        "tanh inputs x 1000", _draws(4), _jax_net(tanh), "saturated", "layer0", "input", 1000.0
    )
    yield of("exp in depth", _draws(8), _jax_net(jnp.exp), "nonfinite", "", "activation")
    yield of(
        "layer 3 x 1e-5", _draws(8, 1e-5, 0.0, 3), _jax_net(relu), "vanishing", "layer3", "layer"
    )
    yield of(
        "layer 3 x 1e4",
        _draws(8, 1e4, 0.0, 3),
        _jax_net(relu),
        "first-loss exploding",
        "layer3",
        "layer",
    )

    def left_out(params: Any, batch: Any) -> Any:
        return _jax_net(relu)({n: p for n, p in params.items() if n != "layer2"}, batch)

    yield of("left out", _draws(5), left_out, "missing zero", "layer2")


_SLOPES = {
    "relu": (lambda z: np.maximum(z, 0), lambda a: (a > 0) * 1.0),
    "tanh": (np.tanh, lambda a: 1 - a * a),
    "sigmoid": (lambda z: 1 / (1 + np.exp(-z)), lambda a: a * (1 - a)),
}


def numpy_net(act: str, spoil: Callable[[int, Any], Any] | None = None) -> Any:
    """A hand-written network that records its layers; ``spoil`` changes a gradient on the way."""
    f, slope = _SLOPES[act]

    def loss(params: Any, batch: Any) -> Any:
        h, y = batch
        names = sorted(params, key=lambda n: int(n[5:]))
        inputs, outs = [], []
        for name in names:
            inputs.append(h)
            z = h @ params[name]["w"] + params[name]["b"]
            h = f(z) if name != names[-1] else z
            outs.append((z, h))
        e = np.exp(h - h.max(1, keepdims=True))
        p = e / e.sum(1, keepdims=True)
        value = float(-np.mean(np.log(p[np.arange(len(y)), y])))
        g = (p - np.eye(p.shape[1])[y]) / len(y)
        record, gradients = [], {}
        for k in reversed(range(len(names))):
            if k < len(names) - 1:
                g = g @ params[names[k + 1]]["w"].T
                g = spoil(k, g) if spoil is not None else g
                record.append((f"{names[k]}.{act}", outs[k][1], g))
                g = g * slope(outs[k][1])
            record.append((names[k], outs[k][0], g))
            gradients[names[k]] = {"w": inputs[k].T @ g, "b": g.sum(0)}
        return value, record[::-1], {n: gradients[n] for n in names}

    return loss


def numpy_faults() -> Iterator[Fault]:
    """Faults of hand-written networks."""
    rng = np.random.default_rng(5)
    x, y = rng.normal(size=(64, 16)), rng.integers(0, 10, 64)

    def of(
        name: str,
        make: Any,
        loss: Any,
        symptoms: str,
        layers: str = "",
        causes: str = "",
        scale: float = 1.0,
    ) -> Fault:
        return Fault(
            name,
            "numpy",
            make,
            loss,
            (x * scale, y),
            tuple(symptoms.split()),
            tuple(layers.split()),
            tuple(causes.split()),
        )

    yield of("sigmoid x 10", _draws(10), numpy_net("sigmoid"), "vanishing")
    yield of("relu too small", _draws(10, 0.05), numpy_net("relu"), "vanishing", "", "init")
    yield of(
        "tanh too large", _draws(20, 5.0), numpy_net("tanh"), "exploding saturated", "", "init"
    )
    yield of("biases of -10", _draws(5, 1.0, -10.0), numpy_net("relu"), "dead")
    yield of(
        "tanh inputs x 1000", _draws(4), numpy_net("tanh"), "saturated", "layer0", "input", 1000.0
    )
    forgotten = numpy_net("relu", lambda k, g: 0 * g if k == 1 else g)
    yield of("times zero", _draws(5), forgotten, "zero", "layer0 layer1")
    broken = numpy_net("relu", lambda k, g: g / 0.0 if k == 1 else g)
    yield of("divided by zero", _draws(5), broken, "nonfinite", "layer1")


def faults() -> Iterator[Fault]:
    """Every fault."""
    yield from torch_faults()
    yield from jax_faults()
    yield from numpy_faults()
