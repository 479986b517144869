"""Parameters that are one number: a temperature, a bias that is a plain float."""

import numpy as np
import pytest
from trainings import plain

from pytest_gradcheck import Training, UsageError, check_step
from pytest_gradcheck.numerics.sizes import Sizes

BOUND = 0.5


def test_the_size_of_a_number():
    sizes, number = Sizes(), np.array(-3.0)
    assert sizes.of(number) == sizes.of(2.0 * number / 2.0) == 3.0
    assert sizes.whole([number, np.array([4.0])]) == 5.0


# --- torch ---------------------------------------------------------------------------------


def cold(clip, every, wrong, width=4):
    """A layer whose outputs are scaled by a number that is learned."""
    torch = pytest.importorskip("torch")

    class Cold(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(8, width)
            self.scale = torch.nn.Parameter(torch.tensor(1.3))

        def forward(self, x):
            return (self.layer(x) * self.scale.exp()).mean(1, keepdim=True)

    torch.manual_seed(0)
    calls = iter(range(100))

    def step(model, opt, loss, batch):
        number = next(calls)
        if number % every == 0:
            opt.zero_grad()
        (loss(batch) / every).backward()
        if (number + 1) % every:
            return
        clip(model.parameters(), BOUND)
        model.scale.grad *= wrong
        opt.step()

    return plain(step, model=Cold(), sizes=(16, 16, 16, 16))


def no_clip(parameters, bound):
    pass


def by_norm(parameters, bound):
    pytest.importorskip("torch").nn.utils.clip_grad_norm_(parameters, bound)


def by_value(parameters, bound):
    pytest.importorskip("torch").nn.utils.clip_grad_value_(parameters, bound)


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize(
    ("clip", "claims"),
    [(no_clip, {}), (by_norm, {"max_norm": BOUND}), (by_value, {"max_value": BOUND})],
)
def test_a_number_of_torch(clip, claims, every):
    result = check_step(lambda: cold(clip, every, 1.0), accumulate=every, **claims)
    assert result.verdict == "pass", result.headline
    result = check_step(lambda: cold(clip, every, 1.1), accumulate=every, **claims)
    assert result.verdict == "fail"
    assert "scale" in result.headline


def test_a_number_in_a_large_training():
    result = check_step(lambda: cold(no_clip, 1, 1.0, width=16_000))
    assert result.verdict == "pass", result.headline
    assert "step-spared" in [f.code for f in result.findings]
    assert check_step(lambda: cold(no_clip, 1, 1.1, width=16_000)).verdict == "fail"


# --- NumPy and JAX -------------------------------------------------------------------------


def batches():
    rng = np.random.default_rng(0)
    return [(rng.normal(size=(n, 3)), rng.normal(size=n)) for n in (16, 16, 5)]


def loss(params, batch):
    return ((batch[0] @ params["w"] + params["b"] - batch[1]) ** 2).mean()


def slopes(params, batch):
    off = 2 * (batch[0] @ params["w"] + params["b"] - batch[1]) / len(batch[1])
    return {"w": batch[0].T @ off, "b": off.sum()}


def kept(params, grads):
    """New parameters, the bias a plain float again."""
    return {"w": params["w"] - 0.05 * grads["w"], "b": float(params["b"] - 0.05 * grads["b"])}, None


def added(params, grads):
    """New parameters, the bias what NumPy makes of it."""
    return {key: params[key] - 0.05 * grads[key] for key in params}, None


def written(params, grads):
    """The parameters that it was given."""
    for key in params:
        params[key] -= 0.05 * grads[key]


def by_hand(update, wrong, **others):
    def step(params, state, batch):
        grads = slopes(params, batch)
        return update(params, {**grads, "b": wrong * grads["b"]})

    start = {"w": np.array([0.3, -0.2, 0.5]), "b": 0.1}
    return Training(step=step, loss=loss, batches=batches(), params=start, **others)


@pytest.mark.parametrize("update", [kept, added, written])
def test_a_plain_float_of_numpy(update):
    result = check_step(lambda: by_hand(update, 1.0, grad=slopes), optimizer="sgd", lr=0.05)
    assert result.verdict == "pass", result.headline
    result = check_step(lambda: by_hand(update, 1.2), optimizer="sgd", lr=0.05)
    assert result.verdict == "fail"
    assert "1.2 times the right one for b" in result.headline


@pytest.mark.parametrize("wrong", [1.0, 1.2])
def test_a_plain_float_alone(wrong):
    def step(params, state, batch):
        return params - 0.1 * wrong * 2 * np.mean(params - batch), state

    training = Training(
        step=step,
        loss=lambda params, batch: np.mean((params - batch) ** 2),
        batches=[batch[1] for batch in batches()],
        params=0.5,
    )
    result = check_step(lambda: training, optimizer="sgd", lr=0.1)
    assert result.verdict == ("pass" if wrong == 1 else "fail"), result.headline


def test_a_float_that_is_not_trained_is_told_how_to_be_a_setting():
    def training():
        made = by_hand(added, 1.0)
        return Training(
            step=lambda params, state, batch: (
                {**params, **added({k: params[k] for k in "wb"}, slopes(params, batch))[0]},
                state,
            ),
            loss=lambda params, batch: loss(params, batch) + params["unit"] ** 2,
            batches=made.batches,
            params={**made.params, "unit": 2.0},
        )

    result = check_step(training, optimizer="sgd", lr=0.05)
    assert "unit received no gradient" in result.headline
    assert "claim frozen=" in result.advice[0]
    assert check_step(training, optimizer="sgd", lr=0.05, frozen=["unit"]).verdict == "pass"


@pytest.mark.parametrize("wrong", [1.0, 1.2])
def test_a_plain_float_of_jax(wrong):
    jax = pytest.importorskip("jax")

    @jax.jit
    def step(params, state, batch):
        grads = jax.grad(loss)(params, batch)
        return {k: params[k] - 0.05 * g * (wrong if k == "b" else 1) for k, g in grads.items()}, 0

    def training():
        start = {"w": jax.numpy.array([0.3, -0.2, 0.5]), "b": 0.1}
        given = [tuple(map(jax.numpy.asarray, batch)) for batch in batches()]
        return Training(step=step, loss=loss, batches=given, params=start)

    result = check_step(training, optimizer="sgd", lr=0.05)
    assert result.verdict == ("pass" if wrong == 1 else "fail"), result.headline


# --- gradients of other shapes -------------------------------------------------------------


def test_a_gradient_of_one_number_fits_an_array_of_one():
    def training():
        made = by_hand(added, 1.0, grad=slopes)
        start = {"w": made.params["w"], "b": np.array([0.1])}
        return Training(
            step=made.step, loss=made.loss, batches=made.batches, params=start, grad=slopes
        )

    result = check_step(training, optimizer="sgd", lr=0.05)
    assert result.verdict == "pass", result.headline


@pytest.mark.parametrize(
    ("grad", "told"),
    [
        (lambda p, b: {"w": slopes(p, b)["w"]}, r"each of 2 parameters \(w and b\), it gave 1"),
        (lambda p, b: {"w": np.zeros((3, 3)), "b": 0.0}, r"w has the shape \(3,\), .*\(3, 3\)"),
        (lambda p, b: {"w": 1 / 0, "b": 0.0}, "Training.grad raised ZeroDivisionError"),
    ],
)
def test_a_gradient_that_does_not_fit_is_refused(grad, told):
    with pytest.raises(UsageError, match=told):
        check_step(lambda: by_hand(added, 1.0, grad=grad), optimizer="sgd", lr=0.05)
