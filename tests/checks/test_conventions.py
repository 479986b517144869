"""Derivatives that a framework defines in its own way: what is said of them."""

import numpy as np
import pytest
import torch
from identities import scaled
from torch import nn

from pytest_gradcheck import check_gradient


def embedding(**options):
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(5, 3, padding_idx=0, **options), nn.Tanh()).double()


TOKENS = torch.tensor([[0, 2, 4], [3, 1, 0]])


@pytest.mark.parametrize("modes", [("reverse",), ("reverse", "batched")])
@pytest.mark.parametrize("order", [1, 2])
def test_the_padding_row_of_an_embedding_is_left_out(modes, order):
    result = check_gradient(embedding(), TOKENS, modes=modes, order=order)
    assert result.verdict == "pass", result.headline
    (note,) = (f for f in result.findings if f.code == "padding-row")
    assert (note.where, note.severity) == ("0.weight", "note")


def test_an_error_in_the_other_rows_is_seen():
    result = check_gradient(lambda m, t: scaled(1.05)(m(t)), embedding(), TOKENS)
    assert (result.verdict, result.findings[0].code) == ("fail", "gradient-factor")


def test_padding_by_a_function_is_explained():
    weight = torch.randn(5, 3, dtype=torch.float64)
    result = check_gradient(lambda w: nn.functional.embedding(TOKENS, w, padding_idx=0), weight)
    assert result.findings[0].code == "gradient-masked"
    assert "padding row" in result.advice[0]
    intended = check_gradient(
        lambda w: nn.functional.embedding(TOKENS, w, padding_idx=0),
        weight,
        intended="row 0 is padding",
    )
    assert intended.verdict == "pass"


def symmetric(dtype, seed=0, batch=()):
    a = torch.randn(*batch, 4, 4, dtype=dtype, generator=torch.Generator().manual_seed(seed))
    return a @ a.mH + 4 * torch.eye(4, dtype=dtype)


@pytest.mark.parametrize("batch", [(), (2,)])
@pytest.mark.parametrize(
    ("f", "triangle", "dtype"),
    [
        (torch.linalg.cholesky, "lower", torch.float64),
        (lambda a: torch.linalg.cholesky(a, upper=True), "upper", torch.float64),
        (torch.linalg.eigvalsh, "lower", torch.float64),
        (torch.linalg.eigvalsh, "lower", torch.complex128),
        (lambda a: torch.linalg.eigvalsh(a, UPLO="U"), "upper", torch.complex128),
    ],
)
def test_a_function_of_one_triangle_is_explained(f, triangle, dtype, batch):
    a = symmetric(dtype, batch=batch)
    result = check_gradient(f, a)
    assert result.findings[0].code == "gradient-triangle"
    assert f"only its {triangle} triangle is read" in result.headline
    # What the advice says to do is enough.
    assert check_gradient(lambda a: f((a + a.mH) / 2), a).verdict == "pass"


def test_the_jacobian_of_complex_numbers_is_the_plain_one():
    z = np.array([1 + 2j, 0.5 - 1j])
    assert check_gradient(np.square, z, jac=lambda z: np.diag(2 * z)).verdict == "pass"
    wrong = check_gradient(np.square, z, jac=lambda z: np.diag(2 * z.conj()))
    assert wrong.findings[0].code == "gradient-conjugate"


def test_a_tensor_without_numbers_is_refused():
    from pytest_gradcheck.errors import UsageError

    with pytest.raises(UsageError, match="meta device"):
        check_gradient(torch.sin, torch.ones(3, device="meta"))
