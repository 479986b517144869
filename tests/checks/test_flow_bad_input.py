"""What a check of the flow refuses, and what it says where it cannot do all."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

from pytest_gradcheck import UsageError, check_flow

X = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))


def make():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))


def loss(model, batch):
    return model(batch).square().mean()


def lost(model, batch):
    raise KeyError("weights")


REFUSED = {
    "not scalar": (lambda m, b: m(b), "must give a real tensor of one element, it gave (32, 1)"),
    "no tensor": (lambda m, b: 1.0, "must give a real tensor of one element, it gave float"),
    "raises": (lost, "loss(model, batch) raised KeyError: 'weights'"),
    "no function": (3, "loss must be a function loss(model, batch), not a int"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_loss_that_cannot_be_used_is_refused(name):
    wrong, message = REFUSED[name]
    with pytest.raises(UsageError) as caught:
        check_flow(make(), wrong, X)
    assert message in str(caught.value)


def test_a_jax_loss_that_is_no_number_or_raises_is_refused():
    params = {"w": jnp.ones((4, 2))}
    with pytest.raises(UsageError, match=r"must give a real number, it gave \(3, 2\)"):
        check_flow(params, lambda p, b: b @ p["w"], jnp.ones((3, 4)))
    with pytest.raises(UsageError, match="raised TypeError"):
        check_flow(params, lambda p, b: b @ p["v"] if "v" in p else p + 1, jnp.ones((3, 4)))


def test_a_loss_that_does_not_depend_on_the_model_fails():
    for wrong in (lambda m, b: b.square().mean(), lambda m, b: m(b).detach().mean()):
        result = check_flow(make(), wrong, X)
        assert (result.verdict, result.findings[0].code) == ("fail", "flow-detached")
    result = check_flow({"w": jnp.ones((4, 2))}, lambda p, b: b.sum(), jnp.ones((3, 4)))
    assert (result.verdict, result.findings[0].code) == ("fail", "flow-detached")


def test_a_loss_that_is_nan_fails_and_says_where():
    result = check_flow(None, lambda m, b: torch.log(-1 - m(b).abs()).mean(), X, make=make)
    assert (result.verdict, result.findings[0].code) == ("fail", "flow-nonfinite")
    assert result.findings[0].where == "log"
    assert "test_flow_bad_input.py" in result.findings[0].message


def test_one_sample_cannot_tell_dead_units():
    result = check_flow(None, loss, X[:1], make=make)
    assert [f.code for f in result.findings if f.severity == "warn"] == ["flow-small-batch"]
    assert result.verdict == "pass"


def test_a_model_without_layers_is_refused():
    with pytest.raises(UsageError, match="Identity has no parameters"):
        check_flow(nn.Identity(), loss, X)
    with pytest.raises(UsageError, match="the model has no parameters"):
        check_flow({"n": 3}, lambda p, b: jnp.sum(b), jnp.ones(3), backend="jax")


def test_a_make_that_ignores_its_seed_is_refused():
    model = make()
    with pytest.raises(UsageError, match="make gives the same parameters every time"):
        check_flow(None, loss, X, make=lambda: model)
    with pytest.raises(UsageError, match="make gives the same parameters every time"):
        check_flow(
            None, lambda p, b: jnp.sum(b @ p), jnp.ones((3, 4)), make=lambda seed: jnp.ones((4, 2))
        )


def test_a_make_of_something_else_is_refused():
    with pytest.raises(UsageError, match=r"make must build an nn.Module, it gave a dict"):
        check_flow(None, loss, X, make=dict)


@pytest.mark.parametrize("seeds", [0, -1, 2.5, True, "5"])
def test_a_number_of_seeds_that_is_none_is_refused(seeds):
    with pytest.raises(UsageError, match=r"seeds=.* is not allowed"):
        check_flow(make(), loss, X, seeds=seeds)


def test_an_unknown_backend_is_refused_with_those_that_are_known():
    with pytest.raises(UsageError, match="known: torch, jax, numpy"):
        check_flow(make(), loss, X, backend="tensorflow")
    with pytest.raises(UsageError, match=r"takes an nn.Module, not a dict"):
        check_flow({}, loss, X, backend="torch")


def test_one_realisation_is_told_as_such():
    model = make()
    with torch.no_grad():
        model[0].weight.mul_(7.0)  # no draw of its own initialisation any more
    result = check_flow(model, loss, X)
    assert "flow-single" in [f.code for f in result.findings]
    assert len(result.table("initialisations").rows) == 1
    result = check_flow(make(), loss, X, seeds=1)
    assert "flow-single" in [f.code for f in result.findings]


def test_a_model_that_resets_itself_needs_no_make():
    result = check_flow(make(), loss, X)
    assert result.findings == ()
    assert len(result.table("initialisations").rows) == 5


def test_gradients_of_many_runs_are_one_verdict():
    rng = np.random.default_rng(0)
    runs = [{"a": rng.normal(size=(3, 3)), "b": rng.normal(size=(3, 3))} for _ in range(7)]
    assert len(check_flow(runs).table("initialisations").rows) == 7


def test_the_backend_is_that_of_what_make_gives():
    batch = np.ones((32, 4), np.float32)

    def draw(seed):
        return {"w": jnp.asarray(np.random.default_rng(seed).normal(size=(4, 2)))}

    result = check_flow(None, lambda p, b: jnp.mean((b @ p["w"]) ** 2), batch, make=draw)
    assert (result.context.backend, result.verdict) == ("jax", "pass")
    with pytest.raises(UsageError, match="name the backend"):
        check_flow(None, loss, None, make=make)
