"""Calls that do not fit a verb: refused in the words of the one who wrote them."""

import inspect
import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_

import pytest_gradcheck
from pytest_gradcheck import (
    Training,
    UsageError,
    assert_flow,
    check_clipping,
    check_flow,
    check_gradient,
    check_step,
)
from pytest_gradcheck.verbs.foreign import FOREIGN

X = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
Y = torch.zeros(32, 2)


def loss(model, batch):
    return nn.functional.mse_loss(model(batch[0]), batch[1])


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * x

    @staticmethod
    def backward(ctx, g):
        return g


def refused(message):
    return pytest.raises(UsageError, match=re.escape(message))


@pytest.mark.parametrize(
    ("verb", "fixture"),
    [("flow", "gradflow"), ("clipping", "gradclip"), ("step", "gradstep")],
)
@pytest.mark.parametrize("start", ["check", "assert"])
def test_an_unknown_keyword_lists_the_known_ones(verb, fixture, start):
    function = getattr(pytest_gradcheck, f"{start}_{verb}")
    name = f"{fixture} ({start}_{verb})" if start == "assert" else f"check_{verb}"
    with refused(f"{name} has no argument 'lable'; did you mean label=? (it takes ") as caught:
        function(None, lable="x")
    assert "vacuous" in str(caught.value)


def test_every_foreign_name_means_an_argument_of_some_verb():
    verbs = (check_gradient, check_flow, check_clipping, check_step)
    taken = {name for verb in verbs for name in inspect.signature(verb).parameters}
    for name, hints in FOREIGN.items():
        assert {argument for argument, _ in hints} <= taken, name


@pytest.mark.parametrize(
    ("verb", "told"),
    [
        (check_gradient, "an argument 'precision'; did you mean tolerance=?"),
        (check_gradient, "an argument 'eps'; the step of the differences is found from the"),
        (check_step, "no argument 'precision'; did you mean step_gradient=?"),
        (check_clipping, "no argument 'precision'; did you mean clip_rounding=?"),
        (check_flow, "no argument 'precision' (it takes "),
    ],
)
def test_a_foreign_name_means_what_the_verb_takes(verb, told):
    name = told.split("'")[1]
    with refused(told):
        verb(np.sin, **{name: 1e-3})


def test_too_many_by_position():
    model = nn.Linear(4, 2)
    with refused(
        "gradflow (assert_flow) takes model, loss, batch by position, and got 4 values; all others "
        "go by keyword; put the parts of a batch into one tuple"
    ):
        assert_flow(model, loss, X, Y)
    with refused("check_clipping takes clip by position, and got 2 values"):
        check_clipping(clip_grad_norm_, 1.0)


def test_nothing_given():
    with refused("check_step needs training: check_step(training, …)"):
        check_step()
    with refused("check_gradient needs fn"):
        check_gradient()
    with refused("check_flow got loss twice"):
        check_flow(nn.Linear(4, 2), loss, loss=loss)


def test_a_type_error_of_the_users_own_stays_one():
    def training():
        raise TypeError("mine")

    with pytest.raises(TypeError, match=r"^mine$"):
        check_step(training)


def test_the_name_of_the_fixture(project):
    project.tests("def test_flow(gradflow):\n    gradflow(np.sin, vanishing=1)")
    run = project.run("--tb=short")
    run.stdout.fnmatch_lines(["*gradflow (assert_flow) has no argument 'vanishing'*vanish=*"])
    run.stdout.no_fnmatch_line("*record.py*")


def test_a_class_in_the_place_of_what_it_makes():
    with refused("Linear is a class of modules: give one of them, Linear(...)"):
        check_gradient(nn.Linear, X)
    with refused("Square is a custom autograd function: give Square.apply"):
        check_gradient(Square, X)
    with refused("the model is the class Linear: give an instance, Linear(...), or"):
        check_flow(nn.Linear, loss, (X, Y))
    with refused(
        "params= takes a module, an optimizer, or parameters in a list or a dict, not the"
    ):
        check_clipping(clip_grad_norm_, max_norm=1.0, params=nn.Linear)


def test_no_model_points_to_make():
    with refused("the model is None: give a model, or a function that builds one as make="):
        check_flow(None, loss, (X, Y))


def test_no_clip():
    with refused("clip must be a function or a gradient transformation"):
        check_clipping(None, max_norm=1.0)


def test_what_builds_no_training():
    with refused("a function without arguments that returns one; <lambda> takes arguments"):
        check_step(lambda batch: None)
    with refused("Linear takes arguments"):
        check_step(nn.Linear(3, 3))
    with refused("a Training is wanted, or a function that returns one; got int"):
        check_step(3)
    assert Training


def test_a_number_that_is_cut_off():
    with refused("returned float; return the tensor itself: .item()"):
        check_gradient(lambda x: x.sum().item(), X)
    with refused("it gave float; return the tensor itself, without .item()"):
        check_flow(nn.Linear(4, 2), lambda m, b: loss(m, b).item(), (X, Y))


@pytest.mark.parametrize(
    "clip",
    [lambda p: clip_grad_norm_(p, 1.0), lambda p, norm_type=2.0: clip_grad_norm_(p, 1.0)],
    ids=["alone", "beside an order"],
)
def test_the_only_argument_of_a_clip_is_the_parameters(clip):
    assert check_clipping(clip, max_norm=1.0).verdict == "pass"


def test_a_p_beside_the_gradients_is_an_order():
    def clip(gradients, p):
        size = np.linalg.norm(np.concatenate([g.ravel() for g in gradients]), p)
        return [g * min(1.0, 1 / size) if size else g for g in gradients]

    assert check_clipping(clip, max_norm=1.0, norm_type=1.0).verdict == "pass"


@pytest.mark.parametrize("name", ["check", "name", "args", "kwargs"])
def test_a_keyword_of_the_function_may_have_any_name(name):
    def f(x, **options):
        return (x**2).sum() * len(options)

    result = check_gradient(f, np.ones(2), grad=lambda x, **options: 2 * x, **{name: "any"})
    assert result.verdict == "pass"
