"""Recorded layers and gradients in each of their forms."""

import math

import numpy as np
import pytest
import torch

from pytest_gradcheck import UsageError, check_flow
from pytest_gradcheck.backends.numpy_probe import NumpyProbe

A = np.array([[1.0, 0.0], [3.0, 0.0]])
G = np.array([[2.0, 2.0], [2.0, 2.0]])


def test_a_record_gives_sizes_and_dead_units():
    probe = NumpyProbe([("first", A, G), ("first.relu", A, G)], None, None)
    one = probe.measure(probe.draw(0))
    assert [y.name for y in one.layers] == ["first", "first.relu"]
    assert [y.kind for y in one.layers] == ["linear", "activation"]
    assert one.layers[0].activation == pytest.approx(np.sqrt(10 / 4))
    assert one.layers[0].gradient == pytest.approx(2.0)
    assert one.layers[1].dead == 0.5
    assert one.loss is None


def test_a_mapping_has_matrices_for_layers_and_all_for_parameters():
    probe = NumpyProbe({"w": A, "b": np.ones(2), "lost": None}, None, None)
    one = probe.measure(probe.draw(0))
    assert [y.name for y in one.layers] == ["w", "lost"]
    assert math.isnan(one.layers[1].gradient)
    assert [p.name for p in one.parameters] == ["w", "b", "lost"]


def test_tensors_of_torch_are_taken():
    grads = {"w": torch.ones(2, 2, dtype=torch.bfloat16), "v": torch.ones(2, 2)}
    assert check_flow(grads).verdict == "pass"


def test_a_loss_may_give_its_value_and_gradients_of_parameters():
    def loss(params, batch):
        return 2.0, [("w", A, G)], {"w": params["w"] * 0.5}

    probe = NumpyProbe({"w": A}, loss, None, optimizer=lambda value, gradient: 0.1 * gradient)
    one = probe.measure(probe.draw(0))
    assert one.loss == 2.0
    assert one.parameters[0].update == pytest.approx(0.05)
    stepped = probe.stepped({"w": A})
    assert stepped["w"][1, 0] < A[1, 0]


WRONG = {
    "nothing": ({}, "the record has no layers"),
    "a number": (3, "give a mapping of layer to gradient"),
    "an array": (A, "give a mapping of layer to gradient"),
    "shapes": ([("w", A, np.ones(3))], "has shape (3,), and the layer has (2, 2)"),
    "other shapes": ([{"w": A}, {"w": np.ones((3, 3))}], "has shape (3, 3) in one record"),
    "other layers": ([{"w": A}, {"v": A}], "every record must have the same layers"),
    "text": ({"w": "large"}, "must be an array of numbers or None"),
    "pair": ({"w": (A, np.ones(3))}, "has shape (3,)"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_record_is_refused(name):
    value, message = WRONG[name]
    with pytest.raises(UsageError) as caught:
        check_flow(value)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "told", [None, 3.0, (1.0,), (np.ones(2), [("w", A, G)]), "w", [("w", A)], (1.0, 2.0)]
)
def test_a_loss_that_returns_something_else_is_refused(told):
    with pytest.raises(UsageError, match="must return recorded layers"):
        check_flow({"w": A}, lambda params, batch: told, None, backend="numpy")


def test_gradients_must_fit_their_parameters():
    def loss(params, batch):
        return 1.0, [("w", A, G)], {"w": np.ones(3)}

    with pytest.raises(UsageError, match=r"has shape \(3,\), and the parameter \(2, 2\)"):
        check_flow({"w": A}, loss, None)
