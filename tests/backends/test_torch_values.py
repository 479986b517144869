"""Tensors as arrays that are made anew only of what has changed."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from pytest_gradcheck.backends.torch_values import PART, Arrays  # noqa: E402  # needs torch


@pytest.mark.parametrize("count", [3, 2 * PART + 1], ids=["small", "large"])
def test_what_has_not_changed_is_not_copied_again(count: int) -> None:
    arrays, x = Arrays(), torch.ones(count)
    first = arrays.of(0, x)
    assert arrays.of(0, x) is first
    x[-1] = 2.0
    assert arrays.of(0, x)[-1] == 2.0
    assert first[-1] == 1.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("count", [3, 2 * PART + 1], ids=["small", "large"])
def test_a_zero_of_another_sign_is_another_number(count: int, dtype: torch.dtype) -> None:
    # What is put back later must have the bits that were there.
    arrays, x = Arrays(), torch.zeros(count, dtype=dtype)
    arrays.of(0, x)
    x.neg_()
    arrays.of(0, x)
    (kept,) = arrays.copies(1)
    assert torch.signbit(kept).all()


def test_what_is_not_a_number_equals_itself() -> None:
    arrays, x = Arrays(), torch.full((3,), torch.nan)
    assert arrays.of(0, x) is arrays.of(0, x)


@pytest.mark.parametrize("x", [torch.ones(3, 2).t(), torch.ones(4)[::2]], ids=["turned", "gaps"])
def test_layouts_are_compared(x: torch.Tensor) -> None:
    arrays = Arrays()
    first = arrays.of(0, x)
    assert arrays.of(0, x) is first
    x *= 2
    assert np.array_equal(arrays.of(0, x), 2 * first)


def test_copies_that_were_given_away_stay_as_they_are() -> None:
    arrays, x = Arrays(), torch.ones(3)
    arrays.of(0, x)
    (given,) = arrays.copies(1)
    x += 1
    arrays.of(0, x)
    x += 1
    arrays.of(0, x)
    assert given.tolist() == [1.0] * 3
    assert arrays.copies(1)[0].tolist() == [3.0] * 3


def test_there_are_no_copies_where_one_was_not_asked_for() -> None:
    arrays = Arrays()
    arrays.of(0, torch.ones(2))
    assert arrays.copies(2) == []


class Wrapped(torch.Tensor):
    """A tensor that has no memory of its own (as those of distributed or quantised models)."""

    @staticmethod
    def __new__(cls, inner, offset=0):
        return torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), dtype=inner.dtype, storage_offset=offset
        )

    def __init__(self, inner, offset=0):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        def opened(x):
            return x.inner if isinstance(x, Wrapped) else x

        tree_map = torch.utils._pytree.tree_map
        answer = func(*tree_map(opened, args), **tree_map(opened, kwargs or {}))
        if func is torch.ops.aten.copy_.default and isinstance(args[0], Wrapped):
            return args[0]
        return tree_map(lambda x: Wrapped(x) if isinstance(x, torch.Tensor) else x, answer)


@pytest.mark.parametrize("offset", [0, 5])
def test_a_tensor_without_memory_is_not_compared_by_it(offset: int) -> None:
    arrays = Arrays()
    for k in range(8):
        assert arrays.of(0, Wrapped(torch.full((8,), float(k)), offset))[0] == k
