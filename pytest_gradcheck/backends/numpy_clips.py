"""NumPy: functions from gradients to gradients, alone or with the norm; in place too."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from pytest_gradcheck.backends import tree
from pytest_gradcheck.backends.clips import Clipped, signature
from pytest_gradcheck.backends.protocol import Flat, Leaf
from pytest_gradcheck.errors import UsageError, told

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

_UNFIT = (AttributeError, IndexError, KeyError, TypeError)  # what the wrong container brings


class NumpyClipper:
    """A function of a list or a dictionary of gradients.

    Args:
        clip: The user's function.
        params: A nested value whose structure and shapes the gradients get; None makes a list,
            or a dictionary where the function does not take a list.
        shapes: Shapes of the gradients to make.
    """

    name = "numpy"
    is_quirky = False
    settings: frozenset[str]

    def __init__(self, clip: Any, params: Any, shapes: tuple[tuple[int, ...], ...]) -> None:
        self._signature = signature(clip)
        if len(self._signature.free) != 1:
            raise UsageError(
                f"the clip takes {', '.join(self._signature.free) or 'nothing'}; allowed: one "
                f"argument, the gradients, beside max_norm and norm_type"
            )
        self._clip = clip
        self.settings = self._signature.settings
        made: list[Any] = [np.ones(shape) for shape in shapes]
        trees = [made, {f"g{i}": x for i, x in enumerate(made)}] if params is None else [params]
        self._flats = [self.flatten(t) for t in trees]
        leaves = self._flats[0].leaves
        if not leaves or not all(leaf.dtype for leaf in leaves):
            raise UsageError("params= must hold arrays of floating-point type, and nothing else")
        self.shapes = tuple(leaf.shape for leaf in leaves)
        self.names = tuple(leaf.path or "gradient" for leaf in leaves)
        self.dtype = "" if params is None else leaves[0].dtype

    def flatten(self, value: Any) -> Flat:
        """A nested value taken apart."""
        return tree.flatten(value, _describe, lambda node: None)

    def array(self, value: np.ndarray, dtype: str) -> Any:
        """An array of the framework."""
        return np.array(value, dtype=dtype)

    def parameters(self) -> tuple[np.ndarray, ...]:
        """The arrays of ``params``."""
        return tuple(np.asarray(leaf.value, dtype=np.float64) for leaf in self._flats[0].leaves)

    def clip(
        self, gradients: Sequence[np.ndarray | None], dtype: str, settings: Mapping[str, Any]
    ) -> Clipped:
        """Hand the gradients over and read what comes back, or what is in their place."""
        given = [self.array(g, dtype) for g in gradients if g is not None]
        before = tuple(_wide(x) for x in given)
        keywords = self._signature.keywords(settings)
        try:
            handed, got = self._called(given, keywords)
        except Exception as error:  # whatever the user's code raises is what is to be judged
            return Clipped(before, error=told(error))
        after, returned = self._read(got, handed, len(before))
        return Clipped(before, after, returned)

    def _called(self, given: list[Any], keywords: dict[str, Any]) -> tuple[Any, Any]:
        handed = self._flats[0].rebuild([x.copy() for x in given])
        try:
            return handed, self.applied(self._clip, handed, keywords)
        except _UNFIT:
            if len(self._flats) == 1:
                raise
        self._flats = self._flats[::-1]
        handed = self._flats[0].rebuild([x.copy() for x in given])
        try:
            answer = handed, self.applied(self._clip, handed, keywords)
        except _UNFIT:
            self._flats = self._flats[::-1]
            raise
        self._flats = self._flats[:1]
        return answer

    def applied(self, clip: Callable[..., Any], handed: Any, keywords: dict[str, Any]) -> Any:
        """What the user's function returns."""
        return clip(handed, **keywords)

    def _read(
        self, got: Any, handed: Any, count: int
    ) -> tuple[tuple[np.ndarray, ...], float | None]:
        """The gradients and the number in ``got``; those of ``handed`` where it holds none."""
        if isinstance(got, (tuple, list)) and len(got) == 2:
            for gradients, number in (tuple(got), tuple(got)[::-1]):
                arrays = self._arrays(gradients)
                if len(arrays) == count and _is_number(number) and not _is_number(gradients):
                    return arrays, float(np.asarray(number, dtype=np.float64))
        arrays = self._arrays(got)
        if len(arrays) == count and not (_is_number(got) and count == 1):
            return arrays, None
        number = float(np.asarray(got, dtype=np.float64)) if _is_number(got) else None
        return self._arrays(handed), number

    def _arrays(self, value: Any) -> tuple[np.ndarray, ...]:
        leaves = self.flatten(value).leaves
        return tuple(_wide(leaf.value) for leaf in leaves if leaf.value is not None)


def _describe(path: str, value: Any) -> Leaf:
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind == "f":
        return Leaf(path, value, value.dtype.name, value.shape, "cpu")
    return Leaf(path, value)


def _is_number(value: Any) -> bool:
    if value is None or isinstance(value, (bool, str, list, tuple, dict)):
        return False
    return bool(np.ndim(value) == 0)


def _wide(value: Any) -> np.ndarray:
    return np.array(value, dtype=np.float64)


def clipper(clip: Any, params: Any, shapes: tuple[tuple[int, ...], ...]) -> NumpyClipper:
    """The clipper of a function."""
    return NumpyClipper(clip, params, shapes)
