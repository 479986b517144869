"""Hooks on gradients that the step itself puts on: the loss says whether they are right."""

import pytest

from pytest_gradcheck import Training, check_step

torch = pytest.importorskip("torch")
nn, F = torch.nn, torch.nn.functional


def training(put, at, size=4, is_taken_off=False):
    """A loop that puts hooks on at some calls; ``made`` are the models."""

    def build():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(size, size), nn.Tanh(), nn.Linear(size, 3))
        build.made.append(model)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        calls = [0]

        def loss(batch):
            return F.cross_entropy(model(batch[0]), batch[1])

        def step(batch):
            calls[0] += 1
            handle = put(model) if calls[0] in at else None
            optimizer.zero_grad()
            loss(batch).backward()
            optimizer.step()
            if handle is not None and is_taken_off:
                handle.remove()

        batches = [(torch.randn(16, size), torch.randint(0, 3, (16,))) for _ in range(7)]
        return Training(step=step, loss=loss, batches=batches, model=model, optimizer=optimizer)

    build.made = []
    return build


def doubled(model):
    return model[0].weight.register_hook(lambda g: 2 * g)


def doubled_later(model):
    def double(p):
        p.grad.mul_(2)

    return model[0].weight.register_post_accumulate_grad_hook(double)


def doubled_on_the_way(model):
    return model[2].register_full_backward_hook(lambda module, given, got: (2 * given[0],))


def masked(model):
    """The first rows are not trained."""
    mask = torch.ones_like(model[0].weight)
    mask[:2] = 0.0
    return model[0].weight.register_hook(lambda g: mask * g)


def seen(model):
    """For a log."""
    return model[0].weight.register_hook(lambda g: None)


@pytest.mark.parametrize("size", [4, 320])
@pytest.mark.parametrize(("at", "is_taken_off"), [((1,), False), ((3,), False), ((5,), True)])
@pytest.mark.parametrize("put", [doubled, doubled_later, doubled_on_the_way])
def test_a_factor(put, at, is_taken_off, size):
    build = training(put, at, size, is_taken_off)
    result = check_step(build)
    assert (result.verdict, result.headline) == ("fail", result.headline)
    (model,) = build.made
    hooks = (model[0].weight._backward_hooks, model[0].weight._post_accumulate_grad_hooks)
    assert not any(hooks)
    assert not model[2]._backward_hooks


@pytest.mark.parametrize("size", [4, 320])
@pytest.mark.parametrize(("at", "is_taken_off"), [((1,), False), ((3,), False), ((3, 5), True)])
@pytest.mark.parametrize("put", [masked, seen])
def test_what_is_meant_and_claimed(put, at, is_taken_off, size):
    why = "two rows are frozen" if put is masked else None
    result = check_step(training(put, at, size, is_taken_off), semi_gradient=why)
    assert (result.verdict, result.headline) == ("pass", result.headline)
    assert ("step-semi-gradient" in [f.code for f in result.findings]) == (put is masked)


def test_what_is_not_claimed_is_named_with_its_update():
    result = check_step(training(masked, (3,)))
    assert "at update 4, where hooks on gradients are others, the loss" in result.headline
    assert "claim semi_gradient=" in result.advice[0]


def test_hooks_that_were_there_are_there_again():
    build = training(lambda model: model[0].weight._backward_hooks.clear(), (2,))

    def with_a_hook():
        made = build()
        made.model[0].weight.register_hook(lambda g: None)
        return made

    check_step(with_a_hook)
    assert len(build.made[0][0].weight._backward_hooks) == 1


def test_hooks_with_keywords_deep_inside_are_there_again():
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Sequential(nn.Linear(8, 8), nn.Tanh()))
    model = nn.Sequential(nn.Linear(8, 8), inner, nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    calls = []
    handle = inner[0][0].register_forward_hook(
        lambda module, args, kwargs, out: calls.append(1), with_kwargs=True
    )

    def loss(batch):
        return F.cross_entropy(model(batch[0]), batch[1])

    def step(batch):
        handle.remove()
        optimizer.zero_grad()
        (2 * loss(batch)).backward()  # wrong, so that all runs once more
        optimizer.step()

    batches = [(torch.randn(16, 8), torch.randint(0, 3, (16,))) for _ in range(7)]
    parts = {"model": model, "optimizer": optimizer, "batches": batches}
    result = check_step(Training(step=step, loss=loss, **parts))
    assert "2 times the right gradient" in result.headline
    calls.clear()
    model(batches[0][0])
    assert calls == [1]
