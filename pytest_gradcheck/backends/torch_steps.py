"""PyTorch: a training step that runs as it is, watched through the hooks of its optimizer."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pytest_gradcheck.backends import (
    torch_events,
    torch_optimizers,
    torch_resumed,
    torch_trials,
    torch_values,
)
from pytest_gradcheck.backends.held import held_bindings
from pytest_gradcheck.backends.state import reachable
from pytest_gradcheck.backends.steps import Call, Clip, Tracked, Training, Update, scalar, takes
from pytest_gradcheck.backends.torch_state import generators_of, guard
from pytest_gradcheck.backends.torch_values import Arrays, as_numpy, copied, is_same
from pytest_gradcheck.backends.torch_watch import Watch
from pytest_gradcheck.errors import UsageError

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these


class TorchLoop:
    """A model, its optimizers and the user's step.

    Args:
        training: The parts.
    """

    name = "torch"
    can_see = True
    doubt = 0.0
    accumulate = 1
    dtype = "float64"

    def __init__(self, training: Training) -> None:
        self._training = training
        self._model = training.model
        if self._model is None:
            raise UsageError("Training.model is missing: the module that the step trains")
        self._optimizers = torch_optimizers.listed(training.optimizer)
        self._roots = (training.step, training.loss, self._model, *self._optimizers)
        self._generators = generators_of(list(reachable(self._roots)))
        self._modes = [(m, m.training) for m in self._model.modules()]
        self.tensors, self.parameters = self._found()
        if not self.tensors:
            raise UsageError("Training.model has no parameters")
        first = self._optimizers[0] if self._optimizers else None
        named = [torch_optimizers.NAMES.get(type(o), "") for o in self._optimizers]
        self.rules: Sequence[str] = named or [""]
        self.starts = [torch_optimizers.started(self._optimizers, p) for p in self.tensors]
        self.is_foreign = any(start is None for start, _ in self.starts)
        self.shown = type(first).__name__ if first is not None else "no optimizer"
        self.device = str(self.tensors[0].device)
        self._takes_model = takes(training.loss, 1) == 2
        self._values, self._grads = Arrays(), Arrays()

    def _found(self) -> tuple[list[Tensor], list[Tracked]]:
        tensors: dict[int, tuple[str, Tensor]] = {}
        for name, p in self._model.named_parameters():
            tensors.setdefault(id(p), (name, p))
        held: dict[int, int] = {}
        for i, optimizer in enumerate(self._optimizers):
            for j, group in enumerate(torch_optimizers.groups(optimizer)):
                for k, p in enumerate(group["params"]):
                    held[id(p)] = held.get(id(p), 0) + 1
                    tensors.setdefault(id(p), (f"optimizer.{i}.{j}.{k}", p))
        known = bool(held)
        pairs = list(tensors.values())
        shadows = torch_optimizers.shadows(pairs, held)
        tracked = []
        for i, (name, p) in enumerate(pairs):
            owners = held.get(id(p), 0)
            if i in shadows.values():  # its master copy is what is optimized
                owners = max(owners, 1)
            shown = f"{pairs[shadows[i]][0]} (master copy)" if i in shadows else name
            tracked.append(
                Tracked(
                    name=shown,
                    dtype=str(p.dtype).removeprefix("torch."),
                    trainable=bool(p.requires_grad),
                    owners=owners if known else None,
                    shadow=shadows.get(i, -1),
                )
            )
        return [p for _, p in pairs], tracked

    # --- what is there ----------------------------------------------------------------------

    def now(self) -> list[np.ndarray]:
        """Every parameter."""
        return [self._values.of(i, p) for i, p in enumerate(self.tensors)]

    def mark(self) -> list[Any]:
        """The state of all generators."""
        return [g.get() for g in self._generators]

    def _rewind(self, mark: Sequence[Any]) -> None:
        for generator, state in zip(self._generators, mark, strict=True):
            generator.set(state)

    def hyper(self, optimizer: Any) -> list[dict[str, Any]]:
        """Hyperparameters of each parameter."""
        found: dict[int, dict[str, Any]] = {}
        for group in torch_optimizers.groups(optimizer):
            for p in group["params"]:
                found[id(p)] = torch_optimizers.hyper(group)
        return [found.get(id(p), {}) for p in self.tensors]

    # --- the user's step --------------------------------------------------------------------

    def call(self, batch: Any) -> Call:
        """Call the step with a copy of the batch, and note what happens inside."""
        handed = copied(batch)
        before = self.now()
        updates: list[Update] = []
        events: list[tuple[str, float]] = []
        clips: list[Clip] = []
        error = ""

        def note(word: str, number: float, held: Sequence[Any] = (), order: float = 2.0) -> None:
            events.append((word, number))
            if word.startswith("clip") and math.isfinite(number):
                places = tuple(i for i, p in enumerate(self.tensors) if any(p is q for q in held))
                clips.append(Clip(places, number, order, word != "clip"))

        with ExitStack() as stack:
            stack.enter_context(torch_events.seen(self._roots, note))
            for i, optimizer in enumerate(self._optimizers):
                watch = Watch(self, optimizer, i, updates, note)
                stack.enter_context(watch.open())
            try:
                self._training.step(handed)
            except Exception as caught:  # whatever the user's code raises is what is to be judged
                error = f"{type(caught).__name__}: {caught}"
        after = self.now()
        if not self._optimizers and any(
            not np.array_equal(a, b) for a, b in zip(before, after, strict=True)
        ):
            updates.append(Update(before, after, None, [{}] * len(before)))
        changed = not is_same(batch, handed)
        return Call(before, after, updates, events, changed, error, clips)

    def received(self) -> list[np.ndarray | None]:
        """The gradients that lie at the parameters now."""
        pairs = enumerate(p.grad for p in self.tensors)
        return [None if g is None else self._grads.of(i, g) for i, g in pairs]

    # --- the loss ---------------------------------------------------------------------------

    def _loss(self, batch: Any) -> Tensor:
        handed = copied(batch)
        if self._takes_model:
            return torch.as_tensor(scalar(self._training.loss(self._model, handed)))
        return torch.as_tensor(scalar(self._training.loss(handed)))

    @contextmanager
    def _placed(self, at: Sequence[np.ndarray] | None, mark: Sequence[Any]) -> Iterator[None]:
        """Other parameters, the mode at hand-over and a mark of the generators, for a while."""
        kept = [p.detach().clone() for p in self.tensors] if at is not None else []
        buffers = [(b, b.detach().clone()) for b in self._model.buffers()]
        modes = [(m, m.training) for m in self._model.modules()]
        now = self.mark()
        try:
            for module, mode in self._modes:
                module.training = mode
            for p, value in zip(self.tensors, at or (), strict=False):
                p.data.copy_(torch.from_numpy(np.asarray(value)))
            self._rewind(mark)
            yield
        finally:
            with torch.no_grad():
                for p, value in zip(self.tensors, kept, strict=False):
                    p.data.copy_(value)
                for buffer, value in buffers:
                    buffer.copy_(value)
            for module, mode in modes:
                module.training = mode
            self._rewind(now)

    def gradient(
        self, batch: Any, at: Sequence[np.ndarray] | None, mark: Any
    ) -> tuple[float, list[np.ndarray | None]]:
        """Loss and gradient; that of a parameter with a master copy is given to the copy alone."""
        with self._placed(at, mark), torch.enable_grad():
            wanted = [p for p in self.tensors if p.requires_grad]
            value = self._loss(batch)
            self.dtype = str(value.dtype).removeprefix("torch.")
            grads: Sequence[Tensor | None] = [None] * len(wanted)
            if value.requires_grad:
                grads = torch.autograd.grad(value, wanted, allow_unused=True)
        found = {id(p): g for p, g in zip(wanted, grads, strict=True)}
        arrays = [
            None
            if (g := found.get(id(p))) is None
            else as_numpy(g.to_dense() if g.is_sparse else g)
            for p in self.tensors
        ]
        for i, tracked in enumerate(self.parameters):
            if tracked.shadow >= 0:
                arrays[i], arrays[tracked.shadow] = arrays[tracked.shadow], None
        return float(value.detach()), arrays

    def careful(self) -> bool:
        """They are."""
        return False

    def value(self, batch: Any, at: Sequence[np.ndarray], mark: Any) -> float:
        """The loss at other parameters."""
        with self._placed(at, mark), torch.enable_grad():  # a loss may differentiate inside
            return float(self._loss(batch))

    def joined(self, batches: Sequence[Any]) -> Any:
        """Batches put together along their first axis; None where their form does not allow it."""
        return torch_values.joined(batches)

    def size(self, batch: Any) -> int:
        """Number of samples."""
        return torch_values.size(batch)

    # --- state ------------------------------------------------------------------------------

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the model, the optimizers and what the functions carry along."""
        carried = list(reachable(self._roots))
        bindings = held_bindings(carried)
        grads = [(p, p.grad) for p in self.tensors]
        try:
            with guard(self._roots), torch_optimizers.held(self._optimizers):
                yield
        finally:
            for restore in bindings:
                restore()
            for p, grad in grads:
                p.grad = grad

    def rewind(self, mark: Sequence[Any]) -> None:
        """Set all generators back to a mark."""
        self._rewind(mark)

    def idle(self, is_fresh: bool) -> Iterable[tuple[str, list[str], bool]]:
        """Steps with zero gradients from fresh state; without gradients, and at lr 0, later."""
        return torch_trials.idle(self, self._optimizers, is_fresh)

    def flipped(
        self, batch: Any, at: Sequence[np.ndarray], mark: Any
    ) -> list[np.ndarray | None] | None:
        """The gradient in the other mode, train or eval; None where there is no mode to flip."""
        modes = self._modes
        self._modes = [(m, not mode) for m, mode in modes]
        try:
            return self.gradient(batch, at, mark)[1]
        finally:
            self._modes = modes

    def restored(self, update: Update) -> list[tuple[str, float]] | None:
        """Save and load the optimizer's state, repeat the update, compare bit by bit."""
        return torch_trials.restored(self, self._optimizers, update)

    def resumed(self) -> list[tuple[str, str]]:
        """Schedulers and loss scalers within reach of the step."""
        return torch_resumed.resumed(self._roots, self._optimizers)

    def repeated(self) -> list[tuple[str, float]]:
        """None: a step of torch has its state where it likes."""
        return []

    def slots(self) -> list[list[np.ndarray]]:
        """None: the gradient itself is seen."""
        return []


def loop(training: Training) -> TorchLoop:
    """The loop of a training."""
    return TorchLoop(training)
