"""Contracts of a backward: each broken on purpose, and right ones that keep them all."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pytest_gradcheck import check_gradient

jax = pytest.importorskip("jax")
jnp = jax.numpy


def function(forward, backward):
    members = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    return type("Custom", (torch.autograd.Function,), members)


def sine(ctx, x):
    ctx.save_for_backward(x)
    return x.sin()


def cosine(ctx):
    return ctx.saved_tensors[0].cos()


def codes(result, severity="fail"):
    return [finding.code for finding in result.findings if finding.severity == severity]


X = torch.linspace(-1.3, 1.7, 12, dtype=torch.float64).reshape(4, 3)

# --- torch ----------------------------------------------------------------------------------------


def reads_memory(ctx, g):
    flat = torch.as_strided(g, (g.numel(),), (1,)) if min(g.stride()) > 0 else g.reshape(-1)
    return flat.reshape(g.shape) * cosine(ctx)


def views(ctx, g):
    return g.view(-1).view(g.shape) * cosine(ctx)


def ignores(ctx, g):
    return cosine(ctx)


def of_its_size(ctx, g):
    return g.abs() * cosine(ctx)


def divides(ctx, g):
    return g / g.norm() * g.norm() * cosine(ctx)


def writes_into_the_cotangent(ctx, g):
    return g.mul_(cosine(ctx)) if min(g.stride(), default=1) else g * cosine(ctx)


def reads_overlapping_memory(ctx, g):
    overlaps = g.dim() == 2 and g.stride() == (1, 1)
    return g * cosine(ctx) * (2 if overlaps else 1)


def writes_into_what_was_saved(ctx, g):
    gradient = g * cosine(ctx)
    ctx.saved_tensors[0].data.add_(1)
    return gradient


def in_half(ctx, g):
    return (g * cosine(ctx)).to(torch.float16)


@pytest.mark.parametrize(
    ("backward", "code"),
    [
        (reads_memory, "backward-layout"),
        (views, "backward-layout"),
        (reads_overlapping_memory, "backward-layout"),
        (ignores, "gradient-cotangent"),
        (of_its_size, "gradient-cotangent"),
        (divides, "backward-zero"),
        (writes_into_the_cotangent, "backward-mutates-cotangent"),
        (writes_into_what_was_saved, "backward-mutates-saved"),
        (in_half, "backward-dtype"),
    ],
)
def test_a_broken_contract_is_named(backward, code):
    custom = function(sine, backward)
    kept = custom.__dict__["backward"]
    result = check_gradient(custom.apply, X)
    assert result.verdict == "fail"
    assert code in codes(result)
    assert custom.__dict__["backward"] is kept or custom.backward is backward


def test_a_cotangent_that_is_ignored_shows_for_a_loss_too():
    custom = function(sine, ignores)
    result = check_gradient(lambda x: custom.apply(x).sum(), X)
    assert result.verdict == "fail"
    assert "gradient-cotangent" in codes(result)
    assert "ignores the cotangent" in result.findings[0].message


def test_a_second_backward_is_another_one():
    calls = []

    def backward(ctx, g):
        calls.append(1)
        return g * cosine(ctx) * (1 + 0.1 * (len(calls) % 2))

    result = check_gradient(function(sine, backward).apply, X)
    assert result.verdict == "fail"
    assert {"backward-second-call", "backward-nondeterministic"} & {*codes(result)}


def product(ctx, a, b):
    ctx.save_for_backward(a, b)
    return a * b


def test_an_input_alone_gets_the_gradient_of_another():
    def backward(ctx, g):
        a, b = ctx.saved_tensors
        return (g * b, g * a) if ctx.needs_input_grad[0] else (None, g * b)

    result = check_gradient(function(product, backward).apply, X, X + 1)
    assert codes(result) == ["backward-input-alone"]
    assert result.findings[0].where == "b"


def both(ctx, x):
    ctx.save_for_backward(x)
    ctx.set_materialize_grads(False)
    return x.sin(), x.cos()


def test_a_missing_cotangent_is_not_treated():
    def backward(ctx, g, h):
        (x,) = ctx.saved_tensors
        return g * x.cos() - h * x.sin()

    assert "backward-output-alone" in codes(check_gradient(function(both, backward).apply, X))


def treats_missing(ctx, g, h):
    (x,) = ctx.saved_tensors
    g = torch.zeros_like(x) if g is None else g
    h = torch.zeros_like(x) if h is None else h
    return g * x.cos() - h * x.sin()


def right(ctx, g):
    return g * cosine(ctx)


def right_product(ctx, g):
    a, b = ctx.saved_tensors
    return g * b, g * a


def scaled(ctx, x, factor):
    ctx.factor = factor
    return x * factor


def right_scaled(ctx, g):
    return g * ctx.factor, None


def dirty(ctx, x):
    ctx.mark_dirty(x)
    return x.mul_(2)


class Net(torch.nn.Module):
    def __init__(self, dtype):
        super().__init__()
        self.inner = torch.nn.Linear(3, 3, dtype=dtype)
        self.norm = torch.nn.BatchNorm1d(3, dtype=dtype)

    def forward(self, x):
        return function(sine, right).apply(self.norm(self.inner(x)))


GOOD = {
    "one input": (function(sine, right).apply, (X,)),
    "float32": (function(sine, right).apply, (X.float(),)),
    "bfloat16": (function(sine, right).apply, (X.bfloat16(),)),
    "complex": (
        function(lambda ctx, x: x * 2j, lambda ctx, g: g * -2j).apply,
        (torch.complex(X, X + 1),),
    ),
    "two inputs": (function(product, right_product).apply, (X, X + 1)),
    "two outputs": (function(both, treats_missing).apply, (X,)),
    "a constant": (lambda x: function(scaled, right_scaled).apply(x, 3.0), (X,)),
    "an integer tensor": (
        lambda x, n: function(scaled, right_scaled).apply(x, n),
        (X, torch.full((4, 3), 2)),
    ),
    "once differentiable": (
        function(sine, torch.autograd.function.once_differentiable(right)).apply,
        (X,),
    ),
    "a loss": (lambda x: function(sine, right).apply(x).sum(), (X,)),
    "a module": (Net(torch.float64), (X,)),
    "a module in float32": (Net(torch.float32), (X.float(),)),
    "in place": (lambda x: function(dirty, lambda ctx, g: 2 * g).apply(x + 1), (X,)),
    "dropout beside it": (
        lambda x: torch.nn.functional.dropout(function(sine, right).apply(x), 0.3),
        (X,),
    ),
    "one number": (function(sine, right).apply, (torch.tensor(0.7).double(),)),
    "views that are read right": (
        function(sine, lambda ctx, g: g.reshape(-1).view(g.shape) * cosine(ctx)).apply,
        (X,),
    ),
    "a frozen input": (lambda x: function(product, right_product).apply(x, X), (X + 1,)),
}


@pytest.mark.parametrize("name", GOOD)
def test_a_right_backward_keeps_them_all(name):
    f, inputs = GOOD[name]
    result = check_gradient(f, *inputs)
    assert (result.verdict, codes(result)) == ("pass", [])
    assert not [code for code in codes(result, "warn") if code.startswith("backward")]


def test_the_functions_of_torch_itself_are_not_asked():
    result = check_gradient(
        lambda x: torch.utils.checkpoint.checkpoint(torch.sin, x, use_reentrant=False), X
    )
    assert result.verdict == "pass"


# --- NumPy ----------------------------------------------------------------------------------------

POINT = np.linspace(-1.0, 2.0, 5)
BUFFER = np.empty(5)


def into_a_buffer(w, x):
    return np.multiply(w, np.cos(x), out=BUFFER)


def into_the_cotangent(w, x):
    w *= np.cos(x)
    return w


def into_the_input(w, x):
    gradient = w * np.cos(x)
    x += 1
    return gradient


@pytest.mark.parametrize(
    ("vjp", "verdict", "code"),
    [
        (into_a_buffer, "pass", "backward-shared-buffer"),
        (into_the_cotangent, "fail", "backward-mutates-cotangent"),
        (into_the_input, "fail", "backward-mutates-input"),
    ],
)
def test_arguments_and_returned_gradients_stay_as_they_are(vjp, verdict, code):
    result = check_gradient(np.sin, POINT, vjp=vjp)
    assert result.verdict == verdict
    assert code in [finding.code for finding in result.findings]


def test_a_shared_buffer_of_grad_and_jac_is_seen():
    def grad(x):
        return np.cos(x, out=BUFFER)

    result = check_gradient(lambda x: float(np.sin(x).sum()), POINT, grad=grad)
    assert codes(result, "warn") == ["backward-shared-buffer"]


def test_a_function_that_writes_into_its_input_is_named():
    def centred(x):
        x -= x.mean()
        return np.sin(x)

    def vjp(w, x):
        inner = w * np.cos(x - x.mean())
        return inner - inner.mean()

    result = check_gradient(centred, POINT, vjp=vjp)
    assert (result.verdict, codes(result, "warn")) == ("pass", ["forward-mutates-input"])


def test_a_cotangent_that_a_vjp_ignores():
    result = check_gradient(lambda x: float(np.sin(x).sum()), POINT, vjp=lambda w, x: np.cos(x))
    assert result.verdict == "fail"
    assert "gradient-cotangent" in codes(result)


# --- JAX ------------------------------------------------------------------------------------------


def rule(pullback, of=jnp.sin):
    custom = jax.custom_vjp(of)
    custom.defvjp(lambda x: (of(x), x), pullback)
    return custom


Z = jnp.linspace(-1.0, 2.0, 5)


def test_jax_rules_are_asked_under_jit_and_vmap():
    assert codes(check_gradient(rule(lambda x, g: (g * jnp.cos(x),)), Z)) == []
    by_numpy = rule(lambda x, g: (g * np.cos(np.asarray(x)),))
    assert "backward-jit" in codes(check_gradient(by_numpy, Z), "warn")


def test_a_jax_rule_that_is_another_one_under_jit():
    def pullback(x, g):
        return (g * jnp.cos(x) * (1.5 if isinstance(x, jax.core.Tracer) else 1.0),)

    result = check_gradient(rule(pullback), Z)
    assert result.verdict == "fail"


def test_a_jax_rule_that_ignores_its_cotangent():
    loss = rule(lambda x, g: (jnp.cos(x),), of=lambda x: jnp.sin(x).sum())
    result = check_gradient(loss, Z)
    assert "gradient-cotangent" in codes(result)


def test_rules_of_jax_itself_are_not_asked():
    result = check_gradient(lambda x: jax.nn.logsumexp(jax.nn.silu(x)), Z)
    assert (result.verdict, codes(result)) == ("pass", [])


@pytest.mark.parametrize("seed", range(12))
def test_a_gradient_that_cancels_is_rounded_like_the_whole(seed):
    torch.manual_seed(seed)
    model, x = Net(torch.float32), torch.randn(4, 3)
    assert codes(check_gradient(model, x)) == []


def test_a_backward_that_was_registered_with_torch_library_is_asked_too():
    @torch.library.custom_op("gradcheck_tests::sine", mutates_args=())
    def registered(x: torch.Tensor) -> torch.Tensor:
        return torch.sin(x)

    registered.register_autograd(
        lambda ctx, g: g.mul_(cosine(ctx)),
        setup_context=lambda ctx, inputs, output: ctx.save_for_backward(inputs[0]),
    )
    result = check_gradient(registered, X)
    assert (result.verdict, codes(result)[0]) == ("fail", "backward-mutates-cotangent")


def test_a_cotangent_in_the_middle_of_a_graph_is_watched():
    custom = function(sine, writes_into_the_cotangent)
    result = check_gradient(lambda x: custom.apply(x) * 2, X)
    assert (result.verdict, codes(result)) == ("fail", ["backward-mutates-cotangent"])


def test_a_backward_that_spoils_its_own_graph():
    def backward(ctx, g):
        gradient = g * cosine(ctx)
        ctx.saved_tensors[0].zero_()
        return gradient

    result = check_gradient(function(sine, backward).apply, X)
    assert result.verdict == "fail"
    assert "backward-mutates-saved" in codes(result)


def test_a_cotangent_that_starts_inside_its_memory():
    def backward(ctx, g):
        return g * cosine(ctx) * (2 if g.storage_offset() else 1)

    result = check_gradient(function(sine, backward).apply, X)
    assert (result.verdict, codes(result)) == ("fail", ["backward-layout"])


def test_one_of_many_inputs_alone_gets_another_gradient():
    def layer(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x @ w

    def backward(ctx, g):
        x, w = ctx.saved_tensors
        return g @ w.T * (1 if ctx.needs_input_grad[1] else 2), x.T @ g

    custom = function(layer, backward)
    draw = torch.Generator().manual_seed(0)
    weights = [torch.randn(3, 3, generator=draw).double() for _ in range(9)]

    def network(x, *weights):
        for w in weights:
            x = custom.apply(x, w).tanh()
        return x

    result = check_gradient(network, X, *weights)
    assert (result.verdict, codes(result)) == ("fail", ["backward-input-alone"])


@pytest.mark.parametrize(
    "vjp",
    [
        lambda w, x: (w.ravel(order="K") * np.cos(x).ravel()).reshape(x.shape),
        lambda w, x: w * np.cos(x) * (2 if w.strides[-1] > w.itemsize else 1),
    ],
    ids=["another order", "gaps"],
)
def test_a_vjp_that_reads_memory(vjp):
    x = np.random.default_rng(0).normal(size=(3, 4))
    result = check_gradient(np.sin, x, vjp=vjp)
    assert (result.verdict, codes(result)) == ("fail", ["backward-layout"])
