"""Right gradients of functions that are hard to difference: never accused, whatever the seed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from identities import scaled

from pytest_gradcheck import check_gradient

SEEDS = range(4)


def attention(seed, dtype=torch.float32, inside=torch.float32):
    """Logits that are cast for the softmax, as in many transformers."""
    draw = torch.Generator().manual_seed(seed)
    shapes = [(3, 8), (8, 4), (8, 4), (8, 4)]
    inputs = [torch.randn(*shape, generator=draw, dtype=dtype) for shape in shapes]

    def f(x, wq, wk, wv, bq):
        q, k, v = x @ wq + bq, x @ wk, x @ wv
        return torch.softmax((q @ k.T).to(inside), -1).to(q.dtype) @ v

    return f, [*inputs, torch.zeros(4, dtype=dtype)]


SCALES = torch.tensor([1e-4, 1.0, 1e4], dtype=torch.float64)
GRID = torch.linspace(-1, 1, 15, dtype=torch.float64).reshape(3, 5)
FEW = torch.linspace(0.1, 1, 5, dtype=torch.float64)
PASSING = {
    "softmax in float32": (
        lambda x, b: torch.softmax((x + b).float(), -1).to(x.dtype),
        [GRID, torch.zeros(1, dtype=torch.float64)],
    ),
    "attention in float32": attention(2),
    "tanh in float32": (lambda x: torch.tanh((x @ x.T).float()).double(), [GRID]),
    "a fast wave": (lambda x: torch.sin(1e6 * x), [FEW]),
    "a sawtooth": (lambda x: torch.frac(5e5 * x), [FEW]),
    "elements of many sizes": (
        lambda x: torch.sin(x * SCALES).sum(),
        [torch.tensor([3e3, 0.7, 2e-4], dtype=torch.float64)],
    ),
    "jumps at the point": (
        lambda x: x.detach().int().sum() * 3.0 + x.sin().sum(),
        [torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64)],
    ),
    "one jump among others": (
        lambda x: x.detach().floor() * 3.0 + x.sin(),
        [torch.tensor([1.0, 0.5, 0.3, 0.7], dtype=torch.float64)],
    ),
}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", PASSING)
def test_a_hard_function_passes(name, seed):
    f, inputs = PASSING[name]
    result = check_gradient(f, *inputs, seed=seed)
    assert result.verdict == "pass", result.headline


# Here nothing in float32 can tell, and nothing is said.
OPEN = {
    "a saturated softmax in float32": attention(1),
    "a wave too fast for float32": (lambda x: torch.sin(1e6 * x), [FEW.float()]),
}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", OPEN)
def test_what_cannot_be_told_is_not_accused(name, seed):
    f, inputs = OPEN[name]
    assert check_gradient(f, *inputs, seed=seed).verdict == "undecided"


# Rounded inside, which NumPy does not show: what was cast stands still at small steps.
def logits(x):
    return 1e-3 * np.log(np.float64(np.exp(x.astype(np.float32)).sum())) + np.sin(x).sum()


CAST = {
    "a sum": (
        lambda x: np.float64(np.exp(x.astype(np.float32)).sum()) + (x**3).sum(),
        lambda x: np.exp(x) + 3 * x * x,
    ),
    "logits": (logits, lambda x: 1e-3 * np.exp(x) / np.exp(x).sum() + np.cos(x)),
    "a factor": (
        lambda x: (np.tanh(x.astype(np.float32)).astype(np.float64) * x).sum(),
        lambda x: np.tanh(x) + x / np.cosh(x) ** 2,
    ),
}


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("name", CAST)
def test_a_float32_part_in_numpy(name, seed):
    f, grad = CAST[name]
    x = np.random.default_rng(seed).normal(size=6)
    result = check_gradient(f, x, grad=grad, seed=seed)
    assert result.verdict == "pass", result.headline
    wrong = check_gradient(f, x, grad=lambda x: 1.02 * grad(x), seed=seed)
    assert wrong.verdict == "fail", wrong.headline


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_bfloat16_part_is_not_accused(dtype, seed):
    f, inputs = attention(seed, dtype, torch.bfloat16)
    assert check_gradient(f, *inputs, seed=seed).verdict != "fail"


@pytest.mark.parametrize("seed", SEEDS)
def test_a_softmax_in_float32_by_jax(seed):
    def f(x, w, b):
        logits = (x @ w + b).astype(jnp.float32)
        return jax.nn.softmax(logits).astype(x.dtype) @ w.T

    keys = jax.random.split(jax.random.key(0), 2)
    inputs = jax.random.normal(keys[0], (3, 4)), jax.random.normal(keys[1], (4, 5)), jnp.zeros(5)
    assert check_gradient(f, *inputs, seed=seed).verdict == "pass"


@pytest.mark.parametrize("factor", [0.0, 1.1])
def test_a_wrong_gradient_behind_a_cast_is_still_seen(factor):
    f, inputs = attention(2)

    def spoilt(x, *others):
        return f(scaled(factor)(x), *others)

    assert check_gradient(spoilt, *inputs, seed=0).verdict == "fail"


@pytest.mark.parametrize("seed", SEEDS)
def test_a_derivative_that_ends_beside_the_point(seed):
    def entropy(a):
        return np.where(a > 0, a * np.log(np.where(a > 0, a, 1)), 0).sum()

    a = np.array([1e-3, 0.5, 1e-9])
    result = check_gradient(entropy, a, grad=lambda a: np.log(a) + 1, seed=seed)
    assert result.verdict == "pass", result.headline


@pytest.mark.parametrize("seed", SEEDS)
def test_a_flat_function_with_a_gradient_is_wrong(seed):
    class Rounded(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.round()

        @staticmethod
        def backward(ctx, w):
            return w

    x = torch.linspace(-2.3, 2.4, 20, dtype=torch.float64)
    assert check_gradient(Rounded.apply, x, seed=seed).verdict == "fail"


@pytest.mark.parametrize("seed", SEEDS)
def test_a_cast_for_the_backward_alone_hides_nothing(seed):
    class Softplus(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(torch.sigmoid(x).half())
            return torch.nn.functional.softplus(x)

        @staticmethod
        def backward(ctx, w):
            (slope,) = ctx.saved_tensors
            return w * slope.to(w.dtype)

    assert check_gradient(Softplus.apply, FEW, seed=seed).verdict == "fail"


class Rounded(torch.autograd.Function):
    """A straight-through estimator with fine stairs."""

    @staticmethod
    def forward(ctx, x):
        return torch.round(127 * x) / 127

    @staticmethod
    def backward(ctx, upstream):
        return upstream


@pytest.mark.parametrize("seed", [2, 4, 5])
def test_the_flat_part_of_fine_stairs_is_no_slope(seed):
    x = torch.tensor(np.random.default_rng(seed).normal(size=6))
    result = check_gradient(lambda x: (Rounded.apply(x) ** 2).sum(), x, seed=seed)
    assert result.verdict == "pass", result.headline
