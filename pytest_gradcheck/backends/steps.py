"""A user's training as the checks see it: calls of the step, the updates inside, fresh gradients.

Everything that a check measures comes out as NumPy arrays of float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np

from pytest_gradcheck.backends.seen import Clip, Witness

Values = "tuple[np.ndarray, ...]"


@dataclass(frozen=True, kw_only=True)
class Training:
    """A training as it runs: the parts that a check needs to see.

    Args:
        step: torch: ``step(batch)``; JAX and NumPy: ``step(params, opt_state, batch)``, which
            returns the new ``(params, opt_state)``, and whatever else after them.
        loss: What is to become smaller (larger, where the optimizer says ``maximize``). torch:
            ``loss(batch)`` or ``loss(model, batch)``, or one for each of several optimizers; JAX
            and NumPy: ``loss(params, batch)``, or ``loss(params, batch, opt_state)`` where it needs
            what the step carries along (keys, targets, statistics), as it is before the step. A
            tuple counts by its first value.
        batches: The batches of an epoch, the last one as short as it is.
        model: torch: the module, as it is handed over (its mode counts).
        optimizer: torch: the optimizer, or several. JAX: the optax transformation.
        params: JAX and NumPy: the parameters at the start, a plain float among them, too.
        opt_state: The state of their optimizer at the start; that of optax by default.
        grad: NumPy: ``grad(params, batch)``, or with the state as ``loss``: a gradient of it to use
            (after it was checked along random directions) where central differences would take
            too long.
        weights: How the calls of a window count, where ``weights=`` of the check is not given.
    """

    step: Callable[..., Any]
    loss: Any  # a function, or a list of functions
    batches: Iterable[Any]
    model: Any = None
    optimizer: Any = None
    params: Any = None
    opt_state: Any = None
    grad: Callable[..., Any] | None = None
    weights: Any = None


@dataclass(frozen=True, slots=True, eq=False)
class Update:
    """One step of an optimizer.

    Args:
        before: Every parameter before.
        after: Every parameter after.
        received: The gradients that the optimizer was given, None for a tensor without; None in
            place of all where they could not be seen.
        hyper: Hyperparameters of each parameter at the time, empty where unknown.
        which: Number of the optimizer.
        touched: Whether the step changed the gradients that it was given.
        oracle: The update as the optimizer itself makes it when it is called once more, beside
            the user's step; empty where it cannot be called.
        slots_before: Groups of arrays in the state that are shaped like the parameters, before.
        slots_after: The same after.
        place: Number of the event of the call that it is.
        fresh: Loss and fresh gradient at the last backward pass before; None where none was taken.
        is_still: Whether parameters and state were returned as they were handed over.
        is_lost: Whether the optimizer was given the state of the start, in place of its last one.
        is_astray: Whether the optimizer was given other parameters than those before.
        bare: The update as the optimizer makes it for parameters of zero; empty as ``oracle`` is.
        asked: How often the optimizer was asked for an update in the call, where that is seen.
    """

    before: Sequence[np.ndarray]
    after: Sequence[np.ndarray]
    received: Sequence[np.ndarray | None] | None
    hyper: Sequence[Mapping[str, Any]]
    which: int = 0
    touched: bool = False
    oracle: Sequence[np.ndarray] = ()
    slots_before: Sequence[Sequence[np.ndarray]] = ()
    slots_after: Sequence[Sequence[np.ndarray]] = ()
    place: int = 0
    fresh: tuple[float, Sequence[np.ndarray | None]] | None = None
    is_still: bool = False
    is_lost: bool = False
    is_astray: bool = False
    bare: Sequence[np.ndarray] = ()
    asked: int = 1


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """One call of the user's step.

    Args:
        before: Every parameter before.
        after: Every parameter after.
        updates: The steps of optimizers inside.
        events: What was seen to happen, in order: pairs of a word and a number (a threshold).
        changed_batch: Whether the step wrote into its batch.
        error: What it raised, in words; empty where nothing.
        clips: The clips of the framework that were called.
        trained: Whether each parameter took a gradient at some time of it: before, at a backward
            pass, at an update, or after; empty where it always does what it did at hand-over.
        is_altered: Whether it differentiated under other conditions than were known before it.
        is_idle: Whether it left the gradients and the parameters alone.
        fresh: Loss and fresh gradient at its last backward pass; None where none was taken.
        replaced: Names of parameters that are other objects afterwards, which nobody trains.
        added: Names of those that an optimizer holds, and that were not there before it.
        lying: The gradients that lay at the parameters before it; empty where nobody looked.
        witness: What it differentiates; None where nobody looked, or that cannot be said.
        is_hooked: Whether gradients passed through other hooks than at hand-over.
    """

    before: Sequence[np.ndarray]
    after: Sequence[np.ndarray]
    updates: Sequence[Update]
    events: Sequence[tuple[str, float]] = ()
    changed_batch: bool = False
    error: str = ""
    clips: Sequence[Clip] = ()
    trained: Sequence[bool] = ()
    is_altered: bool = False
    is_idle: bool = False
    fresh: tuple[float, Sequence[np.ndarray | None]] | None = None
    replaced: Sequence[str] = ()
    added: Sequence[str] = ()
    lying: Sequence[np.ndarray | None] = ()
    witness: Witness | None = None
    is_hooked: bool = False


@dataclass(frozen=True, slots=True)
class Stopped:
    """A loss that holds parts back from its gradient, with these parts held still.

    Args:
        value: The loss at other parameters.
        places: What holds them back, and where.
        functions: Names of functions in its graph whose backward is not the framework's own.
    """

    value: Callable[[Sequence[np.ndarray]], float]
    places: tuple[str, ...]
    functions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Refused:
    """A trial of an optimizer that could not be made.

    Args:
        told: Why.
        is_fault: Whether that is wrong: its state cannot be saved, or not be loaded.
    """

    told: str
    is_fault: bool


@dataclass(frozen=True, slots=True, eq=False)
class Tracked:
    """One parameter.

    Args:
        name: Dotted path.
        dtype: Precision.
        trainable: Whether its owner lets it be trained, at some time of the run at least.
        owners: By how many optimizers, or groups, it is held at most; None where that is not
            known.
        shadow: Number of the parameter of lower precision that it is the master copy of; -1.
        is_beside: Whether an optimizer holds it, and the model does not.
    """

    name: str
    dtype: str
    trainable: bool = True
    owners: int | None = None
    shadow: int = -1
    is_beside: bool = False


class Loop(Protocol):
    """A training that runs.

    ``rules`` are the names of the rules of its optimizers where their classes say it, ``shown`` the
    class itself, ``wanted`` what to give where nothing of them is seen; ``starts`` the state of the
    optimizer for each parameter at hand-over and the number of updates before, ``is_foreign``
    whether there is one that is not known; ``can_see`` whether the gradients that the optimizer
    receives can be seen; ``doubt`` the relative error of a fresh gradient; ``accumulate`` the
    claimed calls for each update; ``dtype`` the precision of the loss. ``is_witnessed`` is set from
    outside: whether to look at what the next call differentiates, where that can be seen.
    """

    name: str
    parameters: Sequence[Tracked]
    rules: Sequence[str]
    starts: Sequence[tuple[Mapping[str, np.ndarray], int]]
    is_foreign: bool
    shown: str
    wanted: str
    device: str
    can_see: bool
    doubt: float
    dtype: str
    accumulate: int
    is_witnessed: bool

    def mark(self) -> Any:
        """Note the state of all generators, from which the next calls draw."""

    def rewind(self, mark: Any) -> None:
        """Set all generators to a mark."""

    def call(self, batch: Any) -> Call:
        """Call the user's step as it is."""

    def call_at(self, batch: Any, at: Sequence[np.ndarray]) -> Call:
        """Call it at other parameters, which are put back afterwards."""

    def now(self) -> Sequence[np.ndarray]:
        """Every parameter."""

    def unfinite(self) -> Sequence[str]:
        """Names of what the model holds beside parameters that is not finite."""

    def gradient(
        self, batch: Any, at: Sequence[np.ndarray] | None, mark: Any
    ) -> tuple[float, Sequence[np.ndarray | None]]:
        """Loss and fresh gradient, drawn from a mark, at other parameters where given."""

    def careful(self) -> bool:
        """Compile as the user's step does from now on; whether that is a change."""

    def value(self, batch: Any, at: Sequence[np.ndarray], mark: Any) -> float:
        """The loss at other parameters, drawn from a mark."""

    def joined(self, batches: Sequence[Any]) -> Any:
        """Several batches as one; None where they cannot be put together."""

    def differ(self, batches: Sequence[Any]) -> bool:
        """Whether batches differ in their forms, or have none that can be seen."""

    def size(self, batch: Any) -> int:
        """Number of samples in a batch."""

    def held(self) -> AbstractContextManager[None]:
        """Set everything back to what it was afterwards, also after an exception."""

    def idle(self, is_fresh: bool) -> Iterable[tuple[str, Sequence[str], bool]]:
        """Steps that must not move anything: what was tried, what moved, whether it is finite."""

    def restored(self, update: Update) -> Sequence[tuple[str, float]] | Refused | None:
        """Repeat an update from a saved and restored state; what differs by how much of itself."""

    def resumed(self) -> Sequence[tuple[str, str]]:
        """What beside the optimizer goes on otherwise from its saved state: a name, and how."""

    def repeated(self) -> Sequence[tuple[str, float]]:
        """The last call once more, from the same state; what then ends otherwise, by how much."""

    def slots(self) -> Sequence[Sequence[np.ndarray]]:
        """Groups of arrays in the state of the optimizer that are shaped like the parameters."""
