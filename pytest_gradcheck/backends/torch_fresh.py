"""PyTorch: the loss and its gradient beside the step, at other parameters where asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pytest_gradcheck.backends import torch_loss, torch_moments, torch_scene
from pytest_gradcheck.backends.handed import takes
from pytest_gradcheck.backends.held import Bindings
from pytest_gradcheck.backends.reach import reachable
from pytest_gradcheck.backends.steps import Stopped, Training
from pytest_gradcheck.backends.torch_contents import Contents
from pytest_gradcheck.backends.torch_cuts import Cuts, DifferentError
from pytest_gradcheck.backends.torch_scene import Scene
from pytest_gradcheck.backends.torch_state import places
from pytest_gradcheck.backends.torch_values import Arrays, as_numpy
from pytest_gradcheck.backends.torch_wide import Own, Precision, Wide
from pytest_gradcheck.errors import UsageError

Grads = Sequence["Tensor | None"]

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these


class Fresh:
    """The loss of a training as its user computes it.

    Args:
        training: The parts.
        tensors: Every parameter.
        generators: All generators.
        scene: Modes and autocast.
        precision: In which precision it is computed.
    """

    def __init__(
        self,
        training: Training,
        tensors: Sequence[Tensor],
        generators: Sequence[Any],
        scene: Scene,
        precision: Precision | None = None,
    ) -> None:
        self._training, self._tensors = training, tensors
        self._generators, self._scene = generators, scene
        self._precision = precision or Own()
        self._takes_model = takes(training.loss, 1) == 2
        carried = reachable((training.loss, training.model))
        self._bindings = Bindings(carried, places(training.model.modules()))
        self._contents = Contents(carried, (*tensors, *training.model.buffers()))
        self._buffers = Contents(training.model.buffers(), tensors)
        self._held = (*tensors, *training.model.modules())
        self._hooks = torch_moments.backward_hooks(self._held)
        self._end = self.mark()
        self._values, self._now = Arrays(), list[np.ndarray]()
        self.is_settled = False  # whether none of the user's code ran since the last look at all
        self.casts_itself = False
        self.draws = False  # whether any gradient so far drew random numbers
        self.inner: tuple[str, ...] = ()  # precisions to which the loss itself casts
        self.is_cut = False  # whether the last loss was a tensor without a graph
        self.written: set[int] = set()  # numbers of the parameters that the loss itself writes
        self.dtype = "float64"
        self._factor = 1.0

    @contextmanager
    def scaled(self, factor: float) -> Iterator[None]:
        """Gradients by way of so many times the loss for a while: the same but for rounding."""
        self._factor = factor
        try:
            yield
        finally:
            self._factor = 1.0

    def now(self) -> list[np.ndarray]:
        """Every parameter; what is settled is not looked at again."""
        if not self.is_settled:
            self._now = [self._values.of(i, p) for i, p in enumerate(self._tensors)]
        return list(self._now)

    def kept(self) -> list[Tensor]:
        """The contents of every parameter: copied, unless a copy of what is settled is there."""
        self.now()
        return self._values.copies(len(self._tensors)) or [
            p.detach().clone() for p in self._tensors
        ]

    def mark(self) -> list[Any]:
        """The state of all generators."""
        return [g.get() for g in self._generators]

    def rewind(self, mark: Sequence[Any]) -> None:
        """Set all generators."""
        for generator, state in zip(self._generators, mark, strict=True):
            generator.set(state)

    def has_drawn(self, mark: Sequence[Any]) -> bool:
        """Whether any generator has moved since a mark."""
        return any(g.has_moved(m) for g, m in zip(self._generators, mark, strict=True))

    def is_hooked(self) -> bool:
        """Whether gradients pass through other hooks now than at hand-over."""
        return torch_moments.backward_hooks(self._held) != self._hooks

    def ends_here(self) -> bool:
        """Whether the last gradient left the generators where they are now."""
        return not self.has_drawn(self._end)

    def _loss(self, batch: Any) -> Tensor:
        model = self._training.model
        handed = self._precision.batch(batch)
        given = (model, handed) if self._takes_model else (handed,)
        with self._precision.drawing():
            return torch_loss.of_training(self._training.loss, given)

    @contextmanager
    def _placed(self, at: Sequence[np.ndarray] | None, mark: Sequence[Any]) -> Iterator[None]:
        """Other parameters, the modes of the step and a mark of the generators, for a while.

        What the loss itself changes, such as a state that it carries along, is set back.
        """
        with self._precision.placed(), self._moved(at, mark):
            yield

    @contextmanager
    def _aside(self, mark: Sequence[Any]) -> Iterator[None]:
        """A mark of the generators for a while, and all but parameters and buffers set back."""
        restorers = self._bindings.held()
        now = self.mark()
        try:
            self.rewind(mark)
            with self._contents.held():
                yield
        finally:
            for restore in restorers:
                restore()
            self.rewind(now)

    @contextmanager
    def _moved(self, at: Sequence[np.ndarray] | None, mark: Sequence[Any]) -> Iterator[None]:
        kept = self.kept()  # a loss may move a momentum encoder
        buffers = [(b, b.detach().clone()) for b in self._training.model.buffers()]
        try:
            for p, value in zip(self._tensors, at or (), strict=False):
                p.data.copy_(torch.from_numpy(np.asarray(value)))
            before = [p._version for p in self._tensors]
            with self._aside(mark), self._scene.placed(self._scene.modes):
                yield
            pairs = enumerate(zip(before, self._tensors, strict=True))
            self.written |= {i for i, (old, p) in pairs if p._version != old}
        finally:
            with torch.no_grad():
                for p, value in zip(self._tensors, kept, strict=False):
                    p.data.copy_(value)
                for buffer, value in buffers:
                    buffer.copy_(value)

    def gradient(
        self, batch: Any, at: Sequence[np.ndarray] | None, mark: Any
    ) -> tuple[Tensor, dict[int, Tensor | None]]:
        """The loss, and the gradients by the ids of their parameters."""
        with self._placed(at, mark), torch.enable_grad():
            wanted = [p for p in self._tensors if p.requires_grad]
            with torch_scene.entered() as casts:
                value = self._loss(batch)
            self.casts_itself = bool(casts)
            self.inner = tuple(str(dtype).removeprefix("torch.") for _, dtype in casts)
            self.is_cut = bool(wanted) and not value.requires_grad
            self.dtype = str(value.dtype).removeprefix("torch.")
            try:
                grads = self._pulled(torch_loss.pulled, value, wanted)
            except torch_loss.ReentrantError:
                self.rewind(mark)
                grads = self._pulled(torch_loss.accumulated, self._loss(batch), wanted)
            self._end, self.draws = self.mark(), self.draws or self.has_drawn(mark)
        return value.detach(), {id(p): g for p, g in zip(wanted, grads, strict=True)}

    def arrays(
        self, batch: Any, at: Sequence[np.ndarray] | None, mark: Any
    ) -> list[np.ndarray | None]:
        """The gradients, in the order of the parameters."""
        _, found = self.gradient(batch, at, mark)
        grads = (found.get(id(p)) for p in self._tensors)
        return [None if g is None else as_numpy(g) for g in grads]

    def _pulled(self, pull: Callable[..., Grads], value: Tensor, wanted: Sequence[Tensor]) -> Grads:
        if self._factor == 1:
            return pull(value, wanted)
        grads = pull(self._factor * value, wanted)
        return [None if g is None else g / self._factor for g in grads]

    def value(self, batch: Any, at: Sequence[np.ndarray], mark: Any) -> float:
        """The loss at other parameters."""
        return float(self._valued(batch, at, mark, None).detach())

    def by_outputs(
        self, batch: Any, mark: Any, outputs: Sequence[Tensor]
    ) -> tuple[Tensor, Sequence[Tensor | None]]:
        """The loss in the middle of a call, as everything is, and its gradient by some tensors.

        Parameters that it writes stay.
        """
        casting = nullcontext() if self.casts_itself else self._scene.casting_so_far()
        with self._aside(mark), self._buffers.held(), casting, torch.enable_grad():
            value = self._loss(batch)
            return value.detach(), torch_loss.alone(value, outputs)

    def _valued(self, batch: Any, at: Sequence[np.ndarray], mark: Any, cuts: Cuts | None) -> Tensor:
        # With a graph: a loss may differentiate inside.
        with self._placed(at, mark), torch.enable_grad(), cuts or nullcontext():
            return self._loss(batch)

    def masks(
        self, batches: Sequence[Any], at: Sequence[np.ndarray], marks: Sequence[Any]
    ) -> list[np.ndarray | None]:
        """0 for the rows of each parameter that an embedding never learns, 1 for the others."""
        masks: list[np.ndarray | None] = [None] * len(self._tensors)
        for batch, mark in zip(batches, marks, strict=True):
            rows = torch_loss.padding(self._valued(batch, at, mark, None))
            for i, p in enumerate(self._tensors):
                if id(p) in rows:
                    mask = np.ones(p.shape) if masks[i] is None else masks[i]
                    mask[rows[id(p)]] = 0.0  # type: ignore[index]  # an array by now
                    masks[i] = mask
        return masks

    def tokens(self, batch: Any, at: Sequence[np.ndarray], mark: Any) -> float | None:
        """By what the only cross entropy of the loss divides; None where there is none."""
        return torch_loss.tokens(self._valued(batch, at, mark, None))

    def widened(self) -> Fresh:
        """The same in float64."""
        wide = Wide(self._training.model, self._tensors, self.draws)
        return Fresh(self._training, self._tensors, self._generators, self._scene, wide)

    def stopped(self, batch: Any, at: Sequence[np.ndarray], mark: Any) -> Stopped:
        """The loss with what it holds back held still."""
        cuts = Cuts()
        functions = torch_loss.own_functions(self._valued(batch, at, mark, cuts))

        def value(there: Sequence[np.ndarray]) -> float:
            try:
                return float(self._valued(batch, there, mark, cuts.again()).detach())
            except UsageError as error:
                if not isinstance(error.__cause__, DifferentError):
                    raise
                return float("nan")

        return Stopped(value, tuple(cuts.places), tuple(functions))
