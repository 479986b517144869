"""Products that are rounded to TF32, as GPUs do: no reason to accuse, and no cover for mistakes.

Here by hand, under the settings that torch and JAX have for it; on a GPU in ``test_gpu.py``.
"""

import re

import numpy as np
import pytest

from pytest_gradcheck import Training, check_step
from pytest_gradcheck.backends import jax_modes

torch = pytest.importorskip("torch")
jax = pytest.importorskip("jax")
optax = pytest.importorskip("optax")
nn, F, jnp = torch.nn, torch.nn.functional, jax.numpy
DEAF = []  # anything in it: a kernel that rounds whatever the settings are, as Triton's do
BITS = 2.0**13  # of the 23 of float32, that are not kept


def cut(x):
    """What is left of float32 numbers in TF32, where it is allowed (Veltkamp's splitting)."""
    if torch.get_float32_matmul_precision() == "highest" or x.dtype != torch.float32:
        return x
    if torch.backends.mkldnn.matmul.fp32_precision == "ieee" and not DEAF:
        return x
    large = x * (BITS + 1)
    return large - (large - x)


class Product(torch.autograd.Function):
    """``x @ w`` with rounded arguments, also in its derivatives."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return cut(x) @ cut(w)

    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        return cut(g) @ cut(w).T, cut(x).T @ cut(g)


class Layer(nn.Linear):
    def forward(self, x):
        return Product.apply(x, self.weight.T) + self.bias


@pytest.fixture
def rounded():
    if not hasattr(torch.backends.mkldnn, "matmul"):
        pytest.skip("this torch has no setting for products on the CPU")
    torch.set_float32_matmul_precision("medium")
    yield
    torch.set_float32_matmul_precision("highest")


def in_torch(factor=1.0, sizes=(5, 3, 8), lr=1e-3, depth=6, extra=0.0):
    def training():
        torch.manual_seed(0)
        layers = [m for _ in range(depth) for m in (Layer(16, 16), nn.Tanh())]
        model = nn.Sequential(*layers, Layer(16, 2))
        optimizer = torch.optim.AdamW(model.parameters(), lr)
        batches = [(torch.randn(n, 16), torch.randn(n, 2)) for n in sizes]
        calls = [0]

        def loss(batch):
            return F.mse_loss(model(batch[0]), batch[1])

        def step(batch):
            rest = extra * model[0].weight.square().sum()
            ((loss(batch) + rest) * factor / len(sizes)).backward()
            calls[0] += 1
            if calls[0] % len(sizes) == 0:
                optimizer.step()
                optimizer.zero_grad()

        return Training(step=step, loss=loss, batches=batches, model=model, optimizer=optimizer)

    return training


@pytest.mark.parametrize(
    ("sizes", "depth"), [((5, 3, 8), 1), ((7, 3, 11, 8, 4), 6), ((5, 3, 8), 16)]
)
def test_a_right_loop_of_rounded_products_is_not_accused(rounded, sizes, depth):
    before = torch.backends.mkldnn.matmul.fp32_precision, torch.get_float32_matmul_precision()
    result = check_step(
        in_torch(sizes=sizes, depth=depth), accumulate=len(sizes), weights="batches"
    )
    assert (result.verdict, result.headline) == ("pass", result.headline)
    assert before == (
        torch.backends.mkldnn.matmul.fp32_precision,
        torch.get_float32_matmul_precision(),
    )


@pytest.mark.parametrize("factor", [1.0, 1.05])
def test_a_kernel_that_rounds_whatever_is_set(rounded, monkeypatch, factor):
    monkeypatch.setitem(globals(), "DEAF", [1])
    result = check_step(in_torch(factor), accumulate=3, weights="batches")
    assert (result.verdict == "pass") == (factor == 1), result.headline


@pytest.mark.parametrize("factor", [1.03, 0.7, -1.0])
def test_a_wrong_factor_is_found_in_rounded_products(rounded, factor):
    result = check_step(in_torch(factor), accumulate=3, weights="batches")
    assert result.verdict == "fail"
    told = re.search(r"received (.*?)( times)? the right gradient", result.headline)[1]
    assert told == "the negative of" if factor < 0 else abs(float(told) / factor - 1) < 1e-3


def test_a_small_term_that_the_loss_does_not_have_is_found(rounded):
    result = check_step(in_torch(extra=1e-2), accumulate=3, weights="batches")
    assert result.verdict == "fail"


def test_a_short_step_does_not_look_too_long(rounded):
    result = check_step(in_torch(lr=1e-7, sizes=(8,)))
    assert (result.verdict, result.headline) == ("pass", result.headline)
    assert "step-too-long" not in {f.code for f in result.findings}


@pytest.fixture
def like_a_gpu(monkeypatch):
    monkeypatch.setattr(jax_modes, "_PRODUCTS", {"cpu": "tensorfloat32"})


@pytest.mark.parametrize(
    ("asked", "rounds"),
    [
        *((asked, False) for asked in ("highest", "float32", "F32_F32_F32", "F64_F64_F64")),
        *((asked, True) for asked in ("TF32_TF32_F32", "high", "tensorfloat32", None)),
    ],
)
def test_what_is_asked_of_products(like_a_gpu, asked, rounds):
    with jax.default_matmul_precision(asked):
        assert jax_modes.rounded() == ("tensorfloat32" if rounds else "")


def product(x, w):
    if jax.config.jax_default_matmul_precision == "highest":
        return x @ w
    return rounding(x, w)


def few(x):
    return jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=10)


@jax.custom_vjp
def rounding(x, w):
    return few(x) @ few(w)


rounding.defvjp(
    lambda x, w: (few(x) @ few(w), (x, w)),
    lambda kept, g: (few(g) @ few(kept[1]).T, few(kept[0]).T @ few(g)),
)


def loss_of(params, batch):
    x = batch[0]
    for w in params:
        x = jnp.tanh(product(x, w))
    return jnp.mean((x - batch[1]) ** 2)


def in_jax(factor=1.0, lr=1e-3, shows=True):
    """A step that scales the loss before it differentiates, as a fused program may."""

    def training():
        rng = np.random.default_rng(0)
        tx = optax.adamw(lr, weight_decay=0.1)
        params = [jnp.asarray(rng.normal(size=(16, 16)) / 4, jnp.float32) for _ in range(6)]
        batches = [tuple(np.float32(rng.normal(size=(8, 16))) for _ in range(2)) for _ in range(3)]

        @jax.jit
        def step(params, state, batch):
            grads = jax.grad(lambda p: 3 * loss_of(p, batch))(params)
            grads = jax.tree.map(lambda g: factor * g / 3, grads)
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        return Training(
            step=step,
            loss=loss_of,
            batches=batches,
            params=params,
            opt_state=tx.init(params),
            optimizer=tx if shows else None,
        )

    return training


CLAIMED = {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.1}


@pytest.mark.parametrize("claims", [{}, CLAIMED], ids=["seen", "claimed"])
def test_rounded_products_in_jax(like_a_gpu, claims):
    result = check_step(in_jax(shows=not claims), **claims)
    assert (result.verdict, result.headline) == ("pass", result.headline)
    assert check_step(in_jax(1.05, shows=True), **claims).verdict == "fail"


def test_a_short_step_of_jax_does_not_look_too_long(like_a_gpu):
    result = check_step(in_jax(lr=1e-7))
    assert (result.verdict, result.headline) == ("pass", result.headline)
    assert "step-too-long" not in {f.code for f in result.findings}
