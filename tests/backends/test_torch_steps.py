"""What a loop of torch sees of parameters, whoever writes them, and how it compares tensors."""

import numpy as np
import pytest

from pytest_gradcheck import Training, check_step

torch = pytest.importorskip("torch")
torch_steps = pytest.importorskip("pytest_gradcheck.backends.torch_steps")
torch_values = pytest.importorskip("pytest_gradcheck.backends.torch_values")


def numbers(model):
    return [p.detach().double().numpy().copy() for p in model.parameters()]


def are_same(some, others):
    return all(map(np.array_equal, some, others))


@pytest.mark.filterwarnings("ignore:Converting a tensor")
@pytest.mark.parametrize("is_looking_inside", [False, True])
def test_every_call_sees_parameters_as_they_are(is_looking_inside):
    """A loss and a step that write into ``.data``, which no counter of versions tells."""
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2).double()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    seen = []

    def loss(batch):
        value = (model(batch) ** 2).mean()
        model.weight.data.mul_(0.5)
        return value

    def step(batch):
        seen.append(numbers(model))
        optimizer.zero_grad()
        value = (model(batch) ** 2).mean()
        model.bias.data.add_(1.0)
        value.backward()
        optimizer.step()
        model.bias.data.add_(1.0)
        seen.append(numbers(model))

    batches = [torch.randn(4, 3, dtype=torch.float64) for _ in range(3)]
    start = numbers(model)
    loop = torch_steps.loop(
        Training(step=step, loss=loss, batches=batches, model=model, optimizer=optimizer)
    )
    loop.looks_inside = is_looking_inside
    for _ in range(2):
        with loop.held():
            for batch in batches:
                mark = loop.mark()
                loop.gradient(batch, None, mark)
                call = loop.call(batch)
                assert are_same(call.before, seen[-2])
                assert are_same(call.updates[0].before, [seen[-2][0], seen[-2][1] + 1])
                assert are_same(call.after, seen[-1])
                loop.value(batch, call.before, mark)
                loop.gradient(batch, call.updates[0].before, mark)
                assert are_same(numbers(model), call.after)
            assert are_same(seen[0], start)
        assert are_same(numbers(model), start)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int32])
@pytest.mark.parametrize("shape", [(3, 2), (300, 1000)])
def test_tensors_are_alike_by_form_and_numbers(shape, dtype):
    x = torch.arange(shape[0] * shape[1]).reshape(shape).to(dtype)
    assert torch_values.is_alike(x, x.clone())
    assert torch_values.is_alike(x, x.T.contiguous().T)  # laid out otherwise
    last = x.clone()
    last[-1, -1] = 0
    assert not torch_values.is_alike(x, last)
    assert not torch_values.is_alike(x, x.reshape(-1))
    assert not torch_values.is_alike(x, x.to(torch.float16))


def test_what_is_no_number_is_like_nothing():
    x = torch.full((300, 1000), torch.nan)
    assert not torch_values.is_alike(x, x)


class Halving(torch.optim.SGD):
    """Writes into the gradients that it is given, past their counters of versions."""

    def step(self, closure=None):
        super().step(closure)
        for p in self.param_groups[0]["params"]:
            p.grad.data.mul_(0.5)


def halving(p):
    """One of torch's own with a hook that does so."""
    optimizer = torch.optim.SGD(p, 0.1)
    optimizer.register_step_post_hook(lambda *_: [q.grad.mul_(0.5) for q in p])
    return optimizer


@pytest.mark.parametrize(
    ("make", "is_told"),
    [
        (lambda p: Halving(p, 0.1), True),
        (halving, True),
        (lambda p: torch.optim.SGD(p, 0.1), False),
    ],
)
def test_gradients_that_an_optimizer_writes_are_told(make, is_told):
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    optimizer = make(list(model.parameters()))

    def loss(batch):
        return (model(batch) ** 2).mean()

    def step(batch):
        optimizer.zero_grad()
        loss(batch).backward()
        optimizer.step()

    batches = [torch.randn(4, 3) for _ in range(3)]
    training = Training(step=step, loss=loss, batches=batches, model=model, optimizer=optimizer)
    codes = {f.code for f in check_step(training).findings}
    assert ("step-gradient-touched" in codes) == is_told


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("width", [8, 400])
@pytest.mark.parametrize(("factor", "verdict"), [(1.0, "pass"), (2.0, "fail")])
def test_a_scripted_model_takes_no_hooks(width, factor, verdict):
    def training():
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Linear(width, width), torch.nn.Tanh())
        model = torch.jit.script(net)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        batches = [(torch.randn(6, width), torch.randn(6, width)) for _ in range(3)]

        def loss(batch):
            return torch.nn.functional.mse_loss(model(batch[0]), batch[1])

        def step(batch):
            optimizer.zero_grad()
            (factor * loss(batch)).backward()
            optimizer.step()

        return Training(step=step, loss=loss, batches=batches, model=model, optimizer=optimizer)

    assert check_step(training).verdict == verdict
