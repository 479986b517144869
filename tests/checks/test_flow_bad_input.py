"""What a check of the flow refuses, and what it says where it cannot do all."""

from collections import UserDict
from types import MappingProxyType

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pytest_gradcheck import UsageError, check_flow

X = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def drawn():
    """Networks from a seed: one in forty gets a note more."""
    torch.manual_seed(0)


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


def test_a_loss_is_told_how_it_is_called():
    told = "; no batch was given: check_flow(model, loss, batch)"
    for model, of in (
        (make(), lambda m, b: m(b[0]).mean()),
        ({"w": jnp.ones((4, 2))}, lambda p, b: (b[0] @ p["w"]).mean()),
    ):
        with pytest.raises(UsageError) as caught:
            check_flow(model, of)
        assert str(caught.value).endswith(told)
    batch = (X, torch.zeros(32, 1))
    told = "; it is called with a Sequential first, then the whole batch, a tuple of 2"
    for wrong in (nn.functional.mse_loss, nn.MSELoss(), lambda m, x, y: m(x).mean()):
        with pytest.raises(UsageError) as caught:
            check_flow(make(), wrong, batch)
        assert str(caught.value).endswith(told)


def test_a_loader_is_no_batch():
    loader = DataLoader(TensorDataset(X, torch.zeros(32, 1)), 8)
    told = r"a DataLoader; give one of its batches, such as next\(iter\(\.\.\.\)\)$"
    with pytest.raises(UsageError, match=told):
        check_flow(make(), lambda m, b: nn.functional.mse_loss(m(b[0]), b[1]), loader)


def test_what_makes_a_model_is_given_as_make():
    with pytest.raises(UsageError, match=r"or what makes one as make=$"):
        check_flow(make, lambda m, b: m(b).mean(), X)


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


def test_a_make_that_ignores_its_seed_is_a_single_realisation():
    model = make()
    of_jax = {"w": jnp.asarray(np.random.default_rng(0).normal(size=(4, 2)))}
    for result in (
        check_flow(None, loss, X, make=lambda: model),
        check_flow(
            None,
            lambda p, b: jnp.mean((b @ p["w"]) ** 2),
            jnp.asarray(X.numpy()[:, :4]),
            make=lambda seed: of_jax,
        ),
    ):
        finding = next(f for f in result.findings if f.code == "flow-single")
        assert (result.verdict, finding.severity) == ("pass", "warn")
        assert "make gives the same parameters every time" in finding.message
        assert "draw from the seed" in finding.message


def test_a_list_that_holds_a_record_twice_is_refused():
    record = {"a": np.eye(3), "b": np.ones((3, 3))}
    with pytest.raises(UsageError, match="the list gives the same gradients twice"):
        check_flow([record, record, {"a": np.ones((3, 3)), "b": np.eye(3)}])


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
    with pytest.raises(UsageError, match=r"takes an nn.Module first, and got dict"):
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


# --- what torch would answer with a traceback of its own ----------------------------------------


def in_inference(made=make):
    with torch.inference_mode():
        return made()


def by_itself(model, batch):
    value = loss(model, batch)
    value.backward()
    return value


def broken(model, batch):
    return Broken.apply(model(batch)).mean()


class Broken(torch.autograd.Function):
    """A backward that raises."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        raise ArithmeticError("no rule")


def other():
    return torch.optim.SGD(make().parameters(), 0.1)


MISTAKES = {
    # name: arguments of the call, part of the message
    "built in inference mode": ({"model": in_inference()}, "was built in inference mode"),
    "made in inference mode": ({"model": None, "make": in_inference}, "built in inference mode"),
    "on the meta device": ({"model": nn.Linear(4, 1, device="meta")}, "on the meta device"),
    "backward in the loss": ({"loss": by_itself}, "leave backward and the optimizer's step"),
    "a backward that raises": ({"loss": broken}, "the backward pass raised ArithmeticError"),
    "no such device": ({"device": "gpu7"}, "device='gpu7' is not there"),
    "a device of another machine": ({"device": "cuda:63"}, "device='cuda:63' is not there"),
    "a huge seed": ({"seed": 2**70}, f"seed={2**70} is not allowed"),
    "a huge negative seed": ({"seed": -(2**70)}, "an integer of up to 63 bits"),
    "another backend": ({"backend": "jax"}, "a Sequential belongs to 'torch'"),
    "yet another backend": ({"backend": "numpy"}, "leave backend= out"),
    "no samples": ({"batch": X[:0]}, "the batch has no samples: (0, 4)"),
    "no samples of anything": ({"batch": {"x": (X[:0], X[:0, 0])}}, "(0, 4), (0,)"),
    "a module for make": ({"model": None, "make": make()}, "not a Sequential"),
    "a string for make": ({"model": None, "make": "model"}, "not a str"),
    "the optimizer of another": ({"optimizer": other()}, "none of the model's parameters"),
    "a string for an optimizer": ({"optimizer": "sgd"}, "optimizer= must be an optimizer"),
    "nothing that is frozen": ({"frozen": "2.wait"}, "frozen='2.wait' fits no parameter"),
    "a glob that fits nothing": ({"frozen": ["0.*", "3.*"]}, "frozen='3.*' fits no parameter"),
    "a number for a name": ({"frozen": 3}, "frozen=3 is not allowed"),
    "numbers for names": ({"frozen": [0]}, "names or globs"),
    "complex": ({"loss": lambda m, b: torch.complex(m(b), m(b)).mean()}, "complex64"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_with_what_is_allowed(name):
    given, message = MISTAKES[name]
    call = {"model": make(), "loss": loss, "batch": X, **given}
    with pytest.raises(UsageError) as caught:
        check_flow(call.pop("model"), call.pop("loss"), call.pop("batch"), **call)
    assert message in str(caught.value)


def test_the_closest_names_are_told():
    with pytest.raises(UsageError, match=r"the closest: '2.weight'"):
        check_flow(make(), loss, X, frozen="2.wait")


def test_what_is_declared_frozen_and_trains_is_told():
    result = check_flow(make(), loss, X, frozen=["0.*"])
    assert [(f.code, f.severity, f.where) for f in result.findings] == [
        ("flow-thawed", "warn", "0.weight")
    ]
    moved = lambda p: torch.optim.SGD(p, 0.1)  # noqa: E731  # one of two
    result = check_flow(make(), loss, X, frozen=["0.*"], optimizer=moved)
    assert (result.verdict, result.findings[0].code) == ("fail", "flow-thawed")
    model = make()
    held = torch.optim.SGD(model[2].parameters(), 0.1)
    assert check_flow(model, loss, X, frozen=["0.*"], optimizer=held).findings == ()


def test_a_batch_of_inference_mode_is_used():
    assert check_flow(make(), loss, in_inference(X.clone)).verdict == "pass"


class Held(nn.Module):
    """A module that holds a tensor of a graph."""

    def __init__(self):
        super().__init__()
        self.layer, self.scale = nn.Linear(4, 1), torch.ones(1, requires_grad=True) * 2

    def forward(self, x):
        return self.layer(x) * self.scale


def test_a_module_that_holds_a_tensor_of_a_graph_can_be_stepped():
    result = check_flow(Held(), loss, X, optimizer=lambda p: torch.optim.SGD(p, 0.001))
    assert result.verdict == "pass"
    assert result.table("parameters").rows[0][3] > 0


@pytest.mark.parametrize("kind", [dict, MappingProxyType, UserDict])
def test_a_batch_may_be_nested_mappings(kind):
    batch = kind({"in": kind({"x": X})})
    result = check_flow(
        make(), lambda m, b: loss(m, b["in"]["x"]), batch, device="cpu", label="nested"
    )
    assert result.verdict == "pass"


def test_a_loss_may_map_over_samples():
    def mapped(model, batch):
        named = dict(model.named_parameters())
        one = lambda x: torch.func.functional_call(model, named, (x,)).square().sum()  # noqa: E731
        return torch.func.vmap(one)(batch).mean()

    assert check_flow(make(), mapped, X).verdict in ("pass", "vacuous")


def test_what_builds_a_model_may_be_a_class_or_compiled():
    jax = pytest.importorskip("jax")

    @jax.jit
    def weights(seed):
        keys = jax.random.split(jax.random.key(seed), 3)
        return [jax.random.normal(key, (4, 4)) / 2 for key in keys]

    def loss(params, x):
        for w in params:
            x = jax.numpy.tanh(x @ w)
        return (x**2).mean()

    x = jax.numpy.ones((8, 4)) * jax.numpy.arange(1, 9)[:, None] / 8
    result = check_flow(None, loss, x, make=weights)
    assert result.check == "flow"


P = {"a": jnp.ones((4, 8)) / 3, "b": jnp.ones((8, 1)) / 3}


def of_jax(params, batch):
    return jnp.mean((batch @ params["a"] @ params["b"]) ** 2)


def sized(seed):
    draws = np.random.default_rng(seed)
    width = 8 + seed % 7
    return {"a": draws.normal(size=(4, width)), "b": draws.normal(size=(width, 1))}


def more_of(seed):
    return {"a": P["a"] + seed, "b": P["b"]} | ({"c": P["b"]} if seed % 2 else {})


UNUSABLE = {
    "make raises in JAX": (None, of_jax, {"make": lambda seed: 1 / 0}, "make raised ZeroDivision"),
    "make raises in NumPy": (
        None,
        lambda p, b: [("a", b, b)],
        {"make": lambda seed: 1 / 0, "backend": "numpy"},
        "make raised ZeroDivision",
    ),
    "make of other shapes": (
        None,
        of_jax,
        {"make": sized},
        "shapes for every seed: a is",
    ),
    "make of other names": (None, of_jax, {"make": more_of}, "for every seed: c is"),
    "no such platform": (P, of_jax, {"device": "tpu"}, "device='tpu' is not there"),
    "no such device": (P, of_jax, {"device": "cpu:99"}, "device='cpu:99' is not there"),
    "no number": (P, of_jax, {"device": "cpu:x"}, "device='cpu:x' is not there"),
    "no values": (make(), loss, {"device": "meta"}, "device='meta' is not there"),
    "optimizer of nothing": (make(), loss, {"optimizer": lambda: 3}, "it raised TypeError"),
    "optimizer raises": (make(), loss, {"optimizer": lambda p: 1 / 0}, "raised ZeroDivision"),
    "no loss": (make(), None, {}, "loss is missing"),
    "no loss, JAX": (P, None, {}, "loss is missing"),
    "no loss, made": (None, None, {"make": make}, "loss is missing"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_what_cannot_be_used_is_refused_in_words(name):
    model, run, options, message = UNUSABLE[name]
    batch = jnp.asarray(X.numpy()) if run is of_jax else X.numpy() if "backend" in options else X
    with pytest.raises(UsageError) as caught:
        check_flow(model, run, batch, seed=0, **options)
    assert message in str(caught.value)


def test_a_module_alone_has_no_loss():
    with pytest.raises(UsageError, match="loss is missing"):
        check_flow(make())


def test_what_makes_an_optimizer_may_pick_groups_from_the_parameters():
    def grouped(parameters):
        flat = [p for p in parameters if p.ndim < 2]
        deep = [p for p in parameters if p.ndim >= 2]
        return torch.optim.AdamW([{"params": deep}, {"params": flat, "weight_decay": 0.0}], 1e-4)

    result = check_flow(make(), loss, X, optimizer=grouped)
    assert result.verdict == "pass"
    with pytest.raises(UsageError, match="one of the list of the model's parameters, such as"):
        check_flow(make(), loss, X, optimizer=lambda m: torch.optim.SGD(m.parameters(), 0.1))


def test_one_sample_is_one_sample():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    told = check_flow(model, loss, X[:1]).findings
    assert any(f.message.startswith("1 sample cannot tell") for f in told)
