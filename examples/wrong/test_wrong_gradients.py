"""A gallery of wrong gradients: every test in this file fails, and its message says why.

Run it by its path, ``pytest examples/wrong``: the directory is left out of ordinary runs. Each
mistake is one that people make; the docstring names it, so that you can compare it with what
the failure tells you.
"""

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch.nn import functional as F  # noqa: N812  # as everybody writes it


def drawn(*shape):
    return np.random.default_rng(len(shape)).normal(size=shape)


def tensor(*shape):
    return torch.tensor(drawn(*shape))


# --- NumPy: formulas --------------------------------------------------------------------------


def squared_error(w, X, y):
    return ((X @ w - y) ** 2).mean()


def check_squared_error(gradcheck, grad):
    gradcheck(squared_error, drawn(3), drawn(8, 3), drawn(8), grad=grad, wrt="w")


def test_wrong_sign(gradcheck):
    """Target minus prediction, where the loss has prediction minus target."""

    def grad(w, X, y):
        return 2 * X.T @ (y - X @ w) / len(y)

    check_squared_error(gradcheck, grad)


def test_wrong_factor_two(gradcheck):
    """The 2 of the square is missing."""

    def grad(w, X, y):
        return X.T @ (X @ w - y) / len(y)

    check_squared_error(gradcheck, grad)


def test_wrong_sum_for_mean(gradcheck):
    """The loss is a mean over the batch, the gradient a sum over it."""

    def grad(w, X, y):
        return 2 * X.T @ (X @ w - y)

    check_squared_error(gradcheck, grad)


def test_wrong_one_element(gradcheck):
    """One element of many is a little wrong, as after an error at the edge of a loop."""

    def grad(w, X, y):
        right = 2 * X.T @ (X @ w - y) / len(y)
        right[-1] *= 1.05
        return right

    check_squared_error(gradcheck, grad)


def test_wrong_forgotten_term(gradcheck):
    """The penalty is in the loss and not in its gradient."""

    def ridge(w, X, y):
        return squared_error(w, X, y) + 0.01 * (w**2).sum()

    def grad(w, X, y):
        return 2 * X.T @ (X @ w - y) / len(y)

    gradcheck(ridge, drawn(3), drawn(8, 3), drawn(8), grad=grad, wrt="w")


def dense(x, W, b):
    return np.tanh(x @ W + b)


def test_wrong_transposed(gradcheck):
    """The weight gradient is transposed, which a square matrix does not betray by its shape."""

    def vjp(cotangent, x, W, b):
        below = cotangent * (1 - dense(x, W, b) ** 2)
        return below @ W.T, below.T @ x, below.sum(axis=0)

    gradcheck(dense, drawn(5, 4), drawn(4, 4), drawn(4), vjp=vjp)


def test_wrong_not_reduced(gradcheck):
    """The bias was broadcast over the batch; its gradient was not summed over the batch."""

    def vjp(cotangent, x, W, b):
        below = cotangent * (1 - dense(x, W, b) ** 2)
        return below @ W.T, x.T @ below, below

    gradcheck(dense, drawn(5, 4), drawn(4, 4), drawn(4), vjp=vjp)


def test_wrong_nan(gradcheck):
    """0/0 in the gradient of a distance, for a point at the centre; its warning was silenced."""

    def huber_distance(points):
        radius = np.sqrt((points**2).sum(axis=1))
        return np.where(radius < 1, radius**2 / 2, radius - 0.5).sum()

    def grad(points):
        radius = np.sqrt((points**2).sum(axis=1, keepdims=True))
        with np.errstate(invalid="ignore"):
            return np.minimum(radius, 1) * points / radius

    points = drawn(6, 2)
    points[3] = 0
    gradcheck(huber_distance, points, grad=grad)


# --- PyTorch: custom functions and broken graphs ----------------------------------------------


def test_wrong_detach(gradcheck):
    """A norm is detached, so the gradient loses the part that goes through it."""

    def normalised(x):
        return x / x.norm().detach()

    gradcheck(normalised, tensor(6))


def test_wrong_missing(gradcheck):
    """backward returns None for an input that the output depends on."""

    class Scale(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, scale):
            ctx.save_for_backward(scale)
            return x * scale

        @staticmethod
        def backward(ctx, cotangent):
            (scale,) = ctx.saved_tensors
            return cotangent * scale, None

    gradcheck(Scale.apply, tensor(4, 3), tensor(3))


def test_wrong_cotangent_ignored(gradcheck):
    """backward forgets what arrives from above; right only where the output is summed up."""

    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x**2

        @staticmethod
        def backward(ctx, cotangent):
            (x,) = ctx.saved_tensors
            return 2 * x

    gradcheck(Square.apply, tensor(6))


def test_wrong_precision(gradcheck):
    """backward rounds through float16 on its way: right in three digits, in float64 as well."""

    class Softplus(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(torch.sigmoid(x).half())
            return F.softplus(x)

        @staticmethod
        def backward(ctx, cotangent):
            (slope,) = ctx.saved_tensors
            return cotangent * slope.to(cotangent.dtype)

    gradcheck(Softplus.apply, tensor(6))


# --- JAX: custom rules ------------------------------------------------------------------------


def test_wrong_branch(gradcheck):
    """The slope of leaky relu on the negative side is that of another leak."""

    @jax.custom_vjp
    def leaky(x):
        return jnp.where(x > 0, x, 0.1 * x)

    def backward(x, cotangent):
        return (cotangent * jnp.where(x > 0, 1.0, 0.01),)

    leaky.defvjp(lambda x: (leaky(x), x), backward)
    gradcheck(leaky, jnp.asarray(drawn(6)))


def test_wrong_input_left_out(gradcheck):
    """The rule knows the input x, and tells the bias that it has no influence."""

    @jax.custom_vjp
    def shifted_sine(x, bias):
        return jnp.sin(x + bias)

    def backward(argument, cotangent):
        return cotangent * jnp.cos(argument), jnp.zeros_like(argument)

    shifted_sine.defvjp(lambda x, bias: (shifted_sine(x, bias), x + bias), backward)
    gradcheck(shifted_sine, jnp.asarray(drawn(6)), jnp.asarray(drawn(6)))


def test_wrong_zero(gradcheck):
    """stop_gradient cuts off a layer that is meant to be trained: its gradient is zero."""

    def network(params, x):
        hidden = jax.lax.stop_gradient(jnp.tanh(x @ params["first"]))
        return hidden @ params["second"]

    params = {"first": jnp.asarray(drawn(3, 4)), "second": jnp.asarray(drawn(4, 2))}
    gradcheck(network, params, jnp.asarray(drawn(5, 3)), wrt="params")
