"""What clips of torch and optax take beside a list of parameters."""

import functools

import pytest

from pytest_gradcheck import check_clipping

torch = pytest.importorskip("torch")
optax = pytest.importorskip("optax")
jnp = pytest.importorskip("jax.numpy")
nn = torch.nn
clip_norm, clip_value = nn.utils.clip_grad_norm_, nn.utils.clip_grad_value_


def parameters_of(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


class Module(nn.Module):
    """As a LightningModule clips."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))

    def configure_gradient_clipping(
        self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None
    ):
        clip = clip_value if gradient_clip_algorithm == "value" else clip_norm
        clip(parameters_of(optimizer), gradient_clip_val)


@pytest.mark.parametrize("claim", [{"max_norm": 0.5}, {"max_value": 0.5}], ids=["norm", "value"])
def test_a_method_of_a_module_that_takes_an_optimizer(claim):
    module = Module()
    clip = module.configure_gradient_clipping
    for params in (None, module, torch.optim.SGD(module.parameters(), lr=0.1)):
        result = check_clipping(clip, params=params, **claim)
        assert result.verdict == "pass", result.headline


def by_group(optimizer):
    for group in optimizer.param_groups:
        clip_norm(group["params"], 0.5)


def test_the_groups_of_an_optimizer_are_its_own():
    module = Module()
    groups = [{"params": part.parameters()} for part in module.net]
    two = check_clipping(by_group, max_norm=0.5, params=torch.optim.SGD(groups, lr=0.1))
    assert "clips the first 2 and the last 2 tensors each by themselves" in two.headline
    one = torch.optim.SGD(module.parameters(), lr=0.1)
    assert check_clipping(by_group, max_norm=0.5, params=one).verdict == "pass"


def factor_of(grads):
    size = torch.linalg.vector_norm(torch.stack([g.norm() for g in grads]))
    return torch.clamp(1.0 / (size + 1e-6), max=1.0), size


def given_back(grads):
    factor, _ = factor_of(grads)
    return [g * factor for g in grads]


def in_place(grads):
    factor, size = factor_of(grads)
    for g in grads:
        g.mul_(factor)
    return size


def in_a_dictionary(gradients):
    factor, size = factor_of(list(gradients.values()))
    return {name: g * factor for name, g in gradients.items()}, size


@pytest.mark.parametrize("clip", [given_back, in_place, in_a_dictionary])
def test_a_function_of_gradients(clip):
    result = check_clipping(clip, max_norm=1.0)
    assert (result.verdict, result.context.backend) == ("pass", "torch"), result.headline
    wrong = functools.partial(clip)
    assert check_clipping(wrong, max_norm=2.0).verdict == "fail"


def test_a_function_of_the_gradients_of_a_model():
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)).double()
    result = check_clipping(in_a_dictionary, max_norm=1.0, params=model)
    assert (result.verdict, result.context.dtype) == ("pass", "float64"), result.headline

    def first(grads):
        return {
            name: clipped if name == "0.weight" else grads[name]
            for name, clipped in in_a_dictionary(grads)[0].items()
        }

    result = check_clipping(first, max_norm=1.0, params=model)
    assert "leaves 0.bias, 1.weight and 1.bias out" in result.headline


def clip_own(grads):
    return nn.utils.clip_grad_norm_(grads, 1.0)


PARAMETERS = {
    "global": lambda grads: clip_norm(grads, 1.0),
    "attribute": clip_own,
    "further": lambda g: clip_own(g),
}


@pytest.mark.parametrize("clip", PARAMETERS.values(), ids=PARAMETERS)
def test_parameters_that_are_called_gradients(clip):
    assert check_clipping(clip, max_norm=1.0).verdict == "pass"


def test_the_name_of_a_clip_says_nothing():
    def clip_grads(grads):
        return given_back(grads)

    assert check_clipping(clip_grads, max_norm=1.0).verdict == "pass"


def test_a_list_of_the_gradients_of_a_model():
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    result = check_clipping(given_back, max_norm=1.0, params=model)
    assert result.verdict == "pass", result.headline


def test_pairs_of_a_name_and_a_parameter():
    def clip(named_parameters):
        return clip_norm([p for _, p in named_parameters], 1.0)

    for params in (None, nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))):
        assert check_clipping(clip, max_norm=1.0, params=params).verdict == "pass"


def test_gradients_of_examples_without_a_number_among_them():
    def clip(grads):
        sizes = torch.sqrt(sum(g.flatten(1).pow(2).sum(1) for g in grads))
        factors = (1.0 / (sizes + 1e-6)).clamp(max=1.0)
        return [torch.einsum("b...,b->...", g, factors) for g in grads]

    result = check_clipping(clip, max_norm=1.0, per="example")
    assert result.verdict == "pass", result.headline


def unit_norm(x, norm_type):
    return x.norm(norm_type) if x.ndim < 2 else x.norm(norm_type, dim=1, keepdim=True)


def adaptive(parameters, clip_factor=0.01, norm_type=2.0):  # as timm does
    for p in parameters:
        if p.grad is None or not p.grad.numel():
            continue
        most = unit_norm(p.detach(), norm_type).clamp_(min=1e-3).mul_(clip_factor)
        size = unit_norm(p.grad, norm_type)
        clipped = p.grad * (most / size.clamp(min=1e-6))
        p.grad.copy_(torch.where(size < most, p.grad, clipped))


@pytest.mark.parametrize("order", [1.0, 2.0])
def test_adaptive_clips_with_an_order(order):
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    for clip in (adaptive, functools.partial(adaptive, norm_type=order)):
        result = check_clipping(clip, max_norm=0.01, norm_type=order, per="unit", params=model)
        assert result.verdict == "pass", result.headline


OPTAX = {
    "global": (optax.clip_by_global_norm(0.7), {"max_norm": 0.7}),
    "adaptive": (optax.adaptive_grad_clip(0.1), {"max_norm": 0.1, "per": "unit"}),
}


@pytest.mark.parametrize(("clip", "claim"), OPTAX.values(), ids=OPTAX)
def test_keys_that_are_not_sorted(clip, claim):
    params = {"w": jnp.ones((3, 4)), "k": jnp.ones((3, 3, 2, 4)), "b": jnp.ones(4)}
    result = check_clipping(clip, params=params, **claim)
    assert result.verdict == "pass", result.headline


def test_what_makes_a_clip_of_optax_is_as_quirky():
    def made(max_norm):
        return optax.chain(optax.clip_by_global_norm(max_norm))

    assert check_clipping(made, max_norm=1.0).verdict == "pass"


def test_an_optimizer_behind_the_clip():
    result = check_clipping(optax.chain(optax.clip(1.0), optax.sgd(1.0)), max_value=1.0)
    assert "turns every gradient around" in result.headline
