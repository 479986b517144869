"""Bad input: each mistake gets an error that names the value and says what is allowed."""

import numpy as np
import pytest

from pytest_gradcheck import UsageError, check_gradient

X = np.array([0.5, 1.0, 2.0])


def square(x):
    return (x**2).sum()


def refused(message, *args, **kwargs):
    with pytest.raises(UsageError, match=message):
        check_gradient(*args, **kwargs)


def failed(message, code, *args, **kwargs):
    result = check_gradient(*args, **kwargs)
    assert result.verdict == "fail"
    assert result.findings[0].code == code
    assert message in result.headline + " ".join(result.advice) + result.findings[0].message
    return result


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((np.array([1, 2]),), r"nothing differentiable .*x \(ndarray of int64\).*astype"),
        (("text", None, True), "nothing differentiable"),
        ((), "it was given none; pass its inputs after the function"),
        ((np.zeros((0, 3)),), "x has no elements; give an array with at least one"),
    ],
)
def test_nothing_differentiable(args, message):
    def f(x=None, y=None, z=None):
        return 1.0

    refused(message, f, *args, grad=lambda *a: None)


def test_an_empty_array_beside_a_full_one_is_left_alone():
    def f(x, y):
        return (x**2).sum() + y.sum()

    assert check_gradient(f, X, np.zeros(0), grad=lambda x, y: 2 * x).verdict == "pass"


@pytest.mark.parametrize("value", [3, "f", None, np.ones(2)])
def test_not_callable(value):
    refused("must be a function or a module, got", value, X)


def test_a_function_that_raises_is_named_and_chained():
    def f(x):
        raise ZeroDivisionError("no luck")

    with pytest.raises(
        UsageError, match="f raised ZeroDivisionError at the given inputs: no luck"
    ) as e:
        check_gradient(f, X, grad=square)
    assert isinstance(e.value.__cause__, ZeroDivisionError)


class Lazy:
    def to_dense(self):
        return X


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (None, "returned NoneType; it must return floating-point arrays .*forgot a return"),
        (3, "returned int"),
        ("text", "returned str"),
        (np.array([1, 2]), "returned ndarray of int64; .* \\(argmax, .* have no derivative\\)"),
        (np.array([True]), "returned ndarray of bool; .* have no derivative"),
        (np.zeros((0,)), "returned arrays without elements"),
        ([], "returned nothing"),
        (Lazy(), "returned Lazy; .* \\(call .to_dense\\(\\) on it\\)"),
    ],
)
def test_outputs_that_cannot_be_differentiated(output, message):
    refused(message, lambda x: output, X, grad=square)


def test_different_shapes_on_two_calls():
    calls = []

    def f(x):
        calls.append(1)
        return x[: len(calls) % 2 + 1]

    refused(r"outputs of different shapes on two calls: \(2,\) .* \(1,\)", f, X, vjp=lambda w, x: x)


@pytest.mark.parametrize(
    ("wrt", "message"),
    [
        ("y", "wrt='y' names no input; the differentiable inputs are: x"),
        (3, "wrt=3 is not a position; there are 1 positional arguments"),
        (1.5, "wrt takes positions and names, got float"),
        (["x", "z"], "wrt='z' names no input"),
    ],
)
def test_unknown_wrt(wrt, message):
    refused(message, square, X, wrt=wrt, grad=lambda x: 2 * x)


@pytest.mark.parametrize(
    ("gradient", "message", "code"),
    [
        (lambda x: np.ones((3, 1)), "shape (3, 1) for x, not", "gradient-shape"),
        (
            lambda x: (2 * x, x),
            "the derivative has 2 parts, the inputs under test are 1: x",
            "gradient-count",
        ),
        (
            lambda x: np.array([1, 2, 4]),
            "is of type int64",
            "gradient-dtype",
        ),
        (lambda x: "text", "is of type str", "gradient-dtype"),
        (
            lambda x: (2 * x).astype("float32"),
            "is float32, coarser than the input (float64)",
            "gradient-dtype",
        ),
        (lambda x: 2 * x * np.nan, "holds NaN or infinite numbers", "gradient-nonfinite"),
        (
            lambda x: np.array([np.inf, 2.0, 4.0]),
            "holds NaN or infinite",
            "gradient-nonfinite",
        ),
    ],
)
def test_hand_written_gradients_of_the_wrong_form(gradient, message, code):
    failed(message, code, square, X, grad=gradient)


def test_a_missing_hand_written_gradient_is_accused_where_the_output_depends_on_it():
    failed("none reaches x", "gradient-missing", square, X, grad=lambda x: (None,))


@pytest.mark.parametrize("is_one", [True, False])
def test_a_missing_gradient_among_several_points_to_wrt(is_one):
    given = (X,) if is_one else (X, X)
    result = check_gradient(
        lambda *xs: (xs[0] * xs[-1]).sum(), *given, grad=lambda *xs: (*xs[1:], None)
    )
    assert any("left out of wrt=" in told for told in result.advice) != is_one


def test_a_gradient_for_more_inputs_than_it_has_points_to_wrt():
    failed(
        "name the inputs it is for with wrt=",
        "gradient-count",
        lambda x, y: (x * y).sum(),
        X,
        X,
        grad=lambda x, y: y,
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_inputs(bad):
    refused("input x holds NaN or infinite numbers", square, np.array([1.0, bad]), grad=square)


def test_non_finite_outputs():
    refused("returned NaN or infinite numbers at the given inputs", np.log, -X, jac=np.diag)


@pytest.mark.parametrize(
    "x", [np.array(2.0), np.float64(2.0), 2.0], ids=["array", "scalar", "float"]
)
def test_zero_dimensional_inputs(x):
    assert check_gradient(lambda x: x**3, x, grad=lambda x: 3 * x**2).verdict == "pass"
    assert check_gradient(lambda x: x**3, x, grad=lambda x: 3.1 * x**2).verdict == "fail"


def test_unknown_backend():
    refused(
        "backend='tensorflow' is not known; known: torch, jax, numpy",
        square,
        X,
        backend="tensorflow",
    )


def test_numpy_without_a_derivative():
    refused("give the hand-written one as grad=, vjp= or jac=", square, X)


def test_two_derivatives_at_once():
    refused("give one derivative to check, not 2: grad, jac", square, X, grad=square, jac=square)
    refused("jac= must be a function, got ndarray", square, X, jac=X)


def test_a_gradient_for_a_function_with_many_outputs():
    refused(
        "grad= is for a function with one number as output, this one returns",
        np.sin,
        X,
        grad=np.cos,
    )


def test_value_and_grad_that_returns_one_thing():
    refused(r"must return \(value, gradient\), got float64", square, X, value_and_grad=True)


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ({"resolution": 0}, r"resolution: 0 is not allowed; allowed: a number in \(0, 1\]"),
        ({"tolerance": "much"}, "tolerance: 'much' is not allowed"),
        ({"undecided": "ignore"}, "undecided: 'ignore' is not allowed; allowed: one of warn, fail"),
        ({"miss_probability": True}, "miss_probability: True is not allowed"),
    ],
)
def test_bad_limits_in_a_call(limit, message):
    refused(message, square, X, grad=lambda x: 2 * x, **limit)


def test_an_unknown_device():
    refused("device='gpu' is not known to NumPy", square, X, grad=lambda x: 2 * x, device="gpu")


def test_a_misspelt_limit_is_told_from_an_argument():
    with pytest.raises(UsageError, match=r"'tolerence'; did you mean tolerance=\?"):
        check_gradient(lambda x: x.sum(), np.ones(2), grad=np.ones_like, tolerence=1e-3)
    with pytest.raises(UsageError, match=r"'scales'; did you mean scale=\?"):
        check_gradient(lambda x, scale: x.sum(), np.ones(2), grad=np.ones_like, scales=1.0)


def test_a_misspelt_limit_is_seen_where_a_function_has_no_signature():
    with pytest.raises(UsageError, match=r"'tolerence'; did you mean tolerance=\?"):
        check_gradient(np.add, X, X, vjp=lambda w, a, b: (w, w), tolerence=1e-3)
    result = check_gradient(
        lambda x, **scales: x * scales["labels"], X, labels=2.0, vjp=lambda w, x, labels: 2 * w
    )
    assert result.verdict == "pass"


def test_a_misspelt_limit_is_seen_where_a_function_takes_any_keyword():
    def f(x, **options):
        return x.sum()

    for name, meant in (("tolerence", "tolerance"), ("at_kinks", "at_kink")):
        with pytest.raises(
            UsageError, match=rf"{name}= .* did you mean {meant}=\? .*partial\(f, {name}=\.\.\.\)"
        ):
            check_gradient(f, X, grad=lambda x, **o: np.ones_like(x), **{name: 1e-3})

    def g(x, tolerances=1.0, **options):
        return x.sum()

    grad = lambda x, **o: np.ones_like(x)  # noqa: E731  # one line says all
    assert check_gradient(g, X, grad=grad, tolerances=2.0, labels=3, mode=None).verdict == "pass"
