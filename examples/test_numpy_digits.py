"""A hand-written NumPy network on scikit-learn's digits.

NumPy has no derivatives of its own. Every gradient here is somebody's algebra, handed to
``gradcheck`` in one of its four forms: ``grad=``, ``vjp=``, ``jac=`` and ``value_and_grad=True``.
"""

import numpy as np
import pytest
from sklearn.datasets import load_digits

L2 = 1e-3  # strength of the penalty on the weights


@pytest.fixture
def digits():
    images, labels = load_digits(return_X_y=True)
    return images[:128] / 16.0, labels[:128]


@pytest.fixture
def params():
    rng = np.random.default_rng(0)
    return {
        "W1": rng.normal(0, 0.2, (64, 32)),
        "b1": rng.normal(0, 0.1, 32),
        "W2": rng.normal(0, 0.2, (32, 10)),
        "b2": rng.normal(0, 0.1, 10),
    }


# --- the network ------------------------------------------------------------------------------


def log_softmax(logits):
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def forward(params, X):
    hidden = np.maximum(X @ params["W1"] + params["b1"], 0)
    return hidden, log_softmax(hidden @ params["W2"] + params["b2"])


def loss(params, X, y):
    """Mean cross-entropy of the right digit, plus the penalty."""
    _, log_p = forward(params, X)
    penalty = (params["W1"] ** 2).sum() + (params["W2"] ** 2).sum()
    return -log_p[np.arange(len(y)), y].mean() + L2 / 2 * penalty


def backprop(params, X, y):
    """Gradient of the loss: a dict with the keys of ``params``, in any order."""
    hidden, log_p = forward(params, X)
    d_logits = (np.exp(log_p) - np.eye(10)[y]) / len(y)
    d_hidden = d_logits @ params["W2"].T * (hidden > 0)
    return {
        "b2": d_logits.sum(axis=0),
        "W2": hidden.T @ d_logits + L2 * params["W2"],
        "b1": d_hidden.sum(axis=0),
        "W1": X.T @ d_hidden + L2 * params["W1"],
    }


def test_backprop(gradcheck, digits, params):
    X, y = digits
    # The images are floating-point as well; wrt= says that only the parameters are meant.
    gradcheck(loss, params, X, y, grad=backprop, wrt="params")


def test_one_weight_matrix(gradcheck, digits, params):
    X, y = digits
    gradcheck(loss, params, X, y, grad=lambda *args: backprop(*args)["W2"], wrt="params.W2")


def test_loss_and_gradient_in_one_function(gradcheck, digits, params):
    def loss_and_gradient(params, X, y):
        return loss(params, X, y), backprop(params, X, y)

    X, y = digits
    gradcheck(loss_and_gradient, params, X, y, value_and_grad=True, wrt="params")


def test_single_precision(gradcheck, digits, params):
    # The formula is judged in float64; what float32 loses on top is judged by itself.
    X, y = digits
    single = {name: value.astype(np.float32) for name, value in params.items()}
    gradcheck(loss, single, X.astype(np.float32), y, grad=backprop, wrt="params")


def test_training_lowers_the_loss(digits, params):
    X, y = digits
    before = loss(params, X, y)
    for _ in range(50):
        gradient = backprop(params, X, y)
        params = {name: params[name] - 0.5 * gradient[name] for name in params}
    assert loss(params, X, y) < before / 4


# --- its parts: functions whose output is not one number --------------------------------------


def dense_tanh(x, W, b):
    return np.tanh(x @ W + b)


def dense_tanh_vjp(cotangent, x, W, b):
    """What arrives from above, carried to each of the three inputs."""
    below = cotangent * (1 - dense_tanh(x, W, b) ** 2)
    return below @ W.T, x.T @ below, below.sum(axis=0)


def test_layer(gradcheck, digits, params):
    X, _ = digits
    gradcheck(dense_tanh, X, params["W1"], params["b1"], vjp=dense_tanh_vjp)


def softmax(logits):
    p = np.exp(logits - logits.max())
    return p / p.sum()


def softmax_jacobian(logits):
    p = softmax(logits)
    return np.diag(p) - np.outer(p, p)


@pytest.mark.parametrize("size", [0.01, 1.0, 10.0])
def test_softmax(gradcheck, size):
    logits = size * np.random.default_rng(1).normal(size=10)
    gradcheck(softmax, logits, jac=softmax_jacobian)
