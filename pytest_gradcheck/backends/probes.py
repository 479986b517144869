"""What a backend offers to the checks of flow."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

from pytest_gradcheck.backends.layers import Change, Origin, Pass

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these


class Probe(Protocol):
    """A model, its loss and a batch, as the checks of flow see them."""

    @property
    def backend(self) -> str:
        """Name of the backend."""

    @property
    def device(self) -> str:
        """Device of the parameters."""

    @property
    def dtype(self) -> str:
        """Precision of the parameters."""

    @property
    def label(self) -> str:
        """Name of the model."""

    @property
    def count(self) -> int:
        """Passes so far."""

    @property
    def most(self) -> int:
        """Most initialisations that can be drawn; 0 for any number."""

    @property
    def can_scale(self) -> bool:
        """Whether a pass can be made with the loss times a factor."""

    @property
    def replicates(self) -> str:
        """How fresh initialisations are made, in words; empty where they cannot be."""

    @property
    def changes(self) -> tuple[str, ...]:
        """The interventions that this probe can make."""

    def guard(self) -> AbstractContextManager[Any]:
        """Hold the user's state for the time of a check."""

    def draw(self, seed: int) -> Any:
        """A fresh initialisation; the model as it is where there are none."""

    def own(self) -> Any:
        """The model as it was given, where initialisations are drawn beside it; else None."""

    def same(self, a: Any, b: Any) -> bool:
        """Whether two initialisations have the same parameters."""

    def measure(self, state: Any, change: Change | None = None, factor: float = 1.0) -> Pass:
        """One pass, with one thing changed on the way, or with the loss times a factor."""

    def bare(self, state: Any, factor: float = 1.0) -> Pass:
        """Loss and parameters of one pass, with the loss times a factor; layers may be left out."""

    def repeated(self, state: Any) -> tuple[str, Mapping[str, float]]:
        """Another precision, and sizes of the gradients of parameters in it; nothing if none."""

    def again(self, state: Any, number: int) -> Pass | None:
        """A pass with other random numbers; None where it draws none that the probe can set."""

    def rescaled(self, state: Any, factors: Mapping[str, float]) -> Pass | None:
        """A pass with parameters times factors, by name; None where it cannot be had."""

    def forgetful(self, state: Any, name: str) -> Pass | None:
        """A pass in which no gradient goes from one call of a layer to an earlier one.

        Values are the same. ``fades`` tells of the largest gradient of any time step over that of
        the last. None where it cannot be had.
        """

    def shuffled(self, state: Any, number: int) -> Pass | None:
        """A pass with other samples, of features that the batch has; None if there are none."""

    def widened(self, factor: int) -> Probe | None:
        """The same model with wider layers, drawn anew; None where it cannot be had."""

    def stepped(self, state: Any) -> Any:
        """The state after one small step down the gradient."""

    def origin(self, state: Any) -> Origin | None:
        """Where the first value that is not finite is born; None where all are."""

    def strangers(self, state: Any) -> float:
        """How much the answer for a sample moves with the others; NaN where that is not known."""
