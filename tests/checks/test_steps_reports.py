"""Right loops that once raised inside the check."""

import pytest

from pytest_gradcheck import Training, UsageError, check_step

torch = pytest.importorskip("torch")
jax = pytest.importorskip("jax")
nn, F = torch.nn, torch.nn.functional


def penalised():
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    batches = [(torch.randn(n, 8), torch.randn(n, 1)) for n in (16, 16, 16, 5)]

    def loss(batch):
        x = batch[0].clone().requires_grad_()
        answer = model(x)
        (slope,) = torch.autograd.grad(answer.sum(), x, create_graph=True)
        return F.mse_loss(answer, batch[1]) + 0.1 * ((slope.norm(dim=1) - 1) ** 2).mean()

    def step(batch):
        optimizer.zero_grad()
        loss(batch).backward()
        optimizer.step()

    return Training(step=step, loss=loss, batches=batches, model=model, optimizer=optimizer)


def test_a_loss_that_differentiates_inside():
    torch.manual_seed(0)
    result = check_step(penalised, seed=0)
    assert result.verdict == "pass", result.headline


def test_a_module_of_equinox_as_parameters():
    eqx, optax = pytest.importorskip("equinox"), pytest.importorskip("optax")

    def training():
        model = eqx.nn.MLP(4, 3, 8, 2, key=jax.random.key(0))
        transformation = optax.adam(1e-2)
        keys = jax.random.split(jax.random.key(1), 8)
        batches = [
            (jax.random.normal(a, (16, 4)), jax.random.normal(b, (16, 3)))
            for a, b in zip(keys[::2], keys[1::2], strict=True)
        ]

        def loss(model, batch):
            return jax.numpy.mean((jax.vmap(model)(batch[0]) - batch[1]) ** 2)

        @eqx.filter_jit
        def step(model, state, batch):
            value, gradient = eqx.filter_value_and_grad(loss)(model, batch)
            own = eqx.filter(model, eqx.is_inexact_array)
            updates, state = transformation.update(gradient, state, own)
            return eqx.apply_updates(model, updates), state, value

        state = transformation.init(eqx.filter(model, eqx.is_inexact_array))
        return Training(
            step=step,
            loss=loss,
            batches=batches,
            params=model,
            opt_state=state,
            optimizer=transformation,
        )

    result = check_step(training, seed=0)
    assert result.verdict == "pass", result.headline


@pytest.mark.parametrize(
    ("claim", "told"),
    [
        ({"frozen": "encoder.*"}, r"frozen='encoder.\*' fits no parameter; there are: 0.weight"),
        ({"no_decay": "*.biases"}, r"no_decay='\*.biases' fits no parameter"),
        ({"hyper": {"bettas": (0.8, 0.9)}}, "'bettas'.* is not known; known: "),
    ],
)
def test_a_claim_on_nothing_is_refused(claim, told):
    with pytest.raises(UsageError, match=told):
        check_step(penalised, **claim)
