"""Cases that were once told wrongly: healthy models that raised, sick ones that were redrawn."""

import pytest

from pytest_gradcheck import UsageError, check_flow

torch = pytest.importorskip("torch")
jax = pytest.importorskip("jax")
nn, F = torch.nn, torch.nn.functional


def batch():
    torch.manual_seed(0)
    return torch.randn(64, 16), torch.randint(0, 5, (64,))


def cross_entropy(model, data):
    return F.cross_entropy(model(data[0]), data[1])


@pytest.mark.parametrize("seed", range(2))
def test_targets_stay_what_they_are(seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 1), nn.Sigmoid())
    data = torch.randn(64, 16), torch.tensor([[0.0], [0.0], [1.0], [1.0]] * 16)

    def loss(model, data):
        return F.binary_cross_entropy(model(data[0]), data[1])

    assert check_flow(model, loss, data, seed=seed).verdict == "pass"


def test_a_loss_may_differentiate_inside():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1)
    )

    def residual(model, x):
        x = x.clone().requires_grad_()
        u = model(x)
        (slope,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        return ((slope - u) ** 2).mean()

    assert check_flow(model, residual, torch.rand(64, 1), seed=0).verdict == "pass"


def test_parameters_without_layers():
    x = jax.random.normal(jax.random.key(2), (64, 16))
    parameters = {"w": jax.numpy.ones(16), "b": jax.numpy.zeros(16)}

    def loss(p, x):
        return jax.numpy.mean((x * p["w"] + p["b"]) ** 2)

    assert check_flow(parameters, loss, x).verdict in ("pass", "vacuous")


def test_a_few_odd_numbers_are_no_draw():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 6), nn.ReLU(), nn.Linear(6, 5))
    model[0].bias.data.fill_(-10.0)
    assert check_flow(model, cross_entropy, batch(), seed=0).verdict != "pass"


def test_trained_statistics_are_no_draw():
    torch.manual_seed(0)
    parts = [nn.Linear(16, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 5)]
    model = nn.Sequential(*parts).eval()
    model[1].running_mean.fill_(1e3)
    assert check_flow(model, cross_entropy, batch(), seed=0).verdict != "pass"


def test_slips_are_told():
    model = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 5))
    with pytest.raises(UsageError, match="make must be a function"):
        check_flow(model, cross_entropy, batch(), make=model)
    with pytest.raises(UsageError, match="closure"):
        check_flow(model, cross_entropy, batch(), optimizer=torch.optim.LBFGS)
    with pytest.raises(UsageError, match="without a shape"):
        check_flow(nn.LazyLinear(5), cross_entropy, batch())
