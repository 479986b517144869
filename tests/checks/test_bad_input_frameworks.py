"""Bad input with tensors, JAX arrays and modules."""

import subprocess
import sys
import warnings

import numpy as np
import pytest

from pytest_gradcheck import UsageError, check_gradient

torch = pytest.importorskip("torch")
jnp = pytest.importorskip("jax.numpy")

X = np.array([0.5, 1.0, 2.0])


def refused(message, *args, **kwargs):
    with pytest.raises(UsageError, match=message):
        check_gradient(*args, **kwargs)


def test_zero_dimensional_tensors_and_jax_arrays():
    assert check_gradient(lambda x: x**3, torch.tensor(2.0)).verdict == "pass"
    assert check_gradient(lambda x: x**3, jnp.array(2.0)).verdict == "pass"
    assert check_gradient(lambda x: jnp.sin(x), 2.0, backend="jax").verdict == "pass"


def test_a_module_with_frozen_parameters_only():
    model = torch.nn.Linear(2, 2).requires_grad_(False)
    refused(
        "no trainable parameter .frozen: weight, bias. and no floating-point input",
        lambda_free_module(model),
        torch.tensor([1, 2]),
    )


def lambda_free_module(model):
    class Lookup(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.bias = model.weight, model.bias

        def forward(self, index):
            return self.weight[index % 2].sum()

    return Lookup()


def test_a_module_without_parameters_is_checked_in_its_input():
    assert check_gradient(torch.nn.Tanh(), torch.randn(4)).verdict == "pass"


def test_mixed_frameworks():
    refused(
        "mix frameworks: x is torch, y is numpy; convert them to one, or name",
        lambda x, y: x * torch.as_tensor(y),
        torch.ones(3),
        X,
    )
    refused("x is torch, y is jax", lambda x, y: x, torch.ones(3), jnp.ones(3))


def test_a_named_backend_takes_the_others_as_constants():
    result = check_gradient(
        lambda x, y: x * torch.as_tensor(y), torch.ones(3).double(), X, backend="torch"
    )
    assert result.verdict == "pass"


def test_numpy_inputs_of_a_jax_function_point_to_the_backend():
    refused("for inputs of numpy; name backend='jax'", lambda x: jnp.sin(x), np.ones(3))
    assert check_gradient(lambda x: jnp.sin(x), np.ones(3), backend="jax").verdict == "pass"


def test_a_backward_that_raises_is_named():
    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            raise KeyError("lost")

    refused("the derivative of Broken.apply raised KeyError: 'lost'", Broken.apply, torch.ones(2))


def test_modules_whose_parameters_cannot_be_exchanged():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's own, of scripting
        scripted = torch.jit.script(torch.nn.Linear(3, 2))
    refused("the parameters of a scripted module", scripted, torch.randn(4, 3))
    x = torch.randn(4, 3)
    assert check_gradient(lambda x: scripted(x), x).verdict == "pass"
    refused("parameters without a shape", torch.nn.LazyLinear(3), x)


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a GPU that is not there")
def test_a_device_that_is_not_there():
    refused("cannot be copied to device cuda", torch.sin, torch.randn(3), device="cuda")


def test_a_lazy_conjugate():
    z = torch.randn(3, dtype=torch.complex64).conj()
    assert check_gradient(lambda z: z * z, z).verdict == "pass"


def test_flags_that_the_function_sets_are_set_back():
    before = torch.get_float32_matmul_precision()

    def f(x):
        torch.set_float32_matmul_precision("medium")
        torch.autograd.set_detect_anomaly(True, check_nan=False)
        torch.backends.cudnn.benchmark = True
        return x.sin()

    assert check_gradient(f, torch.randn(3)).verdict == "pass"
    assert torch.get_float32_matmul_precision() == before
    assert not torch.is_anomaly_enabled()
    assert not torch.backends.cudnn.benchmark


def test_an_output_whose_shape_hangs_on_the_values():
    x = torch.linspace(-1, 1, 41)[torch.arange(41) != 20] + 1e-3
    for seed in range(4):
        assert check_gradient(lambda x: x[x > 0] ** 2, x, seed=seed).verdict == "pass"


def test_flags_that_are_frozen_are_left_alone():
    script = (
        "import torch; torch.backends.disable_global_flags()\n"  # for good, so in its own process
        "from pytest_gradcheck import check_gradient\n"
        "print(check_gradient(torch.sin, torch.ones(3)).verdict)\n"
    )
    command = [sys.executable, "-c", script]
    assert subprocess.run(command, capture_output=True, text=True).stdout.split() == ["pass"]


def test_an_argument_that_is_handed_on_and_not_taken_is_told():
    with pytest.raises(UsageError, match=r"atol= is no argument of the check, which hands it on"):
        check_gradient(torch.tanh, torch.ones(2), atol=1e-3)
