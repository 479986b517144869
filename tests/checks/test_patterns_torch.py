"""The same mistakes in a custom function of PyTorch, in every precision."""

import pytest

from pytest_gradcheck import check_gradient

torch = pytest.importorskip("torch")

DRAW = torch.Generator().manual_seed(2)
X, Y = torch.randn(4, 4, generator=DRAW), torch.randn(4, 4, generator=DRAW)


def spoilt(change):
    """A product of matrices, element by element nonlinear, with a changed backward."""

    class Mixed(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, y):
            ctx.save_for_backward(x, y)
            return torch.tanh(x) @ torch.sin(y)

        @staticmethod
        def backward(ctx, w):
            x, y = ctx.saved_tensors

            def right(w):
                return (
                    (w @ torch.sin(y).T) / torch.cosh(x) ** 2,
                    (torch.tanh(x).T @ w) * torch.cos(y),
                )

            return change(right, w, x)

    return Mixed.apply


def element(g):
    g = g.clone()
    g[2, 1] *= 1.05
    return g


def on_first(change):
    """Change the gradient of the first input only."""
    return lambda right, w, x: (change(right(w)[0], x), right(w)[1])


MISTAKES = {
    "sign": on_first(lambda g, x: -g),
    "factor": on_first(lambda g, x: 1.01 * g),
    "zero": on_first(lambda g, x: 0 * g),
    "element": on_first(lambda g, x: element(g)),
    "rolled": on_first(lambda g, x: torch.roll(g, 1, 0)),
    "transposed": on_first(lambda g, x: g.T),
    "offset": on_first(lambda g, x: g + 0.5),
    "masked": on_first(lambda g, x: g * torch.where(x < 0, 0.5, 1.0)),
    "cotangent": lambda right, w, x: right(torch.ones_like(w)),
    "swapped": lambda right, w, x: right(w)[::-1],
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("pattern", MISTAKES)
def test_a_mistake_in_a_backward_is_named(pattern, dtype):
    result = check_gradient(spoilt(MISTAKES[pattern]), X.to(dtype), Y.to(dtype), label="f")
    assert result.verdict == "fail"
    wrong = [f for f in result.findings if f.code == f"gradient-{pattern}"]
    both = pattern in ("cotangent", "swapped")
    assert [f.where for f in wrong] == (
        ["x", "y"] if both else ["x[2, 1]"] if pattern == "element" else ["x"]
    )


def test_a_function_that_stays_in_float32():
    def f(x, y):
        return spoilt(MISTAKES["element"])(x.float(), y.float())

    result = check_gradient(f, X, Y)
    assert (result.verdict, result.findings[0].code) == ("fail", "gradient-element")
    assert result.findings[0].where == "x[2, 1]"


def test_a_missing_conjugate():
    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, z):
            ctx.save_for_backward(z)
            return z**2

        @staticmethod
        def backward(ctx, w):
            return w * 2 * ctx.saved_tensors[0]

    z = torch.randn(5, dtype=torch.complex128, generator=DRAW)
    result = check_gradient(Square.apply, z)
    assert (result.verdict, result.findings[0].code) == ("fail", "gradient-conjugate")


def test_a_parameter_of_a_module_is_named_with_its_path():
    class Layer(torch.nn.Linear):
        def forward(self, x):
            return spoilt(lambda right, w, x: (right(w)[0], element(right(w)[1])))(x, self.weight)

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), Layer(4, 4, bias=False))
    result = check_gradient(model, X)
    assert result.verdict == "fail"
    assert result.findings[0].where.endswith("1.weight[2, 1]")
