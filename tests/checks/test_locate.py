"""Where a gradient is wrong: the input, the element, and what it costs to find it."""

import numpy as np
import pytest

from pytest_gradcheck import check_gradient
from pytest_gradcheck.reports import text

RNG = np.random.default_rng(5)
X = RNG.normal(size=(6, 5))
WEIGHT = RNG.normal(size=X.shape)


def spoilt(changes, x=X, weight=WEIGHT):
    """A function whose gradient has some elements multiplied."""

    def f(x):
        return float((weight * np.tanh(x)).sum() + (x.sum() / 8) ** 2)

    def grad(x):
        g = weight / np.cosh(x) ** 2 + x.sum() / 32
        for index, factor in changes.items():
            g[index] *= factor
        return g

    return check_gradient(f, x, grad=grad, label="f")


@pytest.mark.parametrize("index", [(0, 0), (3, 1), (5, 4)])
@pytest.mark.parametrize(
    ("factor", "words"),
    [
        (1.5, "gets 1.5 times the right one"),
        (1.05, "gets 1.05 times the right one"),
        (0.0, "gets zero"),
        (-1.0, "has the wrong sign"),
    ],
)
def test_a_wrong_element_is_named_with_its_own_derivative(index, factor, words):
    result = spoilt({index: factor})
    (found,) = result.findings
    name = f"x[{index[0]}, {index[1]}]"
    assert (found.code, found.where) == ("gradient-element", name)
    assert found.message.startswith(f"{name} {words}")
    right = WEIGHT[index] / np.cosh(X[index]) ** 2 + X.sum() / 32
    assert found.number("reference") == pytest.approx(right, rel=1e-6)
    assert found.number("claimed") == pytest.approx(right * factor, rel=1e-9)
    assert found.number("ratio") == pytest.approx(factor, abs=1e-6)
    assert result.table("inputs").rows[0][0] == name
    assert result.context.evaluations <= 250


def test_a_few_wrong_elements_are_listed():
    result = spoilt({(0, 1): 1.5, (4, 0): 0.5})
    (found,) = result.findings
    assert found.code == "gradient-element"
    assert "x[0, 1]" in found.message
    assert "x[4, 0]" in found.message
    assert {row[0] for row in result.table("inputs").rows} == {"x[0, 1]", "x[4, 0]"}
    assert "x[4, 0]" in text.failure(result)


def test_a_wrong_element_says_what_no_other_has():
    result = spoilt({(2,): 0.5}, np.array([1.0, 2.0, -0.5, 0.7]), np.ones(4))
    (found,) = result.findings
    assert found.message == "x[2] gets 0.5 times the right one; no other is negative"


def test_many_wrong_elements_are_counted_in_a_sample():
    draw = np.random.default_rng(0)
    spots = draw.permutation(X.size)[:15]
    changes = {tuple(np.unravel_index(k, X.shape)): draw.uniform(1.2, 2) for k in spots}
    (found,) = spoilt(changes).findings
    assert (found.code, found.where) == ("wrong-gradient", "x")
    assert 0.2 < found.number("share") < 0.8
    assert "of 12 elements tried" in found.message


@pytest.mark.parametrize(("k", "factor"), [(123_456, 1.5), (777_777, 1.05), (999_999, 0.0)])
def test_one_wrong_element_among_a_million_costs_few_evaluations(k, factor):
    draw = np.random.default_rng(k)
    x, weight = draw.normal(size=(1000, 1000)), draw.normal(size=(1000, 1000))
    index = (k // 1000, k % 1000)
    weight[index] = 0.5
    result = spoilt({index: factor}, x, weight)
    (found,) = result.findings
    assert (found.code, found.where) == ("gradient-element", f"x[{index[0]}, {index[1]}]")
    assert result.context.evaluations <= 400


def many(wrong):
    """Thirty inputs, some with a gradient twice as large."""
    params = {f"w{i}": np.array([0.3, -1.2, 0.8]) * (i + 1) / 10 for i in range(30)}

    def f(params):
        return float(sum(np.sin(w).sum() for w in params.values()))

    def grad(params):
        return {
            name: np.cos(w) * (2 if int(name[1:]) in wrong else 1) for name, w in params.items()
        }

    return check_gradient(f, params, grad=grad)


@pytest.mark.parametrize("wrong", [{0}, {29}, {3, 4}, {1, 12, 28}])
def test_the_wrong_inputs_of_many_are_named(wrong):
    result = many(wrong)
    assert {f.where for f in result.findings} == {f"params.w{i}" for i in wrong}
    assert {f.code for f in result.findings} == {"gradient-factor"}


def test_all_wrong_inputs_are_counted_and_the_first_ones_shown():
    result = many(set(range(8)))
    assert len(result.findings) == 8
    assert result.headline.endswith("(and 7 more)")
    assert "… and 3 more" in text.failure(result)


def test_where_everything_is_wrong_not_everything_is_examined():
    result = many(set(range(30)))
    assert {f.code for f in result.findings} == {"gradient-factor"}
    assert len(result.findings) == 8
    assert result.context.evaluations <= 500


def test_an_element_of_a_scalar_input_is_the_input():
    result = check_gradient(lambda x: x**2, np.float64(1.5), grad=lambda x: 3 * x)
    assert (result.findings[0].code, result.findings[0].where) == ("gradient-factor", "x")


def test_a_function_that_stands_still_under_a_claimed_gradient():
    result = check_gradient(lambda x: float(x.size), np.ones(3), grad=lambda x: np.ones(3))
    assert result.findings[0].code == "wrong-gradient"
    assert "though the output does not change with it" in result.headline
