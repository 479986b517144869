"""Each mistake in a derivative is named: right derivatives, spoilt in one way at a time."""

import numpy as np
import pytest

from pytest_gradcheck import check_gradient
from pytest_gradcheck.checks.accuse import PATTERNS
from pytest_gradcheck.checks.advice import ADVICE
from pytest_gradcheck.reports import text

RNG = np.random.default_rng(3)
WEIGHT, MIX = RNG.normal(size=(4, 4)), RNG.normal(size=(16, 16)) / 4
X = RNG.normal(size=(4, 4))


def energy(x):
    return float((WEIGHT * np.tanh(x)).sum() + ((MIX @ x.ravel()) ** 2).sum())


def energy_grad(x):
    return WEIGHT / np.cosh(x) ** 2 + (2 * MIX.T @ (MIX @ x.ravel())).reshape(x.shape)


def spoilt(change):
    """The result for the gradient of ``energy``, changed."""
    return check_gradient(energy, X, grad=lambda x: change(energy_grad(x), x), label="f")


def finding(result):
    assert result.verdict == "fail"
    assert len(result.headline) < 100
    _, *lines, _ = text.failure(result).split("\n")
    assert [line for line in lines if len(line) > text.WIDTH - 4] == []
    assert result.advice
    return result.findings[0]


@pytest.mark.parametrize(
    ("code", "change", "words"),
    [
        ("sign", lambda g, x: -g, "x has the wrong sign"),
        ("zero", lambda g, x: 0 * g, "x gets zero, though"),
        ("missing", lambda g, x: (None,), "none reaches x"),
        ("factor", lambda g, x: 2 * g, "x gets 2 times the right one"),
        ("factor", lambda g, x: 1.01 * g, "x gets 1.01 times the right one"),
        ("factor", lambda g, x: 1.001 * g, "x gets 1 + 0.001 times the right one"),
        ("factor", lambda g, x: (1 - 1e-5) * g, "x gets 1 - 1e-05 times the right one"),
        ("factor", lambda g, x: g / 16, "x gets 1/16 times the right one (16 is a length of x)"),
        ("factor", lambda g, x: g * np.pi, "x gets 3.142 times the right one (pi)"),
        ("transposed", lambda g, x: g.T, "x gets the right one transposed"),
        ("rolled", lambda g, x: np.roll(g, 1, 0), "shifted by one element along axis 0"),
        ("rolled", lambda g, x: np.roll(g, -1, 1), "shifted by one element along axis 1"),
        ("rolled", lambda g, x: np.roll(g, 1), "x gets the right one shifted by one element"),
        ("flipped", lambda g, x: g[:, ::-1], "in reverse order along axis 1"),
        ("offset", lambda g, x: g + 0.1, "x gets the right one plus 0.1 in every element"),
        ("term", lambda g, x: g + 0.01 * x, "x gets the right one plus 0.01 times x"),
        ("term", lambda g, x: g - np.sign(x), "x gets the right one minus sign(x)"),
        ("broadcast", lambda g, x: np.full((4, 4), g.mean()), "x gets the mean over all axes"),
        (
            "broadcast",
            lambda g, x: np.repeat(g.sum(0, keepdims=True), 4, 0),
            "x gets the sum over axis 0 in every element",
        ),
        ("masked", lambda g, x: g * np.where(x < 0, 0.5, 1), "0.5 times the right one, only where"),
        ("masked", lambda g, x: g * (x > 0), "x gets zero, only where it is negative"),
        ("masked", lambda g, x: g + (x > 0) * x**2, "x is wrong, only where it is positive"),
        ("masked", lambda g, x: g * np.where(abs(x) > 1, 2, 1), "where it is above 1 in size"),
        ("masked", lambda g, x: g * (1 + np.eye(4)), "2 times the right one, only on the diagonal"),
        ("masked", lambda g, x: np.tril(g), "x gets zero, only above the diagonal"),
        (
            "masked",
            lambda g, x: g * np.array([[1.0], [1], [1], [3]]),
            "3 times the right one, only at the last index of axis 0",
        ),
    ],
)
def test_a_mistake_in_a_gradient_is_named(code, change, words):
    found = finding(spoilt(change))
    assert (found.code, found.where) == (f"gradient-{code}", "x")
    assert words in found.message


def test_an_error_without_a_form_says_how_large_and_in_how_many_elements():
    found = finding(spoilt(lambda g, x: g * (1 + 0.01 * np.cos(1e3 * x))))
    assert (found.code, found.where) == ("wrong-gradient", "x")
    assert found.message.startswith("x is off by ")
    assert "12 of 12 elements tried" in found.message
    assert found.number("share") == 1


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda g: g.ravel("F").reshape(2, 3), id="read"),
        pytest.param(lambda g: g.reshape(3, 2).T, id="written"),
    ],
)
def test_a_gradient_in_column_order_is_transposed(change):
    right = np.arange(1.0, 7.0).reshape(2, 3)
    grad = change(right)
    found = finding(check_gradient(lambda x: float((right * x).sum()), right, grad=lambda x: grad))
    assert found.code == "gradient-transposed"


SQUARE = RNG.normal(size=(4, 4))


@pytest.mark.parametrize(
    ("f", "rule"),
    [
        pytest.param(lambda x: SQUARE @ np.sin(x), "jac", id="matrix"),
        pytest.param(lambda x: SQUARE @ np.sin(x), "vjp", id="product"),
        pytest.param(lambda x: np.cumsum(x), "cumsum", id="cumsum"),
    ],
)
def test_a_product_with_the_jacobian_in_place_of_its_transpose(f, rule):
    rules = {
        "jac": {"jac": lambda x: (SQUARE * np.cos(x)).T},
        "vjp": {"vjp": lambda w, x: SQUARE * np.cos(x) @ w},
        "cumsum": {"vjp": lambda w, x: np.cumsum(w)},
    }
    found = finding(check_gradient(f, np.array([0.3, -0.8, 1.4, 0.6]), **rules[rule]))
    assert (found.code, found.where) == ("gradient-adjoint", "x")


def linear(x, b):
    return x + b


BATCH, BIAS = RNG.normal(size=(8, 3)), RNG.normal(size=3)


@pytest.mark.parametrize(
    ("code", "change", "words"),
    [
        ("broadcast", lambda w: w[0], "b gets the first slice of the sum over axis 0 only"),
        ("broadcast", lambda w: w[-1], "b gets the last slice of the sum over axis 0 only"),
        ("broadcast", lambda w: np.full(3, w.sum()), "b gets the sum over axis 0 in every"),
        ("factor", lambda w: w.mean(axis=0), "b gets 1/8 times the right one (8 is a length of x)"),
    ],
)
def test_a_sum_over_a_broadcast_axis(code, change, words):
    result = check_gradient(linear, BATCH, BIAS, vjp=lambda w, x, b: (w, change(w)))
    found = finding(result)
    assert (found.code, found.where) == (f"gradient-{code}", "b")
    assert words in found.message


A, B = RNG.normal(size=(6, 8)), RNG.normal(size=(6, 8))
U, V = RNG.normal(size=8), RNG.normal(size=8)


def layer(u, v):
    return np.tanh(A @ u) + (B @ v) ** 2


def layer_vjp(w, u, v):
    return A.T @ (w / np.cosh(A @ u) ** 2), B.T @ (w * 2 * (B @ v))


def test_swapped_gradients_name_each_other():
    result = check_gradient(layer, U, V, vjp=lambda w, u, v: layer_vjp(w, u, v)[::-1])
    assert finding(result).code == "gradient-swapped"
    told = [(f.where, f.message) for f in result.findings]
    assert [where for where, _ in told] == ["u", "v"]
    assert "v has got the right one" in told[0][1]
    assert "u has got the right one" in told[1][1]


def test_a_gradient_of_another_input_added():
    def vjp(w, u, v):
        first, second = layer_vjp(w, u, v)
        return first + second, second

    found = finding(check_gradient(layer, U, V, vjp=vjp))
    assert (found.code, found.where) == ("gradient-term", "u")
    assert found.message == "u gets the right one plus the gradient of v"


def test_an_ignored_cotangent():
    def vjp(w, u, v):
        return layer_vjp(np.ones_like(w), u, v)

    result = check_gradient(layer, U, V, vjp=vjp)
    told = [(f.code, f.where) for f in result.findings if f.code == "gradient-cotangent"]
    assert told == [("gradient-cotangent", "u"), ("gradient-cotangent", "v")]


def test_a_wrong_row_of_the_jacobian_is_named():
    def vjp(w, u, v):
        return layer_vjp(w * np.where(np.arange(6) == 3, 1.2, 1), u, v)[0], layer_vjp(w, u, v)[1]

    result = check_gradient(layer, U, V, vjp=vjp)
    found = finding(result)
    assert (found.code, found.where) == ("gradient-output", "u")
    assert found.message == "u is wrong only in the derivative of output[3]"
    assert result.context.derivatives <= 16  # two sets, beside too, then log2 of the outputs


def test_a_wrong_output_of_several_is_named():
    def f(x):
        return {"loss": np.sin(x), "aux": (x**3).sum()}

    def vjp(w, x):
        return w["loss"] * np.cos(x) + 0.5 * w["aux"] * 3 * x**2

    found = finding(check_gradient(f, U, vjp=vjp))
    assert (found.code, found.message) == (
        "gradient-output",
        "x is wrong only in the derivative of output aux",
    )


def test_a_wrong_row_beside_a_single_number_as_input():
    slopes = np.array([0.5, -1.0, 2.0])

    def vjp(w, x):
        return np.sum(w * slopes * np.cos(slopes * x) * np.array([1, 1, 1.5]))

    result = check_gradient(lambda x: np.sin(slopes * x), np.float64(1.3), vjp=vjp)
    assert finding(result).message == "x is wrong only in the derivative of output[2]"


def test_a_constant_for_each_cotangent():
    result = check_gradient(np.sin, U, vjp=lambda w, x: w * np.cos(x) + w.sum())
    assert finding(result).message == "x gets the right one plus a constant"


def standardised(x):
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True))


@pytest.mark.parametrize(("mean", "deviation"), [(0, 1), (1, 0), (0, 0)])
def test_a_missing_term_of_a_normalisation(mean, deviation):
    def vjp(w, x):
        centred = x - x.mean(axis=-1, keepdims=True)
        size = np.sqrt((centred**2).mean(axis=-1, keepdims=True))
        y = centred / size
        terms = mean * w.mean(axis=-1, keepdims=True)
        terms = terms + deviation * y * (w * y).mean(axis=-1, keepdims=True)
        return (w - terms) / size

    found = finding(check_gradient(standardised, BATCH.T.copy(), vjp=vjp))
    assert found.code == "gradient-mean"
    assert "over axis 1" in found.message


COMPLEX = RNG.normal(size=5) + 1j * RNG.normal(size=5)


def test_a_missing_conjugate_is_named():
    def square(z):
        return z**2

    assert check_gradient(square, COMPLEX, vjp=lambda w, z: w * np.conj(2 * z)).verdict == "pass"
    found = finding(check_gradient(square, COMPLEX, vjp=lambda w, z: w * 2 * z))
    assert found.code == "gradient-conjugate"
    found = finding(check_gradient(square, COMPLEX, vjp=lambda w, z: np.conj(w) * 2 * z))
    assert found.code == "gradient-conjugate"


def test_rounding_to_float32_inside_is_named():
    def grad(x):
        return energy_grad(x).astype(np.float32).astype(np.float64)

    found = finding(check_gradient(energy, X, grad=grad, tolerance=1e-11))
    assert found.code == "gradient-rounded"
    assert "float32" in found.message


def test_rounding_to_float16_inside_is_named():
    def grad(x):
        return energy_grad(x).astype(np.float16).astype(np.float64)

    found = finding(check_gradient(energy, X, grad=grad))
    assert (found.code, "float16" in found.message) == ("gradient-rounded", True)


def test_every_pattern_has_advice():
    assert {*PATTERNS, "other"} <= set(ADVICE)
