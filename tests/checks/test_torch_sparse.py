"""Sparse tensors as inputs and outputs: by their stored values."""

from __future__ import annotations

import pytest
import torch

from pytest_gradcheck import check_gradient

# torch tells once that compressed layouts are young.
pytestmark = pytest.mark.filterwarnings("ignore:Sparse:UserWarning")

DENSE = torch.tensor(
    [[0.5, 0.0, -1.2, 0.0], [0.0, 2.1, 0.0, 0.3], [-0.8, 0.0, 0.0, 1.7]], dtype=torch.float64
)
RIGHT = torch.linspace(-1, 2, 8, dtype=torch.float64).reshape(4, 2)
COO = DENSE.to_sparse()


LAYOUTS = {
    "coo": lambda: COO,
    "csr": lambda: DENSE.to_sparse_csr(),
    "csc": lambda: DENSE.to_sparse_csc(),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_sparse_input_is_checked_by_its_values(layout, dtype):
    sparse = LAYOUTS[layout]().to(dtype)
    result = check_gradient(lambda s, b: s.to_dense().sin() @ b, sparse, RIGHT.to(dtype))
    assert result.verdict == "pass"
    assert [row[0] for row in result.table("resolution").rows] == ["s.values", "b"]


@pytest.mark.parametrize(
    "f",
    [
        lambda s: torch.sparse.mm(s, RIGHT),
        lambda s: s * 2.0,
        lambda s: s + s,
        lambda s: torch.sparse.sum(s),
        lambda s: s.coalesce().values() ** 2,
        lambda s: (s.to_dense() ** 2).to_sparse(),
    ],
    ids=["product", "scaled", "sum of two", "sum", "values", "dense and back"],
)
def test_sparse_operations_pass(f):
    assert check_gradient(f, COO).verdict == "pass"


def test_an_output_in_rows_and_an_input_that_samples():
    left, right = RIGHT[:3], RIGHT.T.contiguous()
    result = check_gradient(torch.sparse.sampled_addmm, DENSE.to_sparse_csr(), left, right)
    assert result.verdict == "pass"


def product(factor):
    class Product(torch.autograd.Function):
        @staticmethod
        def forward(ctx, s, b):
            ctx.save_for_backward(s, b)
            return torch.sparse.mm(s, b)

        @staticmethod
        def backward(ctx, g):
            s, b = ctx.saved_tensors
            return factor * (g @ b.T).sparse_mask(s.coalesce()), s.t() @ g

    return Product.apply


def test_a_custom_function_of_a_sparse_tensor():
    assert check_gradient(product(1.0), COO, RIGHT).verdict == "pass"
    result = check_gradient(product(1.5), COO, RIGHT)
    assert result.verdict == "fail"
    assert result.findings[0].code == "gradient-factor"
    assert result.findings[0].where == "s.values"


def test_a_sparse_gradient_of_a_dense_parameter():
    embedding = torch.nn.Embedding(6, 3, sparse=True)
    assert check_gradient(embedding, torch.tensor([1, 2, 2])).verdict == "pass"
