"""NumPy: functions from gradients to gradients, alone or with the norm; in place too."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from pytest_gradcheck.backends import tree
from pytest_gradcheck.backends.clip_answers import listed, lost, read
from pytest_gradcheck.backends.clip_signatures import signature
from pytest_gradcheck.backends.clips import Clipped
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
    has_gaps = False
    settings: frozenset[str]

    def __init__(self, clip: Any, params: Any, shapes: tuple[tuple[int, ...], ...]) -> None:
        self._signature = signature(clip)
        self._signature.require_one("gradients")
        self._clip = clip
        self.settings = self._signature.settings
        made = {f"g{i}": np.ones(shape) for i, shape in enumerate(shapes)}
        self._flats = [self.flatten(t) for t in self.trees(made if params is None else params)]
        if params is None:
            self._flats.insert(0, self.flatten(list(made.values())))
        leaves = self._flats[0].leaves
        if not leaves or not all(leaf.dtype for leaf in leaves):
            raise UsageError("params= must hold arrays of floating-point type, and nothing else")
        self.shapes = tuple(leaf.shape for leaf in leaves)
        where = "gradients." if params is None else ""
        self.names = tuple(where + leaf.path if leaf.path else "gradient" for leaf in leaves)
        self.dtype = "" if params is None else leaves[0].dtype

    def trees(self, params: Any) -> list[Any]:
        """The structures in which the gradients of parameters may come, the likeliest first."""
        return [params]

    def flatten(self, value: Any) -> Flat:
        """A nested value taken apart."""
        return tree.flatten(value, _describe, lambda node: None)

    def array(self, value: np.ndarray, dtype: str) -> Any:
        """An array of the framework."""
        return np.array(value, dtype=dtype)

    def copied(self, value: Any) -> Any:
        """An array that the clip may write into."""
        return value.copy()

    def wide(self, value: Any) -> np.ndarray:
        """An array of the framework in float64."""
        return np.array(value, dtype=np.float64)

    def parameters(self) -> tuple[np.ndarray, ...]:
        """The arrays of ``params``."""
        return tuple(self.wide(leaf.value) for leaf in self._flats[0].leaves)

    def clip(
        self, gradients: Sequence[np.ndarray | None], dtype: str, settings: Mapping[str, Any]
    ) -> Clipped:
        """Hand the gradients over and read what comes back, or what is in their place."""
        given = [self.array(g, dtype) for g in gradients if g is not None]
        before = tuple(map(self.wide, given))
        keywords = self._signature.keywords(settings)
        try:
            handed, got = self._called(given, keywords)
        except Exception as error:  # whatever the user's code raises is what is to be judged
            return Clipped(before, error=told(error))
        return self._read(got, handed, before)

    def _called(self, given: list[Any], keywords: dict[str, Any]) -> tuple[Any, Any]:
        handed = self._flats[0].rebuild(list(map(self.copied, given)))
        try:
            got = self.applied(self._clip, handed, keywords)
        except _UNFIT as error:
            if len(self._flats) == 1:
                raise
            first = error
        else:
            self._flats = self._flats[:1]
            return handed, got
        self._flats = self._flats[::-1]
        handed = self._flats[0].rebuild(list(map(self.copied, given)))
        try:
            answer = handed, self.applied(self._clip, handed, keywords)
        except _UNFIT as error:
            self._flats = self._flats[::-1]
            raise error if "list" in str(first) else first from None
        self._flats = self._flats[:1]
        return answer

    def applied(self, clip: Callable[..., Any], handed: Any, keywords: dict[str, Any]) -> Any:
        """What the user's function returns."""
        return self._signature.called(clip, handed, keywords)

    def _read(self, got: Any, handed: Any, before: Sequence[np.ndarray]) -> Clipped:
        """What came back as gradients; what is in the place of those that went in otherwise."""
        like, gone = self._flats[0].leaves, ""
        got = listed(got)
        found, number = read(got, self.flatten, like)
        if found is None:
            found = [leaf.value for leaf in self.flatten(handed).leaves]
            if all(np.array_equal(a, self.wide(b)) for a, b in zip(before, found, strict=True)):
                gone = lost(got, self.flatten, like)
        return Clipped(tuple(before), tuple(map(self.wide, found)), number, lost=gone)


def _describe(path: str, value: Any) -> Leaf:
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind == "f":
        return Leaf(path, value, value.dtype.name, value.shape, "cpu")
    return Leaf(path, value)


def clipper(clip: Any, params: Any, shapes: tuple[tuple[int, ...], ...]) -> NumpyClipper:
    """The clipper of a function."""
    return NumpyClipper(clip, params, shapes)
