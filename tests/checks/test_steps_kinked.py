"""A start at which the loss has kinks: blocks that begin at zero behind rectifiers (ResNets)."""

import pytest
from trainings import plain, usual

from pytest_gradcheck import Training, check_step

torch = pytest.importorskip("torch")
nn = torch.nn


class Longer(torch.autograd.Function):
    """Its backward is too long."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return 1.1 * g


class Block(nn.Module):
    """What it adds is zero at the start, beside a shortcut of which half is exactly zero."""

    def __init__(self, norm, is_wrong=False):
        super().__init__()
        self.layer, self.norm, self.is_wrong = nn.Linear(16, 16), norm(16), is_wrong
        nn.init.zeros_(self.norm.weight)

    def forward(self, x):
        more = self.norm(self.layer(x))
        return torch.relu(x + (Longer.apply(more) if self.is_wrong else more))


def residual(seed, norm=nn.BatchNorm1d, is_wrong=False, dtype=torch.float32):
    torch.manual_seed(seed)
    blocks = Block(norm), Block(norm, is_wrong)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), *blocks, nn.Linear(16, 1)).to(dtype)
    training = plain(usual, model=model)
    training.batches[:] = [tuple(x.to(dtype) for x in batch) for batch in training.batches]
    return training


@pytest.mark.parametrize("norm", [nn.BatchNorm1d, nn.LayerNorm])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_blocks_that_begin_at_zero_are_not_accused(norm, dtype):
    for seed in range(6):
        result = check_step(lambda s=seed: residual(s, norm, dtype=dtype))
        assert result.verdict == "pass", (seed, result.headline)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_wrong_backward_in_one_is_found_beside_the_kinks(dtype):
    for seed in range(4):
        result = check_step(lambda s=seed: residual(s, is_wrong=True, dtype=dtype))
        assert result.verdict == "fail"
        assert "(ratio 1." in result.headline, result.headline


def test_a_block_of_jax_that_begins_at_zero():
    jax = pytest.importorskip("jax")
    optax = pytest.importorskip("optax")
    np, relu = jax.numpy, jax.nn.relu

    @jax.custom_vjp
    def longer(x):
        return x

    longer.defvjp(lambda x: (x, None), lambda _, g: (1.1 * g,))

    def training(is_wrong):
        keys = jax.random.split(jax.random.key(0), 10)
        shapes = {"first": (8, 16), "layer": (16, 16), "last": (16, 1)}
        params = {
            n: jax.random.normal(k, s) / 4 for k, (n, s) in zip(keys, shapes.items(), strict=False)
        }
        params |= {"scale": np.zeros(16), "shift": np.zeros(16)}
        batches = [(jax.random.normal(k, (16, 8)), jax.random.normal(k, (16, 1))) for k in keys]
        tx = optax.sgd(0.01)

        def loss(p, batch):
            x = relu(batch[0] @ p["first"])
            more = p["scale"] * (x @ p["layer"]) + p["shift"]
            x = relu(x + (longer(more) if is_wrong else more))
            return ((x @ p["last"] - batch[1]) ** 2).mean()

        @jax.jit
        def step(p, state, batch):
            updates, state = tx.update(jax.grad(loss)(p, batch), state, p)
            return optax.apply_updates(p, updates), state

        return Training(step=step, loss=loss, batches=batches[:3], params=params, optimizer=tx)

    right = check_step(lambda: training(False))
    assert right.verdict == "pass", right.headline
    assert check_step(lambda: training(True)).verdict == "fail"
