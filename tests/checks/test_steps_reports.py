"""Right loops that once raised inside the check."""

import pytest

from pytest_gradcheck import Training, UsageError, check_clipping, check_step

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


def adaptive(parameters, axes):
    """Clips each unit by the norm of its weights (Brock et al. 2021)."""

    def size(x):
        return x.norm() if x.ndim <= 1 else x.norm(dim=axes(x), keepdim=True)

    for p in parameters:
        if p.grad is not None:
            most, norm = size(p.detach()).clamp(min=1e-3) * 0.1, size(p.grad)
            p.grad.copy_(torch.where(norm < most, p.grad, p.grad * (most / norm.clamp(min=1e-6))))


def rows(x):
    return tuple(range(1, x.ndim))


def columns(x):
    return (0,)


@pytest.mark.parametrize(("axes", "verdict"), [(rows, "pass"), (columns, "fail")])
def test_the_units_of_torch_are_rows(axes, verdict):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3))
    result = check_clipping(
        lambda ps: adaptive(ps, axes), params=model, max_norm=0.1, per="unit", seed=0
    )
    assert result.verdict == verdict, result.headline


def test_a_clip_that_takes_gradients_away():
    def skipping(parameters):
        found = [p.grad for p in parameters if p.grad is not None]
        norms = [g.float().norm() for g in found] or [torch.zeros(())]
        norm = torch.linalg.vector_norm(torch.stack(norms))
        if not torch.isfinite(norm):
            for p in parameters:
                p.grad = None
        elif norm > 1:
            for g in found:
                g.mul_(1 / norm)
        return norm

    result = check_clipping(skipping, max_norm=1.0, nonfinite="skip", seed=0)
    assert result.verdict == "pass", result.headline


def test_parameters_in_a_dict():
    parameters = {"a": torch.ones(3, requires_grad=True), "b": torch.ones(2, 2, requires_grad=True)}
    clip = torch.nn.utils.clip_grad_norm_
    assert check_clipping(clip, max_norm=1.0, params=parameters).verdict == "pass"
    with pytest.raises(UsageError, match="a list or a dict"):
        check_clipping(clip, max_norm=1.0, params=["a"])


def test_a_state_that_is_not_known_is_no_crash():
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.ASGD(model.parameters())
    batches = [(torch.randn(8, 3), torch.randn(8, 2)) for _ in range(4)]

    def loss(batch):
        return F.mse_loss(model(batch[0]), batch[1])

    def step(batch):
        optimizer.zero_grad()
        loss(batch).backward()
        optimizer.step()

    step(batches[0])
    training = Training(step=step, loss=loss, batches=batches, model=model, optimizer=optimizer)
    assert check_step(training, seed=0).verdict != "fail"


class Teacher(nn.Module):
    """A network with an average of its first layer, which only the step moves."""

    def __init__(self):
        super().__init__()
        self.student, self.head = nn.Linear(8, 4), nn.Linear(4, 1)
        self.average = nn.Linear(8, 4).requires_grad_(False)

    def forward(self, x):
        return self.head(torch.tanh(self.student(x)))


def averaging():
    model = Teacher()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1)
    batches = [(torch.randn(n, 8), torch.randn(n, 1)) for n in (16, 16, 16, 5)]

    def loss(batch):
        return F.mse_loss(model(batch[0]), batch[1])

    def step(batch):
        optimizer.zero_grad()
        loss(batch).backward()
        optimizer.step()
        with torch.no_grad():
            pairs = zip(model.average.parameters(), model.student.parameters(), strict=True)
            for mine, other in pairs:
                mine.lerp_(other, 0.01)

    return Training(step=step, loss=loss, batches=batches, model=model, optimizer=optimizer)


@pytest.mark.parametrize(("claim", "verdict"), [({}, "pass"), ({"frozen": "average.*"}, "fail")])
def test_an_average_of_weights_may_move_unless_that_is_denied(claim, verdict):
    torch.manual_seed(0)
    result = check_step(averaging, seed=0, **claim)
    assert result.verdict == verdict, result.headline
    assert "step-frozen-moved" in [finding.code for finding in result.findings]
