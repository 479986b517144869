"""PyTorch: a training step that runs as it is, watched through the hooks of its optimizer."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import numpy as np
from torch import nn

from pytest_gradcheck.backends import (
    torch_events,
    torch_flags,
    torch_heard,
    torch_input,
    torch_moments,
    torch_optimizers,
    torch_resumed,
    torch_tracked,
    torch_trials,
    torch_values,
)
from pytest_gradcheck.backends.held import held_bindings
from pytest_gradcheck.backends.raised import step_raised
from pytest_gradcheck.backends.reach import reachable
from pytest_gradcheck.backends.steps import Call, Refused, Stopped, Training, Update
from pytest_gradcheck.backends.torch_fresh import Fresh
from pytest_gradcheck.backends.torch_record import Record
from pytest_gradcheck.backends.torch_scene import Scene
from pytest_gradcheck.backends.torch_state import generators_of, guard
from pytest_gradcheck.backends.torch_values import Arrays, copied, is_same
from pytest_gradcheck.backends.torch_watch import Watch, seen_steps
from pytest_gradcheck.backends.torch_witness import Seen
from pytest_gradcheck.errors import UsageError

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these


class TorchLoop:
    """A model, its optimizers (``others`` have losses of their own) and the user's step."""

    name = "torch"
    can_see = True
    doubt, is_cut, accumulate = 0.0, False, 1
    stirred: tuple[int, Any] | None = None  # after how many backward passes other numbers are drawn
    dtype = "float64"
    wanted = "give Training.optimizer=, or claim optimizer= with lr="
    heard = torch_heard.heard
    aligned, joined = staticmethod(torch_values.aligned), staticmethod(torch_values.joined)
    differ, size = staticmethod(torch_values.differ), staticmethod(torch_values.size)

    def __init__(self, training: Training, others: Sequence[Any] = ()) -> None:
        self._training = training
        self._model = training.model
        if self._model is None:
            raise UsageError("Training.model is missing: the module that the step trains")
        if not isinstance(self._model, nn.Module):
            told = torch_input.no_module(self._model)
            raise UsageError(f"Training.model must be a torch Module, got {told}")
        self._optimizers = torch_optimizers.listed(training.optimizer)
        self._others = torch_optimizers.listed(list(others)) if others else []
        self._all = [*self._optimizers, *self._others]
        self.is_heard = torch_heard.must_be(self._optimizers)
        self.is_beside = bool(others)
        self._roots = (training.step, training.loss, self._model, *self._all)
        self.scene = Scene(self._model)
        self.fresh_optimizers = torch_optimizers.fresh(self._optimizers)
        self.lowered = ""
        self.sparse: dict[int, int] = {}  # axes of the gradients that came as sparse ones
        self.tensors, self.parameters = torch_tracked.found(self._model, self._optimizers, others)
        self.rules = torch_optimizers.rules(self._optimizers)
        self.starts = [torch_optimizers.started(self._optimizers, p) for p in self.tensors]
        self.is_foreign = any(start is None for start, _ in self.starts)
        self.shown = next((type(o).__name__ for o in self._optimizers), "the optimizer of the step")
        self.rates = torch_optimizers.rates(self._optimizers)
        self.device = str(self.tensors[0].device)
        self._grads = Arrays()
        self._record: Record | None = None
        self._trained = [p.requires_grad for p in self.tensors]  # at some time of the last call
        self.passes: list[int] = []  # how often each call differentiated something
        self.looks_inside = self.is_strayed = self.is_shifted = self.is_witnessed = False
        self._is_held = False  # what happens is noted once, however often it is held
        generators = generators_of(reachable(self._roots))
        self._fresh = Fresh(training, self.tensors, generators, self.scene)
        self.has_drawn, self.ends_here = self._fresh.has_drawn, self._fresh.ends_here
        self.now, self.kept, self.mark = self._fresh.now, self._fresh.kept, self._fresh.mark
        self.written, self.by_outputs = self._fresh.written, self._fresh.by_outputs
        self.is_hooked, self.scaled = self._fresh.is_hooked, self._fresh.scaled

    # --- the user's step --------------------------------------------------------------------

    def call(self, batch: Any) -> Call:
        """Call the step with a copy of the batch, and note what happens inside."""
        handed, mark = copied(batch), self.mark()
        before = self.now()
        self._fresh.is_settled = False
        record = Record(self, batch, mark, before)
        seen = Seen(self, self._model, batch, mark, before)
        error = ""
        with ExitStack() as stack:
            stack.enter_context(self._listening(record))
            stack.enter_context(self.scene.watched())
            for i, optimizer in enumerate(self._optimizers):
                stack.enter_context(Watch(self, optimizer, i, record).open())
            stack.enter_context(torch_moments.seen_forwards(self._model, record.see))
            stack.enter_context(seen.open())
            other = functools.partial(record.note, "other step", math.nan)
            stack.enter_context(seen_steps(self._others, other))
            try:
                self._training.step(handed)
            except Exception as caught:  # whatever the user's code raises is what is to be judged
                error = step_raised(caught, (handed,))
        after = self.now()
        self._fresh.is_settled = True
        if not self._optimizers and any(
            not np.array_equal(a, b) for a, b in zip(before, after, strict=True)
        ):
            record.updates.append(Update(before, after, None, [{}] * len(before)))
        altered = any([self.scene.adopted(), self.scene.cast is not None, record.is_toggled()])
        self._trained = record.trained
        self.parameters = torch_tracked.renewed(
            self.parameters, self.tensors, record.trained, self._optimizers
        )
        return Call(
            before,
            after,
            record.updates,
            record.events,
            changed_batch=not is_same(batch, handed),
            error=error,
            clips=record.clips,
            trained=record.trained,
            is_altered=altered,
            is_idle=record.is_idle,
            fresh=record.fresh,
            replaced=torch_tracked.replaced(self._model, self.tensors, self._all),
            added=torch_tracked.added(self._model, self.tensors, self._optimizers),
            lying=record.lying,
            witness=seen.witness(record.updates),
            is_hooked=record.is_hooked,
        )

    def call_at(self, batch: Any, at: Sequence[np.ndarray]) -> Call:
        """Call it at other parameters, which are put back afterwards."""
        self._fresh.is_settled = False
        with torch_tracked.placed(self.tensors, at):
            call = self.call(batch)
        self._fresh.is_settled = False
        return call

    def unfinite(self) -> list[str]:
        """Names of buffers that are not finite."""
        return torch_tracked.unfinite(self._model)

    @contextmanager
    def _listening(self, record: Record) -> Iterator[None]:
        self._record = record
        try:
            yield
        finally:
            self._record = None

    def _noted(self, *told: Any) -> None:
        """What happens inside of the step; what a check does beside it is its own affair."""
        if self._record is not None:
            self._record.note(*told)

    def inside(
        self, batch: Any, at: Sequence[np.ndarray] | None, mark: Any
    ) -> tuple[float, list[np.ndarray | None]]:
        """Loss and fresh gradient in the middle of a call, under its autocast."""
        with self.scene.casting():
            return self.gradient(batch, at, mark)

    def received(self) -> list[np.ndarray | None]:
        """The gradients that lie at the parameters now."""
        for i, p in enumerate(self.tensors):
            if p.grad is not None and p.grad.is_sparse:
                self.sparse[i] = p.grad.sparse_dim()
        pairs = enumerate(p.grad for p in self.tensors)
        return [None if g is None else self._grads.of(i, g) for i, g in pairs]

    # --- the loss ---------------------------------------------------------------------------

    def gradient(
        self, batch: Any, at: Sequence[np.ndarray] | None, mark: Any
    ) -> tuple[float, list[np.ndarray | None]]:
        """Loss and gradient; that of a parameter with a master copy is given to the copy alone."""
        value, found = self._fresh.gradient(batch, at, mark)
        self.dtype, self.is_cut = self._fresh.dtype, self._fresh.is_cut
        self.inner, self.draws = self._fresh.inner, self._fresh.draws
        pairs = enumerate(found.get(id(p)) for p in self.tensors)
        arrays = [None if g is None else self._grads.of(i, g) for i, g in pairs]
        for i, tracked in enumerate(self.parameters):
            if tracked.shadow >= 0:
                arrays[i], arrays[tracked.shadow] = arrays[tracked.shadow], None
        return float(value), arrays

    def seen_gradient(
        self, batch: Any, at: Sequence[np.ndarray] | None, mark: Any
    ) -> tuple[float, list[np.ndarray | None]]:
        """Loss and gradient under the autocast that the last call used."""
        if self.scene.cast is not None and not self._fresh.casts_itself:
            self.lowered = str(self.scene.cast[1]).removeprefix("torch.")
        with self.scene.casting(), torch_tracked.thawed(self.tensors, self._trained):
            return self.gradient(batch, at, mark)

    def careful(self) -> bool:
        """They are."""
        return False

    def value(self, batch: Any, at: Sequence[np.ndarray], mark: Any) -> float:
        """The loss at other parameters."""
        return self._fresh.value(batch, at, mark)

    def stopped(self, batch: Any, at: Sequence[np.ndarray], mark: Any) -> Stopped:
        """The loss with what it holds back held still."""
        return self._fresh.stopped(batch, at, mark)

    def padding(
        self, batches: Sequence[Any], at: Sequence[np.ndarray], marks: Sequence[Any]
    ) -> list[np.ndarray | None]:
        """0 for the rows of each parameter that an embedding never learns, 1 for the others."""
        return self._fresh.masks(batches, at, marks)

    def exactly(self) -> AbstractContextManager[None] | None:
        """Products of float32 numbers in full for a while; None where they are."""
        kinds = {p.device.type for p in self.tensors}
        return torch_flags.exact() if any(map(torch_flags.rounds, kinds)) else None

    def wide(self) -> Fresh:
        """The loss in float64."""
        return self._fresh.widened()

    def tokens(self, batch: Any, at: Sequence[np.ndarray], mark: Any) -> float | None:
        """By what a cross entropy divides: tokens that are not ignored; None where none is."""
        return self._fresh.tokens(batch, at, mark)

    # --- state ------------------------------------------------------------------------------

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the model, the optimizers and what the functions carry along."""
        carried = reachable(self._roots)
        bindings = held_bindings(carried)
        grads = [(p, p.grad) for p in self.tensors]
        seen = nullcontext() if self._is_held else torch_events.seen(carried, self._noted)
        was_held, self._is_held, self._fresh.is_settled = self._is_held, True, False
        try:
            with guard(self._roots), torch_optimizers.held(self._all), seen:
                yield
        finally:
            self._is_held = was_held
            for restore in bindings:
                restore()
            for p, grad in grads:
                p.grad = grad
            self._fresh.is_settled = False

    def rewind(self, mark: Sequence[Any]) -> None:
        """Set all generators back to a mark."""
        self._fresh.rewind(mark)

    def idle(self, is_fresh: bool) -> Iterable[tuple[str, list[str], bool]]:
        """Steps with zero gradients from fresh state; without gradients, and at lr 0, later."""
        return torch_trials.idle(self, self._optimizers, is_fresh)

    def flipped(
        self, batch: Any, at: Sequence[np.ndarray], mark: Any
    ) -> list[np.ndarray | None] | None:
        """The gradient in the other mode, train or eval; None where there is no mode to flip."""
        with self.scene.flipped():
            return self.gradient(batch, at, mark)[1]

    def restored(self, update: Update) -> list[tuple[str, float]] | Refused | None:
        """Save and load the optimizer's state, repeat the update, compare bit by bit."""
        return torch_trials.restored(self, self._optimizers, update)

    def resumed(self) -> list[tuple[str, str]]:
        """Schedulers and loss scalers within reach of the step."""
        self._fresh.is_settled = False
        return torch_resumed.resumed(self._roots, self._optimizers)

    def repeated(self) -> list[tuple[str, float]]:
        """None: a step of torch has its state where it likes."""
        return []

    def slots(self) -> list[list[np.ndarray]]:
        """None: the gradient itself is seen."""
        return []


def loop(training: Training, others: Sequence[Any] = ()) -> TorchLoop:
    """The loop of a training."""
    return TorchLoop(training, others)
