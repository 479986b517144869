"""Derivatives in the forms that SciPy passes around."""

import numpy as np
import pytest
from scipy import sparse
from scipy.sparse.linalg import aslinearoperator

from pytest_gradcheck import UsageError, check_gradient

A = sparse.random(5, 4, 0.6, random_state=0).tocsr()
X = np.linspace(0.1, 0.7, 4)


def value(p):
    a, k = p
    return a**2 * np.exp(-k)


def slope(p):
    a, k = p
    return np.array([2 * a * np.exp(-k), -(a**2) * np.exp(-k)])


def test_a_gradient_of_a_list_of_numbers_may_be_one_array():
    assert check_gradient(value, [0.3, 0.7], grad=slope).verdict == "pass"
    wrong = check_gradient(value, [0.3, 0.7], grad=lambda p: slope(p) * [1, 2])
    assert (wrong.verdict, wrong.findings[0].where) == ("fail", "p.1")
    both = check_gradient(lambda p: (value(p), slope(p)), [0.3, 0.7], value_and_grad=True)
    assert both.verdict == "pass"
    jac = check_gradient(
        lambda p: np.array([value(p), p[0]]),
        [0.3, 0.7],
        jac=lambda p: np.stack([slope(p), [1.0, 0.0]]),
    )
    assert jac.verdict == "pass"


def test_one_array_for_two_numbers_of_their_own_is_refused():
    result = check_gradient(lambda a, k: value((a, k)), 0.3, 0.7, grad=lambda a, k: slope((a, k)))
    assert result.findings[0].code == "gradient-count"
    assert "the derivative has 1 part, the inputs" in result.headline


@pytest.mark.parametrize("form", [aslinearoperator, sparse.coo_array, sparse.csr_matrix])
def test_a_jacobian_may_be_sparse_or_an_operator(form):
    for factor, verdict in ((1.0, "pass"), (2.0, "fail")):
        result = check_gradient(lambda x: A @ x, X, jac=lambda x, c=factor: form(c * A))
        assert result.verdict == verdict


def test_value_and_gradient_in_the_wrong_order_are_told():
    with pytest.raises(UsageError, match=r"the function returns \(gradient, value\)"):
        check_gradient(lambda x: (np.cos(x), np.sin(x).sum()), X, value_and_grad=True)
