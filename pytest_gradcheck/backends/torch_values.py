"""PyTorch values as the checks take them: arrays of float64, and batches that are copied."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pytest_gradcheck.backends import tree
from pytest_gradcheck.backends.protocol import Leaf

PLAIN = (bool, int, float, complex, str, bytes, type(None))
PART = 1 << 16  # elements that are compared at a time
FEW = 1 << 16  # bytes that are copied to be compared, which is quicker
_OF_NUMPY = (torch.float32, torch.float64, torch.int16, torch.int32, torch.int64)
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

NEAR = 1e-6  # of the norm of a parameter


def as_numpy(x: Tensor) -> np.ndarray:
    """A copy on the CPU in float64."""
    x = x.to_dense() if x.layout != torch.strided else x
    wide = np.empty(x.shape)  # NumPy's own memory: in large pages, where the system has them
    torch.from_numpy(wide).copy_(x.detach())
    return wide


class Arrays:
    """Tensors as arrays of float64, made anew only of what has changed since it was last asked for.

    The arrays are shared between all who asked: nobody may write into them.
    """

    def __init__(self) -> None:
        self._kept: dict[int, tuple[Tensor, np.ndarray]] = {}
        self._lent: set[int] = set()  # copies that others have, and that stay as they are

    def of(self, number: int, x: Tensor) -> np.ndarray:
        """The array of a tensor that is called by a number."""
        if x.layout != torch.strided:
            return as_numpy(x)
        tensor, array = self._kept.get(number, (None, None))
        if array is None or tensor is None or not _is_same_bits(x.detach(), tensor):
            array = as_numpy(x)
            self._kept[number] = self._copied(number, x.detach(), tensor), array
        return array

    def _copied(self, number: int, x: Tensor, old: Tensor | None) -> Tensor:
        """A copy, in the memory of the last one: new memory takes longer than what is copied."""
        if old is not None and number not in self._lent and _form(old) == _form(x):
            return old.copy_(x)
        self._lent.discard(number)
        return x.clone()

    def copies(self, count: int) -> list[Tensor]:
        """The first tensors as they were last asked for; none where one of them is not kept."""
        if not all(i in self._kept for i in range(count)):
            return []
        self._lent.update(range(count))
        return [self._kept[i][0] for i in range(count)]


def is_alike(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have one form and the same numbers."""
    if (one.shape, one.dtype, one.device) != (other.shape, other.dtype, other.device):
        return False
    return _is_equal(one, other)


def _is_same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have one form and the same bits: what is put back is what was there.

    Zeros have a sign, and what is not a number equals itself here.
    """
    if (one.shape, one.dtype, one.device) != (other.shape, other.dtype, other.device):
        return False
    pair = [x.resolve_conj().resolve_neg() for x in (one, other)]
    pair = [torch.view_as_real(x) if x.is_complex() else x for x in pair]
    if all(map(_is_in_memory, pair)):
        size = pair[0].numel() * pair[0].element_size()
        if size <= FEW:
            first, second = (ctypes.string_at(x.data_ptr(), size) for x in pair)
            return first == second
        words = [x.view(_BITS[x.element_size()]).numpy(force=True).reshape(-1) for x in pair]
        return _are_equal(*(x if size % 8 else x.view(np.int64) for x in words))
    a, b = (x.view(_BITS[x.element_size()]) for x in pair)
    return bool(torch.equal(a, b))


def _is_in_memory(x: Tensor) -> bool:
    """Whether a tensor is one piece of memory of the processor, all of which is there."""
    if type(x) is not Tensor or x.device.type != "cpu" or not x.is_contiguous():
        return False
    end = (x.storage_offset() + x.numel()) * x.element_size()
    return bool(x.untyped_storage().nbytes() >= end)


def _form(x: Tensor) -> tuple[Any, ...]:
    return x.shape, x.dtype, x.device, x.stride()


def _is_equal(one: Tensor, other: Tensor) -> bool:
    """Whether tensors of one form are equal; large ones by NumPy, which is quicker, in parts."""
    if one.numel() <= PART or one.device.type != "cpu" or one.dtype not in _OF_NUMPY:
        return bool(torch.equal(one, other))
    return _are_equal(*(x.numpy(force=True).reshape(-1) for x in (one, other)))


def _are_equal(a: np.ndarray, b: np.ndarray) -> bool:
    return all(np.array_equal(a[k : k + PART], b[k : k + PART]) for k in range(0, a.size, PART))


def is_like(a: Any, b: Any) -> bool:
    """Whether two values are equal tensors, arrays or plain values, or one and the same object."""
    if a is b:
        return True
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return is_alike(a.detach(), b.detach())
    if isinstance(a, PLAIN) and isinstance(b, PLAIN):
        return type(a) is type(b) and bool(a == b)
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return bool(a.dtype == b.dtype and np.array_equal(a, b))
    return False


def are_near(one: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> bool:
    """Whether parameters are others but for the rounding of a move and its way back."""
    return all(
        np.array_equal(a, b, equal_nan=True)
        or bool(np.linalg.norm(a - b) <= NEAR * np.linalg.norm(b))
        for a, b in zip(one, other, strict=True)
    )


def like(p: Tensor, g: np.ndarray) -> Tensor:
    """An array as a tensor of the precision and on the device of another."""
    wide = torch.from_numpy(np.asarray(g, dtype=np.float64))
    return wide.to(dtype=p.dtype, device=p.device, copy=True)


def leaf(path: str, value: Any) -> Leaf:
    """Any value as a leaf."""
    return Leaf(path, value)


def closed(node: Any) -> None:
    """Plain containers are opened, nothing else."""
    return


def copied(batch: Any) -> Any:
    """A batch with tensors and arrays of its own."""
    flat = tree.flatten(batch, leaf, closed)
    copies = [
        item.value.clone()
        if isinstance(item.value, Tensor)
        else item.value.copy()
        if isinstance(item.value, np.ndarray)
        else item.value
        for item in flat.leaves
    ]
    return flat.rebuild(copies)


def is_same(one: Any, other: Any) -> bool:
    """Whether two batches hold the same numbers, in what both of them have.

    A step may put its outputs there, or take labels out: what is missing is missed aloud.
    """
    pairs = tree.shared(*(tree.flatten(batch, leaf, closed) for batch in (one, other)))
    return all(_equal(a.value, b.value) for a, b in pairs)


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        same = a.shape == b.shape and a.dtype == b.dtype
        return same and bool(torch.equal(a, b) or torch.all((a == b) | ((a != a) & (b != b))))
    if isinstance(a, np.ndarray):
        return bool(np.array_equal(a, b))
    return True


def joined(batches: Sequence[Any]) -> Any:
    """Batches put together along their first axis; None where their form does not allow it."""
    return _joined(batches, lambda column: 0)


def aligned(batches: Sequence[Any]) -> Any:
    """Batches put together along the axis in which they differ; None where that is not one."""
    return _joined(batches, _unlike)


def _unlike(column: Sequence[Tensor]) -> int | None:
    """The only axis in which some tensors differ."""
    if len({x.ndim for x in column}) > 1:
        return None
    shapes = zip(*(x.shape for x in column), strict=True)
    axes = [axis for axis, sizes in enumerate(shapes) if len({*sizes}) > 1]
    return axes[0] if len(axes) == 1 else None


def _joined(batches: Sequence[Any], axis_of: Callable[[Sequence[Tensor]], int | None]) -> Any:
    flats = [tree.flatten(b, leaf, closed) for b in batches]
    columns = list(zip(*([item.value for item in f.leaves] for f in flats), strict=False))
    if not columns or len({len(f.leaves) for f in flats}) > 1:
        return None
    if not all(all(isinstance(v, Tensor) and v.ndim for v in column) for column in columns):
        return None
    axes = [axis_of(column) for column in columns]
    if None in axes:
        return None
    try:
        pairs = zip(columns, axes, strict=True)
        return flats[0].rebuild([torch.cat(list(column), axis or 0) for column, axis in pairs])
    except RuntimeError:  # other axes differ
        return None


def differ(batches: Sequence[Any]) -> bool:
    """Whether batches differ in the shapes of their tensors, or have no tensors."""
    flats = [tree.flatten(b, leaf, closed).leaves for b in batches]
    forms = [[tuple(getattr(item.value, "shape", ())) for item in flat] for flat in flats]
    return any(form != forms[0] or not any(form) for form in forms)


def size(batch: Any) -> int:
    """Length of the first tensor."""
    for item in tree.flatten(batch, leaf, closed).leaves:
        if isinstance(item.value, (Tensor, np.ndarray)) and item.value.ndim:
            return len(item.value)
    return 1
