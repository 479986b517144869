"""AutoTrainer's small networks, as published with DeepDiagnosis: 31 faulty, 19 healthy.

Facts from ``DeepDiagnosis/ICSE2022``, folder "AUTOTRAINER Model Code" (Zhang et al., ICSE 2021;
Wardat et al., ICSE 2022): two inputs, hidden layers of five units, an initialiser by the name that
Keras gives it. Faulty ones carry the id under which they were reported; healthy ones are the base
networks of the same collection.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

WIDTH, INPUTS, SAMPLES = 5, 2, 64
HE = "he"  # VarianceScaling(scale=2, fan_in, uniform)
SMALL = "small"  # RandomUniform(-0.05, 0.05)


@dataclass(frozen=True, slots=True)
class Network:
    """One network of the collection.

    Args:
        name: Data set and id.
        depth: Layers with weights.
        activation: Of the hidden layers.
        classes: Outputs; 1 is binary.
        last: Initialiser of the last layer.
        init: Initialiser of the others.
        final: Whether a sigmoid (or another tanh) stands after the last layer.
        symptom: What is wrong with it; empty for a healthy one.
    """

    name: str
    depth: int
    activation: str
    classes: int
    last: str = HE
    init: str = HE
    final: str = ""
    symptom: str = ""


SYMPTOMS = {"exp": "nonfinite", "sigmoid": "vanishing", "relu": "dead"}


def _faulty(data: str, names: str, depth: int, activation: str, init: str = HE) -> list[Network]:
    classes = {"blob": 3, "circle": 1}[data]
    return [
        Network(
            f"{data} {name}",
            depth,
            activation,
            classes,
            init=init,
            final="sigmoid",
            symptom=SYMPTOMS[activation],
        )
        for name in names.split()
    ]


FAULTY = (
    *_faulty("blob", "0b6f114d 9b8bdaab", 10, "exp"),
    *_faulty("blob", "0448d813 e73037c2", 9, "exp"),
    *_faulty("blob", "661b4e86", 11, "exp"),
    *_faulty("blob", "2569b90f e706e7cd", 12, "sigmoid"),
    *_faulty("blob", "bd4e58b7", 13, "sigmoid"),
    *_faulty("blob", "84c77206", 16, "relu"),
    *_faulty("blob", "384108d9", 9, "relu", SMALL),
    *_faulty("blob", "f7e7b91b", 10, "relu", SMALL),
    *_faulty("circle", "0ae2cd88 205c07d5", 9, "exp"),
    *_faulty("circle", "9e7361d4 d064a5da", 10, "exp"),
    *_faulty("circle", "01bb8f27 169a3fa1", 11, "exp"),
    *_faulty("circle", "0eb8d545 636bde2e", 12, "exp"),
    *_faulty("circle", "5ab0aeda ebc164bf", 12, "sigmoid"),
    *_faulty("circle", "c632dcbd f476c610", 13, "sigmoid"),
    *_faulty("circle", "dd8c879b", 14, "sigmoid"),
    *_faulty("circle", "46edb7df", 16, "relu"),
    *_faulty("circle", "8e28bdef", 17, "relu"),
    *_faulty("circle", "e8a6e959", 18, "relu"),
    *_faulty("circle", "8de47bdc 10702695 14989730", 9, "relu", SMALL),
    *_faulty("circle", "c54b3d2e", 10, "relu", SMALL),
)

HEALTHY = (
    Network("blob simplednn", 6, "tanh", 3),
    Network("blob mi_7", 6, "tanh", 3, last=SMALL),
    Network("blob ma_mi_7", 6, "tanh", 3, last="he normal"),
    Network("blob mi_al_10", 9, "tanh", 3, last="zeros"),
    Network("blob al_13", 12, "tanh", 3),
    Network("blob mi_al_13", 12, "tanh", 3, last="ones"),
    Network("blob mi_al_16", 15, "tanh", 3, last="glorot"),
    Network("blob mi_al_19", 18, "tanh", 3, last="lecun normal"),
    Network("blob al_19", 18, "tanh", 3, final="tanh"),
    Network("circle simplednn", 6, "tanh", 1, final="sigmoid"),
    Network("circle ma_7", 6, "tanh", 1, final="sigmoid"),
    Network("circle mi_7", 6, "tanh", 1, last="lecun", final="sigmoid"),
    Network("circle al_10", 9, "tanh", 1, final="sigmoid"),
    Network("circle mi_al_10", 9, "tanh", 1, last="lecun normal", final="sigmoid"),
    Network("circle al_13", 12, "tanh", 1, final="sigmoid"),
    Network("circle mi_al_13", 12, "tanh", 1, last="glorot", final="sigmoid"),
    Network("circle mi_al_16", 15, "tanh", 1, last="truncated", final="sigmoid"),
    Network("circle al_19", 18, "tanh", 1, final="sigmoid"),
    Network("circle mi_al_19", 18, "tanh", 1, last="glorot normal", final="sigmoid"),
)

assert (len(FAULTY), len(HEALTHY)) == (31, 19)


def weights(network: Network, seed: int) -> list[np.ndarray]:
    """Freshly drawn matrices; biases are zero in all of them."""
    rng = np.random.default_rng(seed)
    sizes = [INPUTS, *[WIDTH] * (network.depth - 1), network.classes]
    inits = [network.init] * (network.depth - 1) + [network.last]
    return [
        _drawn(rng, init, a, b).astype(np.float32)
        for init, a, b in zip(inits, sizes, sizes[1:], strict=False)
    ]


def _drawn(rng: np.random.Generator, init: str, fan_in: int, fan_out: int) -> np.ndarray:
    shape = (fan_in, fan_out)
    if init in ("zeros", "ones"):
        return np.full(shape, float(init == "ones"))
    if init == SMALL:
        return rng.uniform(-0.05, 0.05, shape)
    if init == "truncated":
        return np.clip(rng.normal(0, 0.05, shape), -0.1, 0.1)
    kind, _, law = init.partition(" ")
    variance = {"he": 2 / fan_in, "lecun": 1 / fan_in, "glorot": 2 / (fan_in + fan_out)}[kind]
    if law == "normal":
        return rng.normal(0, np.sqrt(variance), shape)
    return rng.uniform(-1, 1, shape) * np.sqrt(3 * variance)


def data(network: Network, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Points and classes: three blobs, or a circle inside another, as scikit-learn makes them."""
    rng = np.random.default_rng([seed, 1])
    if network.classes > 1:
        y = rng.integers(0, 3, SAMPLES)
        centres = rng.uniform(-10, 10, (3, 2))
        x = centres[y] + rng.normal(0, 2, (SAMPLES, 2))
        return x.astype(np.float32), y
    y = rng.integers(0, 2, SAMPLES)
    angle = rng.uniform(0, 2 * np.pi, SAMPLES)
    radius = np.where(y == 1, 0.8, 1.0)
    x = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
    return (x + rng.normal(0, 0.1, x.shape)).astype(np.float32), y
