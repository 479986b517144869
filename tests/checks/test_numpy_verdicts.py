"""Known answers: right derivatives pass, wrong ones fail with the input and the pattern named."""

from pathlib import PurePosixPath as Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

from pytest_gradcheck import UsageError, check_gradient

RNG = np.random.default_rng(0)


X, Y = RNG.normal(size=(4, 3)), RNG.normal(size=(3, 2))


def codes(result):
    return [finding.code for finding in result.findings]


def model(params, x):
    return float(np.sum(np.tanh(x @ params["w"] + params["b"]) ** 2))


def model_grad(params, x):
    a = np.tanh(x @ params["w"] + params["b"])
    d = 2 * a * (1 - a**2)
    return {"b": d.sum(axis=0), "w": x.T @ d}  # in another order than the parameters


PARAMS = {"w": Y, "b": RNG.normal(size=2)}


def test_a_right_hand_written_gradient_passes_and_states_its_power():
    result = check_gradient(model, PARAMS, X, wrt="params", grad=model_grad)
    assert result.verdict == "pass"
    table = result.table("resolution")
    assert [row[0] for row in table.rows] == ["params.w", "params.b"]
    assert all(row[1] < 0.01 for row in table.rows)
    assert result.context.evaluations <= 32
    assert result.context.derivatives <= 3  # once for the numbers, the others for its contracts


def spoil(change):
    def grad(params, x):
        grads = model_grad(params, x)
        return grads | {"w": change(grads["w"])}

    return grad


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        pytest.param(lambda g: -g, "gradient-sign", "has the wrong sign", id="sign"),
        pytest.param(lambda g: 2 * g, "gradient-factor", "gets 2 times", id="twice"),
        pytest.param(lambda g: g / 4, "gradient-factor", "gets 1/4 times", id="mean"),
        pytest.param(lambda g: 0 * g, "gradient-zero", "gets zero", id="zero"),
        pytest.param(lambda g: None, "gradient-missing", "none reaches params.w", id="missing"),
        pytest.param(lambda g: 1.01 * g, "gradient-factor", "1.01 times", id="percent"),
        pytest.param(
            lambda g: (1 + 1e-6) * g, "gradient-factor", "gets 1 + 1e-06 times", id="millionth"
        ),
        pytest.param(lambda g: np.roll(g, 1), "gradient-rolled", "shifted by one", id="rolled"),
        pytest.param(lambda g: g + 0.1, "gradient-offset", "plus 0.1 in every", id="constant"),
        pytest.param(
            lambda g: g * np.where(np.arange(6).reshape(3, 2) == 3, 1.05, 1.0),
            "gradient-element",
            "[1, 1] gets 1.05 times",
            id="one-element",
        ),
    ],
)
def test_wrong_gradients_are_named(change, code, words):
    result = check_gradient(model, PARAMS, X, wrt="params", grad=spoil(change))
    assert result.verdict == "fail"
    assert codes(result) == [code]
    assert result.findings[0].where in ("params.w", "params.w[1, 1]")
    assert words in result.headline
    assert len(result.headline) < 100
    row = result.table("inputs").rows[0]
    assert row[0] == result.findings[0].where


def test_the_wrong_one_of_many_inputs_is_found():
    params = {f"w{i}": RNG.normal(size=3) for i in range(20)}

    def f(params):
        return float(sum(np.sin(w).sum() for w in params.values()))

    def grad(params):
        grads = {name: np.cos(w) for name, w in params.items()}
        return grads | {"w13": np.cos(params["w13"]) * 1.02}

    result = check_gradient(f, params, grad=grad)
    assert [f.where for f in result.findings] == ["params.w13"]


def test_a_small_leaf_beside_a_large_one_is_not_hidden():
    def f(big, small):
        return float((big**2).sum() * 1e4 + (small**2).sum() * 1e-4)

    def grad(big, small):
        return 2e4 * big, 2e-4 * small * 1.02

    right = check_gradient(f, X, Y, grad=lambda b, s: (2e4 * b, 2e-4 * s))
    assert right.verdict == "pass"
    wrong = check_gradient(f, X, Y, grad=grad)
    assert (wrong.verdict, wrong.findings[0].where) == ("fail", "small")


@settings(max_examples=30, deadline=None)
@given(c=st.integers(-40, 40), s=st.integers(-40, 40), wrong=st.booleans())
def test_the_verdict_does_not_change_with_the_scale_of_function_or_input(c, s, wrong):
    c, s = 2.0**c, 2.0**s

    def f(x):
        return float(c * np.sin(x / s).sum())

    result = check_gradient(
        f, X * s, grad=lambda x: c / s * np.cos(x / s) * (1.001 if wrong else 1.0), seed=1
    )
    assert result.verdict == ("fail" if wrong else "pass")


@pytest.mark.parametrize("form", ["grad", "vjp", "jac", "value_and_grad"])
@pytest.mark.parametrize("factor", [1.0, 1.001])
def test_the_four_forms_of_a_hand_written_derivative(form, factor):
    x = X[0]
    scalar, vector = lambda x: np.exp(x).sum(), np.exp
    calls = {
        "grad": lambda: check_gradient(scalar, x, grad=lambda x: factor * np.exp(x)),
        "vjp": lambda: check_gradient(vector, x, vjp=lambda w, x: factor * w * np.exp(x)),
        "jac": lambda: check_gradient(vector, x, jac=lambda x: factor * np.diag(np.exp(x))),
        "value_and_grad": lambda: check_gradient(
            lambda x: (scalar(x), factor * np.exp(x)), x, value_and_grad=True
        ),
    }
    assert calls[form]().verdict == ("pass" if factor == 1.0 else "fail")


def test_a_jacobian_as_the_flat_matrix_that_scipy_uses():
    def jac(x):
        return np.diag(2 * x.ravel())

    assert check_gradient(lambda x: x**2, X, jac=jac).verdict == "pass"


def test_a_vjp_that_ignores_its_cotangent_fails():
    assert check_gradient(np.exp, X[0], vjp=lambda w, x: np.exp(x)).verdict == "fail"


def test_keyword_arguments_and_settings_pass():
    def f(x, *, weight, power=2, name="n", flag=True, nothing=None):
        return float((weight * x**power).sum())

    def grad(x, *, weight, power=2, **rest):
        return power * weight * x ** (power - 1), x**power

    result = check_gradient(f, X, weight=X + 1, power=3, name="m", grad=grad)
    assert result.verdict == "pass"
    assert [row[0] for row in result.table("resolution").rows] == ["x", "weight"]


def test_no_gradient_and_no_dependence_is_vacuous():
    result = check_gradient(lambda x: float(np.round(x).sum()), X, grad=np.zeros_like)
    assert result.verdict == "vacuous"
    constant = check_gradient(lambda x: 1.0, X, grad=np.zeros_like)
    assert constant.verdict == "vacuous"
    assert "the output does not change" in constant.headline


def test_one_input_without_influence_is_a_warning():
    result = check_gradient(
        lambda x, y: float((x**2).sum()), X, Y, grad=lambda x, y: (2 * x, 0 * y)
    )
    assert result.verdict == "pass"
    assert [(f.code, f.where, f.severity) for f in result.findings] == [
        ("independent-input", "y", "warn")
    ]


def test_a_gradient_for_an_input_without_influence_fails():
    result = check_gradient(lambda x, y: float((x**2).sum()), X, Y, grad=lambda x, y: (2 * x, y))
    assert result.verdict == "fail"
    assert result.findings[0].where == "y"


def test_the_same_seed_gives_the_same_result_and_another_leaf_does_not_move_it():
    one = check_gradient(model, PARAMS, X, wrt="params.w", grad=w_grad, seed=3)
    two = check_gradient(model, PARAMS, X, wrt="params.w", grad=w_grad, seed=3)
    assert one.evidence == two.evidence


def w_grad(params, x):
    return model_grad(params, x)["w"]


def test_steps_shrink_at_the_edge_of_a_domain():
    x = np.array([1e-3, 1.0, 5.0])
    assert (
        check_gradient(lambda x: float(np.log(x).sum()), x, grad=lambda x: 1 / x).verdict == "pass"
    )


def test_probes_that_raise_shrink_too():
    def f(x):
        if (x > 1.001).any():
            raise ValueError("outside")
        return float((x**2).sum())

    assert check_gradient(f, np.ones(3), grad=lambda x: 2 * x).verdict == "pass"


def test_at_the_end_of_a_domain_nothing_is_claimed():
    result = check_gradient(
        lambda x: float(np.sqrt(x).sum()), np.zeros(2), grad=lambda x: 1 / (x + 1)
    )
    assert (result.verdict, codes(result)) == ("undecided", ["domain-edge"])


def test_noise_inside_widens_the_bound_instead_of_accusing():
    rough = np.random.default_rng(0).normal(size=1000)

    def f(x):
        wobble = 1e-7 * rough[int(abs(x.sum()) * 1e9) % 1000]
        return float((x**2).sum() + wobble)

    assert check_gradient(f, X, grad=lambda x: 2 * x).verdict in ("pass", "undecided")
    assert check_gradient(f, X, grad=lambda x: 3 * x).verdict == "fail"


def test_a_value_that_is_huge_beside_its_change():
    f = lambda x: float(1e8 + np.sin(x).sum())  # noqa: E731
    assert check_gradient(f, X, grad=np.cos).verdict == "pass"
    assert check_gradient(f, X, grad=lambda x: 1.1 * np.cos(x)).verdict == "fail"


def test_a_stationary_point_is_called_what_it_is():
    result = check_gradient(lambda x: ((x - 1) ** 2).sum(), np.ones(3), grad=lambda x: 2 * (x - 1))
    assert result.verdict == "vacuous"
    assert "does not change to first order" in result.headline


def test_steps_that_cross_a_pole_are_not_trusted():
    def f(x):
        return x[0] / x[1]

    def grad(x):
        return np.array([1 / x[1], -x[0] / x[1] ** 2])

    for small in (1e-1, 1e-3, 1e-6, 1e-9):
        for seed in range(5):
            result = check_gradient(f, np.array([1.0, small]), grad=grad, seed=seed)
            assert result.verdict in ("pass", "undecided"), (small, seed, result.headline)


@pytest.mark.parametrize("x", [[1e-3, 1.0, 1e3], [1e-6, 0.3, 0.7]], ids=["wide", "probability"])
def test_elements_of_different_size_near_the_edge_of_a_domain(x):
    result = check_gradient(np.log, np.array(x), vjp=lambda w, x: w / x)
    assert result.verdict == "pass", result.headline


def test_a_function_that_writes_into_its_input_is_not_accused():
    def f(x):
        x *= 2
        return (x**2).sum()

    assert check_gradient(f, np.ones(3), grad=lambda x: 8 * x).verdict == "pass"


def test_a_gradient_for_an_empty_input_is_ignored():
    def f(x, y):
        return (x**2).sum() + y.sum()

    result = check_gradient(f, X, np.zeros(0), grad=lambda x, y: (2 * x, np.ones(0)))
    assert result.verdict == "pass"


@pytest.mark.parametrize("tolerance", [1e-6, 1e-4, 1e-3, 1e-2])
def test_a_tolerance_accepts_what_is_within_it_and_not_more(tolerance):
    def f(x):
        return np.sin(x).sum()

    within = check_gradient(
        f, X, grad=lambda x: (1 + tolerance / 2) * np.cos(x), tolerance=tolerance
    )
    assert within.verdict == "pass", within.headline
    beyond = check_gradient(
        f, X, grad=lambda x: (1 + 100 * tolerance) * np.cos(x), tolerance=tolerance
    )
    assert beyond.verdict == "fail"


def test_a_seed_is_an_integer_of_any_kind_and_a_label_any_text():
    result = check_gradient(
        np.exp, X[0], vjp=lambda w, x: w * np.exp(x), seed=np.int64(3), label=Path("a/b")
    )
    assert type(result.context.seed) is int
    assert result.label == "a/b"
    with pytest.raises(UsageError, match=r"seed=1\.5 is not allowed; allowed: an integer"):
        check_gradient(np.exp, X[0], vjp=lambda w, x: w, seed=1.5)


def test_a_function_that_rounds_inside_is_asked_for_what_it_can_show():
    def rounded(x):
        return np.tanh(x.astype(np.float16).astype(np.float64)).sum()

    def slope(x):
        return 1 - np.tanh(x) ** 2

    x = np.random.default_rng(0).normal(size=100)
    right = check_gradient(rounded, x, grad=slope, seed=0)
    assert (right.verdict, right.findings[0].code) == ("pass", "inner-precision")
    assert right.findings[0].number("asked") <= 0.5
    wrong = check_gradient(rounded, x, grad=lambda x: 0.5 * slope(x), seed=0)
    assert wrong.verdict == "fail"
    asked = check_gradient(rounded, x, grad=slope, resolution=0.01, seed=0)
    assert (asked.verdict, asked.findings[0].code) == ("undecided", "unresolved")


def test_near_a_pole_the_steps_shrink_until_they_settle():
    x = np.random.default_rng(3).normal(size=400)
    x[7] = -2 + 1e-4
    result = check_gradient(special.gammaln, x, vjp=lambda w, x: w * special.digamma(x))
    assert result.verdict == "pass", result.headline


def test_a_small_error_that_may_be_meant_says_how_to_allow_it():
    def slope(factor):
        return lambda x: factor * np.cos(x)

    x = np.linspace(0.1, 1.0, 5)
    result = check_gradient(lambda x: np.sin(x).sum(), x, grad=slope(1 + 3e-7))
    assert result.verdict == "fail"
    assert result.advice[-1].endswith("tolerance=1e-06")
    allowed = check_gradient(lambda x: np.sin(x).sum(), x, grad=slope(1 + 3e-7), tolerance=1e-6)
    assert allowed.verdict == "pass"
    large = check_gradient(lambda x: np.sin(x).sum(), x, grad=slope(1.01))
    assert not any("tolerance" in line for line in large.advice)
