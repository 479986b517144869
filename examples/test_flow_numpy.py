"""NumPy: a network written by hand records what its layers put out and what gradient came back."""

import itertools

import numpy as np

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(64, 8)), RNG.normal(size=(64, 1))


def make(seed):
    """Weights for tanh: variance 1 / inputs (LeCun)."""
    rng = np.random.default_rng(seed)
    sizes = [8, 32, 32, 1]
    return [rng.normal(0, a**-0.5, (a, b)) for a, b in itertools.pairwise(sizes)]


def loss(weights, batch):
    """Value, recorded layers and gradients of the weights."""
    x, y = batch
    outs, products = [x], []
    for w in weights[:-1]:
        products.append(outs[-1] @ w)
        outs.append(np.tanh(products[-1]))
    answer = outs[-1] @ weights[-1]
    g = 2 * (answer - y) / len(y)
    layers, gradients = [("out", answer, g)], [outs[-1].T @ g]
    for k in reversed(range(len(products))):
        g = g @ weights[k + 1].T
        layers.append((f"hidden{k}.tanh", outs[k + 1], g))
        g = g * (1 - outs[k + 1] ** 2)
        layers.append((f"hidden{k}", products[k], g))
        gradients.append(outs[k].T @ g)
    return np.mean((answer - y) ** 2), layers[::-1], gradients[::-1]


def test_written_by_hand(gradflow):
    gradflow(None, loss, (X, Y), make=make)


def test_the_first_step(gradflow):
    gradflow(None, loss, (X, Y), make=make, optimizer=lambda value, gradient: -0.1 * gradient)


def test_gradients_from_elsewhere(gradflow):
    runs = [
        {f"layer{k}": g for k, g in enumerate(loss(make(seed), (X, Y))[2])} for seed in range(5)
    ]
    gradflow(runs)
