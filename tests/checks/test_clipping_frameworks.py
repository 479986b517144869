"""Clips of torch and optax: their own, those with a mistake, and what differs legitimately."""

import math

import pytest

from pytest_gradcheck import UsageError, check_clipping

torch = pytest.importorskip("torch")
optax = pytest.importorskip("optax")
jnp = pytest.importorskip("jax.numpy")

clip_grad_norm_ = torch.nn.utils.clip_grad_norm_
clip_grad_value_ = torch.nn.utils.clip_grad_value_


def found(result):
    return {f.code for f in result.findings if f.severity == "fail"}


@pytest.mark.parametrize("max_norm", [1e-3, 1.0, 100.0])
def test_torch_itself(max_norm):
    result = check_clipping(clip_grad_norm_, max_norm=max_norm)
    assert (result.verdict, result.findings) == ("pass", ())


@pytest.mark.parametrize("p", [1.0, 2.0, math.inf])
def test_torch_orders(p):
    clip = lambda ps: clip_grad_norm_(ps, 1.0, norm_type=p)  # noqa: E731  # one line says all
    assert check_clipping(clip, max_norm=1.0, norm_type=p).verdict == "pass"


def test_torch_values_and_policies():
    assert check_clipping(clip_grad_value_, max_value=0.5).verdict == "pass"
    strict = lambda ps: clip_grad_norm_(ps, 1.0, error_if_nonfinite=True)  # noqa: E731  # the same
    assert check_clipping(strict, max_norm=1.0, nonfinite="raise").verdict == "pass"
    assert found(check_clipping(strict, max_norm=1.0, nonfinite="propagate")) == {"clip-nonfinite"}


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_torch_precisions(dtype):
    assert check_clipping(clip_grad_norm_, max_norm=1.0, dtypes=[dtype]).verdict == "pass"


def model():
    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 4))
    net[2].bias.requires_grad_(False)
    return net


def test_parameters_of_a_model_are_left_as_they_were():
    net = model()
    net[0].weight.grad = torch.full_like(net[0].weight, 7.0)
    before = [p.detach().clone() for p in net.parameters()]
    clip = lambda: clip_grad_norm_(net.parameters(), 1.0)  # noqa: E731  # one line says all
    assert check_clipping(clip, max_norm=1.0, params=net).verdict == "pass"
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    assert torch.equal(net[0].weight.grad, torch.full_like(net[0].weight, 7.0))
    assert net[2].weight.grad is None


def test_a_tensor_that_the_clip_does_not_know():
    net = model()
    clip = lambda: clip_grad_norm_(net[0].parameters(), 1.0)  # noqa: E731  # one line says all
    result = check_clipping(clip, max_norm=1.0, params=net)
    assert found(result) == {"clip-missed-tensor"}
    assert result.findings[0].where == "2.weight"


def test_tied_parameters_are_counted_once():
    def once(model):
        return clip_grad_norm_(model.parameters(), 1.0)

    def twice(model):
        lists = (model.first, model.tied)
        return clip_grad_norm_([p for ps in lists for p in ps.parameters()], 1.0)

    assert check_clipping(once, max_norm=1.0).verdict == "pass"
    assert "clip-tied" in found(check_clipping(twice, max_norm=1.0))


def test_none_gradients():
    def clip(parameters):
        total = torch.linalg.vector_norm(torch.stack([p.grad.norm() for p in parameters]))
        for p in parameters:
            p.grad.mul_(torch.clamp(1 / (total + 1e-6), max=1.0))

    assert found(check_clipping(clip, max_norm=1.0)) == {"clip-none"}


def test_a_sentinel_turns_gradients_around():
    def clip(parameters):  # deepspeed 8614
        sizes = [p.grad.norm() for p in parameters if p.grad is not None]
        total = torch.linalg.vector_norm(torch.stack(sizes))
        total = total if torch.isfinite(total) else torch.tensor(-1.0)
        for p in parameters:
            if p.grad is not None:
                p.grad.mul_(torch.clamp(1 / (total + 1e-6), max=1.0)).nan_to_num_(0, 0, 0)

    assert found(check_clipping(clip, max_norm=1.0)) == {"clip-nonfinite"}


def test_torch_usage():
    with pytest.raises(UsageError, match="params="):
        check_clipping(lambda: clip_grad_norm_([], 1.0), max_norm=1.0)
    with pytest.raises(UsageError, match="one argument"):
        check_clipping(lambda a, b: clip_grad_norm_(a, 1.0), max_norm=1.0)
    with pytest.raises(UsageError, match="no parameter"):
        check_clipping(clip_grad_norm_, max_norm=1.0, params=torch.nn.ReLU())


# --- optax ----------------------------------------------------------------------------------------

OPTAX = {
    "global norm": (optax.clip_by_global_norm(0.7), {"max_norm": 0.7}),
    "by value": (optax.clip(0.3), {"max_value": 0.3}),
    "per block": (
        optax.clip_by_block_rms(0.3),
        {"max_norm": 0.3, "norm_type": "rms", "per": "tensor"},
    ),
    "adaptive": (optax.adaptive_grad_clip(0.1), {"max_norm": 0.1, "per": "unit"}),
    "per example": (
        lambda g: optax.per_example_global_norm_clip(g, 0.1),
        {"max_norm": 0.1, "per": "example"},
    ),
    "in a chain": (
        optax.chain(optax.clip_by_global_norm(1.0), optax.identity()),
        {"max_norm": 1.0},
    ),
}


@pytest.mark.parametrize(("clip", "claims"), OPTAX.values(), ids=OPTAX)
def test_optax_itself(clip, claims):
    assert check_clipping(clip, **claims, dtypes=["float32"]).verdict == "pass"


def test_optax_from_its_threshold_and_its_known_traits():
    result = check_clipping(optax.clip_by_global_norm, max_norm=1.0)
    assert result.verdict == "pass"
    severities = {f.code: f.severity for f in result.findings}
    assert severities == {"clip-overflow": "warn", "clip-zero-threshold": "note"}


def test_optax_claimed_to_be_something_else():
    one, two = optax.clip_by_global_norm(1.0), optax.clip_by_block_rms(0.1)
    assert found(check_clipping(one, max_norm=2.0, dtypes=["float32"])) == {"clip-threshold"}
    assert check_clipping(two, max_norm=1.0, dtypes=["float32"]).verdict == "fail"


def test_functions_of_jax():
    def clip(grads):
        size = jnp.sqrt(sum(jnp.sum(g**2) for g in grads.values()))
        return {k: g * jnp.minimum(1.0, 1.0 / (size + 1e-6)) for k, g in grads.items()}

    result = check_clipping(clip, max_norm=1.0, dtypes=["float32"])
    assert (result.verdict, result.context.backend) == ("pass", "jax")
