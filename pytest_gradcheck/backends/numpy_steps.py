"""NumPy: a functional step, its gradient from differences or from the user's own function."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from pytest_gradcheck.backends import numpy_batches, slots
from pytest_gradcheck.backends.carried import Carried
from pytest_gradcheck.backends.gathering import Gathering
from pytest_gradcheck.backends.handed import (
    fitted,
    in_order,
    like,
    no_arrays,
    numbered,
    returned,
    scalar,
    takes,
    telling,
)
from pytest_gradcheck.backends.held import Bindings, held_bindings
from pytest_gradcheck.backends.numpy import BACKEND, Written
from pytest_gradcheck.backends.numpy_differences import central, require_few
from pytest_gradcheck.backends.protocol import Flat
from pytest_gradcheck.backends.raised import step_raised
from pytest_gradcheck.backends.reach import reachable
from pytest_gradcheck.backends.state import global_generators, private_generators
from pytest_gradcheck.backends.steps import Call, Tracked, Training, Update
from pytest_gradcheck.errors import UsageError

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these


class NumpyLoop:
    """Parameters and state of an optimizer, and the user's step between them."""

    name = "numpy"
    moving: Sequence[str] = ("_params", "_state", "_since", "_old", "_last")  # what calls move on
    rules: Sequence[str] = ("",)
    starts: Sequence[tuple[Mapping[str, np.ndarray], int]] = ()
    is_foreign = False
    concatenated: Callable[..., Any] = staticmethod(np.concatenate)
    differ, size = staticmethod(numpy_batches.differ), staticmethod(numpy_batches.size)
    unfinite = staticmethod(list[str])  # all that a model holds is in its parameters
    resumed = staticmethod(list["tuple[str, str]"])  # a step has nothing beside its state
    shown = "the optimizer of the step"
    wanted = "claim optimizer= with lr="
    device = "cpu"
    can_see = False
    dtype = "float64"
    number: Any = np.float64  # makes an array of a plain float among the parameters
    doubt = 1e-6  # relative error of a gradient by differences

    def __init__(self, training: Training) -> None:
        if training.params is None:
            raise UsageError("Training.params (torch: model=) is missing: what the step trains")
        self._training = training
        self._params: Any = self.copied(numbered(training.params, self.number))
        self._state: Any = self.copied(training.opt_state)
        self._roots = (training.step, training.loss, training.grad)
        carried = reachable(self._roots)
        inner = reachable((training.loss, training.grad))
        self._bindings, self._written = Bindings(inner), Written(inner)
        self._generators = [*global_generators(), *private_generators(carried)]
        self._takes_state = takes(training.loss, 2) > 2
        if self._takes_state:
            self._generators.append(Carried(self, "_state"))
        self.accumulate = 1
        self.kinks: dict[int, tuple[np.ndarray, float]] = {}  # gradients that may be off
        self._since, self._is_doubtful = Gathering(), False
        self._old: list[list[np.ndarray]] = []
        self._last: tuple[Any, ...] | None = None  # what the last call was given, and its end
        self._is_random = False  # whether an evaluation of the loss moved a generator
        leaves = [leaf for leaf in self.flatten(self._params).leaves if leaf.dtype]
        if not leaves:
            raise UsageError(no_arrays(self._params))
        self.parameters: Sequence[Tracked] = [Tracked(x.path or "params", x.dtype) for x in leaves]

    def flatten(self, value: Any) -> Flat:
        """A nested value taken apart, its keys in the order of the parameters at hand-over."""
        return BACKEND.flatten(in_order(value, self._training.params))

    def copied(self, value: Any) -> Any:
        """A copy that the step may write into."""
        return copy.deepcopy(value)

    def _arrays(self, params: Any) -> list[np.ndarray]:
        return [np.array(x.value, dtype=np.float64) for x in self.flatten(params).leaves if x.dtype]

    def _built(self, at: Sequence[np.ndarray]) -> Any:
        """Parameters of float64 with the values given."""
        flat, values = self.flatten(self._params), iter(at)
        return flat.rebuild(
            [like(next(values), x.value) if x.dtype else x.value for x in flat.leaves]
        )

    def mark(self) -> list[Any]:
        """The state of all generators."""
        return [g.get() for g in self._generators]

    def elsewhere(self, mark: Sequence[Any]) -> list[Any]:
        """Where generators are now, and the rest of a mark."""
        return [*self.mark()[:-1], mark[-1]] if self._takes_state else self.mark()

    def rewind(self, mark: Sequence[Any]) -> None:
        """Set all generators to a mark."""
        for generator, state in zip(self._generators, mark, strict=True):
            generator.set(state)

    def call(self, batch: Any) -> Call:
        """Call the step with copies of everything."""
        handed = self.copied(batch)
        before, mark = self.now(), self.mark()
        params, state = self.copied(self._params), self.copied(self._state)
        self._old = self.slots()
        try:
            got = self._training.step(params, state, handed)
        except Exception as caught:  # whatever the user's code raises is what is to be judged
            return Call(before, before, (), error=step_raised(caught, (params, state, handed)))
        params, state, error = self._read(got, params, state)
        if error:
            return Call(before, before, (), error=error)
        after = self._arrays(params)
        self._last = self._params, self._state, batch, mark, after
        held = self._params, self._state
        self._params, self._state = params, state
        changed = not numpy_batches.is_same(batch, handed)
        is_still = all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
        is_same = is_still and slots.is_same(held, (params, state), self.flatten)
        if self.accumulates(is_still, is_same):
            is_idle = self._since.is_idle
            return Call(before, after, (), changed_batch=changed, is_idle=is_idle)
        update = replace(self.update(before, after), is_still=is_same)
        return Call(before, after, (update,), changed_batch=changed)

    def now(self) -> list[np.ndarray]:
        """Every parameter."""
        return self._arrays(self._params)

    def call_at(self, batch: Any, at: Sequence[np.ndarray]) -> Call:
        """Call it at other parameters, which are put back afterwards."""
        own, self._params = self._params, self._built(at)
        call = self.call(batch)  # which raises nothing of the step
        self._params = own
        return call

    def accumulates(self, is_still: bool, is_same: bool) -> bool:
        """Whether a call only adds to a window: it moves nothing, and the window is not full."""
        self._since = self._since.after(self.accumulate, is_still, is_same)
        self._is_doubtful |= self._since.is_doubtful
        return self._since.waits

    def reread(self, trusts: bool) -> bool:
        """Read the calls from the start otherwise, where they can be; whether that is so."""
        self._since = Gathering(trusts=trusts)
        return self._is_doubtful

    def update(self, before: list[np.ndarray], after: list[np.ndarray]) -> Update:
        """The update of a call."""
        old, new = self._old, self.slots()
        unknown: list[dict[str, Any]] = [{}] * len(before)
        return Update(before, after, None, unknown, slots_before=old, slots_after=new)

    def _read(self, got: Any, params: Any, state: Any) -> tuple[Any, Any, str]:
        """Parameters and state in what a step returns; those handed over if it returns none."""
        if got is None:
            return numbered(params, self.number), state, ""
        if isinstance(got, (tuple, list)) and len(got) >= 2:
            got = [numbered(got[0], self.number), *got[1:]]
            error = returned(got, self._params, self.flatten)
        else:
            error = "TypeError: the step must return (params, opt_state, ...)"
        return (None, None, error) if error else (got[0], got[1], "")

    def _given(self, batch: Any) -> tuple[Any, ...]:
        """What the loss takes beside the parameters: a batch, and the state if it takes that."""
        handed = (batch, self._state) if self._takes_state else (batch,)
        return tuple(map(self.copied, handed))

    def _loss(self, params: Any, batch: Any) -> float:
        with telling("Training.loss"):
            value = scalar(self._training.loss(params, *self._given(batch)))
        return float(np.asarray(value, dtype=np.float64))

    @contextmanager
    def _from(self, mark: Sequence[Any]) -> Iterator[None]:
        now, restorers = self.mark(), self._bindings.held()
        self.rewind(mark)
        try:
            with self._written.held():
                yield
        finally:
            for restore in restorers:
                restore()
            self.rewind(now)

    def careful(self) -> bool:
        """There is one way only."""
        return False

    def value(self, batch: Any, at: Sequence[np.ndarray], mark: Any) -> float:
        """The loss at other parameters."""
        with self._from(mark):
            found = self._loss(self._built(at), batch)
            pairs = zip(self._generators, mark, strict=True)
            self._is_random |= any(g.has_moved(old) for g, old in pairs)
            return found

    def wide(self) -> Any:
        """The loss in float64: parameters are handed to it so."""
        return self

    def gradient(
        self, batch: Any, at: Sequence[np.ndarray] | None, mark: Any
    ) -> tuple[float, list[np.ndarray | None]]:
        """Loss and gradient, by the user's function or element by element."""
        point = [np.array(x) for x in (at or self.now())]
        start = self.value(batch, point, mark)
        if self._training.grad is not None:
            with self._from(mark), telling("Training.grad"):
                given = self._given(batch)[: takes(self._training.grad, 2) - 1]
                got = self._training.grad(self._built(point), *given)
            grads = self._arrays(numbered(got, self.number))
            return start, list(fitted(grads, point, [p.name for p in self.parameters]))
        require_few(point)
        pairs = self._differences(batch, point, mark, start)
        self.kinks |= {id(g): (g, jump) for g, jump in pairs if jump}
        return start, [g for g, _ in pairs]

    def _differences(
        self, batch: Any, point: list[np.ndarray], mark: Any, start: float
    ) -> list[tuple[np.ndarray, float]]:
        if self._is_random or self._takes_state:  # which is that of the mark
            return central(lambda: self.value(batch, point, mark), point, start)
        flat, values = self.flatten(self._params), iter(point)
        params = flat.rebuild([next(values) if x.dtype else x.value for x in flat.leaves])
        handed, loss = self._given(batch), self._training.loss
        return central(lambda: scalar(loss(params, *handed)), point, start)

    def joined(self, batches: Sequence[Any]) -> Any:
        """Batches put together along their first axis; None where their form does not allow it."""
        return numpy_batches.joined(batches, self.concatenated)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold parameters, state and generators, and what the functions carry along."""
        bindings = held_bindings(reachable(self._roots))
        now = {name: getattr(self, name) for name in self.moving}
        kept = {name: list(x) if isinstance(x, list) else x for name, x in now.items()}
        try:
            with BACKEND.guard(*self._roots):
                yield
        finally:
            for restore in bindings:
                restore()
            vars(self).update(kept)

    def idle(self, is_fresh: bool) -> Iterable[tuple[str, list[str], bool]]:
        """None: a functional step has no part that could be called alone."""
        return ()

    def restored(self, update: Update) -> list[tuple[str, float]] | None:
        """None: the state is the caller's."""
        return None

    def repeated(self) -> list[tuple[str, float]]:
        """The last call once more: parameters and state are all that it may depend on."""
        if self._last is None or self.accumulate > 1:  # a window may be gathered in the step
            return []
        params, state, batch, mark, ends = self._last
        with self.held(), self._from(mark):
            try:
                params, state = self.copied(params), self.copied(state)
                got = self._training.step(params, state, self.copied(batch))
            except Exception:  # what raises the second time is no second end
                return []
            again = self._arrays(self._read(got, params, state)[0])
        return [
            (t.name, float(np.linalg.norm(a - b)) / max(float(np.linalg.norm(a)), 1e-300))
            for t, a, b in zip(self.parameters, ends, again, strict=True)
            if not np.array_equal(a, b, equal_nan=True)
        ]

    def slots(self) -> list[list[np.ndarray]]:
        """Groups of arrays in the state, in order, that have the shapes of the parameters."""
        shapes = [x.shape for x in self.now()]
        return slots.grouped(list(slots.arrays(self._state, self.flatten)), shapes)


def loop(training: Training) -> NumpyLoop:
    """The loop of a training."""
    return NumpyLoop(training)
