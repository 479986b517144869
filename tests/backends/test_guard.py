"""The state guard: everything that a probe may disturb is bit-identical afterwards."""

import copy
import random

import numpy as np
import pytest

from pytest_gradcheck import UsageError, check_gradient

torch = pytest.importorskip("torch")
jax = pytest.importorskip("jax")
nnx = pytest.importorskip("flax.nnx")


def states():
    return (
        random.getstate(),
        np.random.get_state(legacy=False)["state"]["pos"],
        np.random.get_state(legacy=False)["state"]["key"].tobytes(),
        torch.get_rng_state().numpy().tobytes(),
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        jax.config.jax_enable_x64,
    )


class BoomError(Exception):
    pass


def disturbing(x, fail=False):
    """Draws from every generator, changes every flag, and raises on request."""
    noise = random.random() + np.random.random() + float(torch.rand(()))
    torch.set_default_dtype(torch.float64)
    torch.set_grad_enabled(True)
    if fail:
        raise BoomError
    return (x * x).sum() * (1 + noise)


@pytest.fixture(autouse=True)
def _same_default_dtype():
    yield
    torch.set_default_dtype(torch.float32)


def test_generators_and_flags_survive_a_check():
    x = torch.ones(3).double()
    before = states()
    assert check_gradient(disturbing, x).verdict == "pass"
    assert states() == before


def test_torch_generators_and_flags_survive_an_exception():
    before = states()
    with pytest.raises(UsageError, match="raised BoomError"):
        check_gradient(disturbing, torch.ones(3).double(), True)
    assert states() == before


@pytest.mark.parametrize("name", ["numpy", "torch", "jax"])
def test_generators_survive_an_exception(name):
    def drawing(x):
        random.random()
        np.random.random()
        raise BoomError

    x = {"numpy": np.ones(3), "torch": torch.ones(3), "jax": jax.numpy.ones(3)}[name]
    before = states()
    with pytest.raises(UsageError, match="raised BoomError"):
        check_gradient(drawing, x)
    assert states() == before


def test_no_grad_of_the_caller_is_respected_and_kept():
    with torch.no_grad():
        assert check_gradient(torch.sin, torch.ones(2)).verdict == "pass"
        assert not torch.is_grad_enabled()


def test_inference_mode_of_the_caller_is_no_obstacle():
    with torch.inference_mode():
        assert check_gradient(torch.sin, torch.ones(2)).verdict == "pass"
        assert torch.is_inference_mode_enabled()


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Tanh(), torch.nn.Linear(4, 1)
    )


def module_state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("as_module", [True, False], ids=["module", "closure"])
def test_buffers_parameters_and_gradients_of_a_module_survive(as_module):
    model, x = network(), torch.randn(5, 3)
    model(x).sum().backward()
    before, grads = module_state(model), [p.grad.clone() for p in model.parameters()]
    fn = model if as_module else lambda x: model(x)
    assert check_gradient(fn, x).verdict == "pass"
    after = module_state(model)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(torch.equal(a, p.grad) for a, p in zip(grads, model.parameters(), strict=True))
    assert model.training


def test_a_module_that_writes_into_its_parameters_gets_them_back_even_when_it_raises():
    model = network()
    before = module_state(model)

    def meddling(x):
        with torch.no_grad():
            model[0].weight.add_(1.0)
        model.eval()
        raise BoomError

    with pytest.raises(UsageError):
        check_gradient(meddling, torch.ones(2, 3))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model.training


def test_the_callers_arrays_are_never_written_into():
    x, data, labels = np.ones(3), np.arange(3.0), np.array([0, 1, 2])
    kept = x.copy(), data.copy(), labels.copy()

    def in_place(x, data, labels):
        x *= 2
        data[:] = data * 1.0
        labels[:] = labels
        return float((x * data).sum())

    assert check_gradient(in_place, x, data, labels, wrt=0, grad=lambda *a: 2 * a[1]).verdict
    assert all(np.array_equal(a, b) for a, b in zip(kept, (x, data, labels), strict=True))


def test_arrays_of_an_instance_with_hand_written_layers_survive():
    class Layer:
        def __init__(self):
            self.w, self.mean = np.ones((2, 2)), np.zeros(2)

        def forward(self, x):
            self.mean += 1
            self.cache = x
            return x @ self.w

        def backward(self, cotangent, x):
            return cotangent @ self.w.T

    layer = Layer()
    x = np.array([[1.0, 2.0]])
    assert check_gradient(layer.forward, x, vjp=layer.backward).verdict == "pass"
    assert np.array_equal(layer.mean, np.zeros(2))
    assert not hasattr(layer, "cache")


def test_an_nnx_module_in_a_closure_keeps_its_state():
    model = nnx.BatchNorm(3, rngs=nnx.Rngs(0))
    before = np.asarray(model.mean[...]).copy()
    x = jax.random.normal(jax.random.key(0), (4, 3))
    assert check_gradient(model, x).verdict == "pass"
    assert np.array_equal(before, np.asarray(model.mean[...]))


def test_a_random_function_is_differentiated_at_one_draw():
    result = check_gradient(
        lambda x: torch.nn.functional.dropout(x, 0.5) ** 2, torch.randn(20).double()
    )
    assert result.verdict == "pass"
    assert not [f for f in result.findings if f.code == "nondeterministic"]


@pytest.mark.parametrize(
    "own",
    [np.random.default_rng(0), random.Random(0)],
    ids=["numpy", "python"],
)
def test_a_generator_of_its_own_is_set_back_and_kept(own):
    expected = copy.deepcopy(own).random()
    result = check_gradient(
        lambda x: float((x**2).sum() * own.random()), np.ones(3), jac=lambda x: 2 * x * expected
    )
    assert result.verdict == "pass"
    assert own.random() == expected


def test_a_torch_generator_of_its_own_is_set_back_and_kept():
    own = torch.Generator().manual_seed(3)
    before = own.get_state()

    def f(x):
        return (x * torch.rand(3, generator=own)).sum()

    assert check_gradient(f, torch.ones(3)).verdict == "pass"
    assert torch.equal(own.get_state(), before)


def test_a_function_with_a_counter_is_not_accused():
    calls = []

    def f(x):
        calls.append(1)
        return float((x**2).sum() * len(calls))

    result = check_gradient(f, np.ones(3), grad=lambda x: 2 * x)
    assert result.verdict == "undecided"
    assert {"unrepeatable", "nondeterministic"} <= {f.code for f in result.findings}


def test_a_part_used_twice_keeps_its_parameters():
    shared = torch.nn.Linear(3, 3)
    model = torch.nn.Sequential(shared, torch.nn.Tanh(), shared)
    weight, before = shared.weight, shared.weight.detach().clone()
    assert check_gradient(model, torch.randn(2, 3)).verdict == "pass"
    assert shared.weight is weight
    assert torch.equal(weight, before)


def test_tied_weights_are_one_input_and_keep_their_tie():
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Tanh(), torch.nn.Linear(3, 3))
    model[2].weight = model[0].weight
    result = check_gradient(model, torch.randn(2, 3))
    assert result.verdict == "pass"
    assert [row[0] for row in result.table("resolution").rows][:1] == ["0.weight"]
    assert model[2].weight is model[0].weight


def test_a_module_that_rebuilds_itself_is_put_together_again():
    model = network()
    before = module_state(model)
    weight = model[0].weight

    def rebuilding(x):
        model[0].weight = torch.nn.Parameter(torch.ones(4, 3))
        model[0].extra = "text"
        model.register_buffer("new", torch.ones(1))
        torch.use_deterministic_algorithms(True)
        return model(x)

    check_gradient(rebuilding, torch.randn(4, 3))
    assert model[0].weight is weight
    assert not hasattr(model[0], "extra")
    assert not torch.are_deterministic_algorithms_enabled()
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_plain_attributes_of_an_instance_survive():
    class Counter:
        count = 0

        def __call__(self, x):
            self.count += 1
            return float((x**2).sum())

    counter = Counter()
    assert check_gradient(counter, np.ones(3), grad=lambda x: 2 * x).verdict == "pass"
    assert counter.count == 0
