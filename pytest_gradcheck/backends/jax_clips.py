"""JAX: optax transformations, what makes them, and functions from gradients to gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pytest_gradcheck.backends import jax_modules
from pytest_gradcheck.backends.clip_signatures import signature
from pytest_gradcheck.backends.clips import Clipped
from pytest_gradcheck.backends.jax_arrays import enable_x64
from pytest_gradcheck.backends.numpy_clips import NumpyClipper
from pytest_gradcheck.backends.protocol import Flat

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these


class JaxClipper(NumpyClipper):
    """A transformation, a function that makes one from a threshold, or a function of gradients."""

    name = "jax"

    def __init__(self, clip: Any, params: Any, shapes: tuple[tuple[int, ...], ...]) -> None:
        self._maker: Callable[..., Any] | None = None
        function = clip
        if is_transformation(clip):
            function = _as_function(clip)
        elif signature(clip).is_factory:
            self._maker, function = clip, _placeholder
        super().__init__(function, params, shapes)
        self.is_quirky = _is_of_optax(clip)
        if self._maker is not None:
            self._signature = signature(self._maker)
            self.settings = self._signature.settings
        self._parameters = [self.array(x, "float32") for x in self.parameters()]

    def flatten(self, value: Any) -> Flat:
        """A nested value taken apart."""
        return jax_modules.flatten(value)

    def array(self, value: np.ndarray, dtype: str) -> Any:
        """An array of JAX, in 64-bit mode where the precision needs it."""
        with enable_x64(True):
            return jnp.asarray(np.asarray(value)).astype(dtype)

    def clip(
        self, gradients: Sequence[np.ndarray | None], dtype: str, settings: Mapping[str, Any]
    ) -> Clipped:
        """Hand the gradients over, in 64-bit mode where the precision needs it."""
        with enable_x64(dtype == "float64" or bool(jax.config.jax_enable_x64)):
            return super().clip(gradients, dtype, settings)

    def applied(self, clip: Callable[..., Any], handed: Any, keywords: dict[str, Any]) -> Any:
        """The clipped gradients."""
        if self._maker is not None:
            made = self._maker(**keywords)
            self.is_quirky = self.is_quirky or _is_of_optax(made)
            clip = _as_function(made) if is_transformation(made) else made
        if getattr(clip, "wants_parameters", False):
            return clip(handed, self._flats[0].rebuild(self._parameters))
        return clip(handed) if self._maker else self._signature.called(clip, handed, keywords)


def is_transformation(value: Any) -> bool:
    """Whether a value is an optax transformation."""
    return callable(getattr(value, "init", None)) and callable(getattr(value, "update", None))


def _placeholder(gradients: Any) -> Any:
    raise AssertionError("a maker of clips is called in its place")


def _is_of_optax(clip: Any) -> bool:
    made = getattr(clip, "update", clip)
    return str(getattr(made, "__module__", "")).partition(".")[0] == "optax"


def _as_function(transformation: Any) -> Callable[..., Any]:
    def clip(gradients: Any, params: Any = None) -> Any:
        clipped, _ = transformation.update(gradients, transformation.init(params), params)
        return clipped

    clip.wants_parameters = True  # type: ignore[attr-defined]  # read where it is called
    return clip


def clipper(clip: Any, params: Any, shapes: tuple[tuple[int, ...], ...]) -> JaxClipper:
    """The clipper of a transformation or a function."""
    return JaxClipper(clip, params, shapes)
