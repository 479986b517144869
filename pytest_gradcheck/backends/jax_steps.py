"""JAX: a functional step whose optax transformation reports what it is given."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pytest_gradcheck.backends import jax_cuts, jax_leaves, jax_modules, jax_places, jax_states
from pytest_gradcheck.backends.gathering import Gathering
from pytest_gradcheck.backends.handed import scalar, telling
from pytest_gradcheck.backends.jax_alone import Alone
from pytest_gradcheck.backends.jax_clips import is_transformation
from pytest_gradcheck.backends.jax_contracts import equations
from pytest_gradcheck.backends.jax_hurry import can_hurry, compiled
from pytest_gradcheck.backends.jax_modes import doubt, exactly
from pytest_gradcheck.backends.jax_places import replaced, with_update
from pytest_gradcheck.backends.jax_wide import Wide
from pytest_gradcheck.backends.numpy_steps import NumpyLoop
from pytest_gradcheck.backends.protocol import Flat
from pytest_gradcheck.backends.steps import Call, Stopped, Training, Update

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

GIVEN = (
    "hand over as Training.params just what the optax transformation is given, and the rest in "
    "opt_state, or claim optimizer= with lr="
)
_UNTRACED = (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError)


class JaxLoop(NumpyLoop):
    """Parameters and state as pytrees; gradients by autodiff, seen where optax gets them.

    Args:
        training: The parts.
    """

    name = "jax"
    moving = (*NumpyLoop.moving, "_own", "_start", "_pending")
    wanted = "give Training.optimizer=, or claim optimizer= with lr="
    exactly = staticmethod(exactly)
    inner: tuple[str, ...] = ()  # precisions to which the loss itself casts, once it was asked
    number, concatenated = staticmethod(jnp.asarray), staticmethod(jnp.concatenate)

    def __init__(self, training: Training) -> None:
        super().__init__(training)
        self._tx = training.optimizer if is_transformation(training.optimizer) else None
        self.shown = "the optax transformation" if self._tx else "the optimizer of the step"
        self.wanted = GIVEN if self._tx else self.wanted
        self.device = next((x.device for x in self.flatten(self._params).leaves if x.dtype), "")
        self._caught: list[tuple[Any, Any, Any, Any]] = []
        self._pending: list[list[np.ndarray]] = []
        if self._tx is not None and training.opt_state is None:
            self._state = jax_places.first_state(self._tx, self._params)
        self._start: list[np.ndarray] = []  # the first state that the transformation was given
        self._own: Any = None  # the state of the transformation, carried on beside the step
        self._compiled = compiled(self._differentiated)
        self._is_hurried = can_hurry()
        self._alone = Alone(self._tx) if self._tx else None
        self.can_see, self.doubt = self._tx is not None, doubt()
        self._is_first = True
        self.is_unseen = self.can_see  # until the step asks for an update

    def stir(self) -> None:
        """Other keys in the state."""
        self._state = jax_states.stirred(self._state)

    def flatten(self, value: Any) -> Flat:
        """A nested value taken apart."""
        return jax_modules.flatten(value)

    def copied(self, value: Any) -> Any:
        """Fresh buffers: the step may donate what it is given."""
        return jax.tree.map(jax_leaves.copied, value)

    def _read(self, got: Any, params: Any, state: Any) -> tuple[Any, Any, str]:
        """What a step returns, in the order in which pytrees have keys, whatever made them."""
        if isinstance(got, (tuple, list)):
            got = [jax.tree.map(lambda x: x, part) for part in got[:2]]
        return super()._read(got, params, state)

    def _arrays(self, params: Any) -> list[np.ndarray]:
        return [jax_leaves.wide(leaf.value) for leaf in self.flatten(params).leaves if leaf.dtype]

    def _built(self, at: Sequence[np.ndarray]) -> Any:
        flat = self.flatten(self._params)
        values, put = iter(at), jax_leaves.placed
        return flat.rebuild(
            [
                put(np.asarray(next(values)), leaf.value) if leaf.dtype else leaf.value
                for leaf in flat.leaves
            ]
        )

    # --- the user's step --------------------------------------------------------------------

    def call(self, batch: Any) -> Call:
        """Call the step while the transformation that it uses reports what it is given."""
        self._caught.clear()
        if self._tx is None:
            return super().call(batch)
        is_first, mark = self._is_first, self.mark()
        if is_first:  # what was traced before knows nothing of us
            jax_places.forget(self._training.step)
            self._is_first = False
        call = self._watched(batch)
        if call.error and is_first and not self._caught:  # a step that takes no other update
            self.rewind(mark)
            plain = super().call(batch)
            if not plain.error:
                self._tx = self._alone = None
                self.can_see = self.is_unseen = False
                return plain
        return call

    def _watched(self, batch: Any) -> Call:
        own, ours = self._tx, self._reporter
        with replaced(self._training.step, own, ours):
            self._state = jax_places.of_state(self._state, own, ours)
            self._params = jax_places.of_state(self._params, own, ours)
            own_state = self._own
            try:
                call = super().call(batch)
            finally:
                self._state = jax_places.of_state(self._state, ours, own)
                self._params = jax_places.of_state(self._params, ours, own)
            jax.effects_barrier()
        self.is_unseen = self.is_unseen and not self._caught
        if any(u.is_still or jax_states.is_poisoned(u, self._own) for u in call.updates):
            self._own = own_state  # the transformation was asked, and its answer thrown away
        return call

    @functools.cached_property  # or what is compiled for a train state would be, at every call
    def _reporter(self) -> Any:
        tx: Any = self._tx
        alone: Any = self._alone

        @functools.wraps(tx.update)
        def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
            alone.wants = tuple(extra)
            # A function of the step (that of a line search) does not leave it.
            known = None if any(map(callable, jax.tree.leaves(extra))) else extra
            jax.debug.callback(self._catch, updates, state, params, known)
            return tx.update(updates, state, params, **extra)

        return with_update(tx, update)

    def _catch(self, updates: Any, state: Any, params: Any, extra: Any) -> None:
        self._caught.append((updates, state, params, extra))

    def accumulates(self, is_still: bool, is_same: bool) -> bool:
        """Whether a call only adds to a window; optax's own windows say so themselves."""
        if self._caught and not (is_same and self.accumulate > 1):
            self._pending.append(jax_leaves.arrays(self._caught[0][0]))
        waits = jax_places.gathers(self._state)
        if waits is None:
            return super().accumulates(is_still, is_same)
        self._since = Gathering(shows=True, waits=waits, is_idle=waits and is_same)
        return waits

    def update(self, before: list[np.ndarray], after: list[np.ndarray]) -> Update:
        """The update of a call, with what was caught and what the transformation makes of it."""
        plain = super().update(before, after)
        if not self._caught:
            self._pending.clear()
            return plain
        last = jax_leaves.arrays(self._caught[-1][0])
        if not self._pending or not jax_leaves.equal(self._pending[-1], last):
            self._pending.append(last)
        received = [np.mean(column, axis=0) for column in zip(*self._pending, strict=True)]
        is_window = len(self._pending) > 1
        self._pending.clear()
        received = jax_states.of_examples(received, before)
        received = jax_states.filled(received, self._caught[-1][0], self._params, before)
        if not jax_states.fits(received, before):
            return plain
        found = Update(before, after, received, plain.hyper)
        _, state, params, _ = self._caught[-1]
        is_lost = jax_states.is_lost(state, self._start, self._own)
        self._start = self._start or jax_leaves.arrays(state)
        if not is_window and len(last) == len(before):
            found = self._asked_again(found)
        is_astray = jax_states.is_astray(params, before)
        return replace(found, is_lost=is_lost, is_astray=is_astray, asked=len(self._caught))

    def _asked_again(self, update: Update) -> Update:
        """With what the transformation makes of the same gradients, at zero parameters too."""
        given, state, params, more = jax.tree.map(jax_leaves.loose, self._caught[-1])
        if more is None:
            return update
        if self._own is None:
            self._own = state
        own = jax_states.with_hyperparameters(self._own, state)
        own = jax.tree.map(jax_leaves.asarray, own)
        if not jax_states.holds(params, update.before):
            params = jax_leaves.trained(self._params)
        alone: Any = self._alone  # caught, so there is one
        oracle, bare, self._own = alone.again(given, own, params, update.before, more)
        return replace(update, oracle=oracle, bare=bare)

    def absorbs(self, raw: Sequence[Any], clipped: Sequence[Any], at: Sequence[np.ndarray]) -> bool:
        """Whether the transformation itself clips: both gradients leave the same state."""
        if self._alone is None:
            return False
        trees = []
        for grads in (raw, clipped):
            zeros = [np.zeros_like(x) if g is None else g for g, x in zip(grads, at, strict=True)]
            trees.append(jax_leaves.trained(self._built(zeros)))
        return self._alone.is_same(trees, jax_leaves.trained(self._built(at)))

    def idle(self, is_fresh: bool) -> Iterator[tuple[str, list[str], bool]]:
        """Zero gradients from fresh state: how they decay is not known, but updates are finite."""
        if is_fresh or self._alone is None:
            return
        updates = self._alone.of_nothing(jax_leaves.trained(self._params))
        if len(updates) == len(self.parameters):
            pairs = zip(self.parameters, updates, strict=True)
            names = [t.name for t, u in pairs if not np.all(np.isfinite(u))]
            yield "with zero gradients", names, not names

    # --- the loss ---------------------------------------------------------------------------

    def _evaluated(self, params: Any, handed: Any) -> Any:
        return jnp.asarray(scalar(self._training.loss(params, *handed)))

    def stopped(self, batch: Any, at: Sequence[np.ndarray], mark: Any) -> Stopped:
        """The loss with what its ``stop_gradient`` holds back held still."""
        params = self._built(at)
        with self._from(mark):
            handed = self._given(batch)
            cuts = jax_cuts.traced(lambda params: self._evaluated(params, handed), params)
        return Stopped(lambda there: cuts.again(self._built(there)), cuts.places, cuts.functions)

    def finds_inner(self, batch: Any, mark: Any) -> bool:
        """Look for lower precisions inside of the loss; whether there are any."""
        try:
            with self._from(mark):
                asked = functools.partial(self._evaluated, handed=self._given(batch))
                closed = jax.make_jaxpr(asked)(self._params)
        except Exception:  # of a loss that needs numbers
            return False
        shapes = (v.aval for e in equations(closed.jaxpr) for v in e.outvars)
        self.inner = tuple({str(getattr(x, "dtype", "")) for x in shapes} & {"float16", "bfloat16"})
        return bool(self.inner)

    def wide(self) -> Wide:
        """The loss in float64."""
        return Wide(self._evaluated, self._given, self.flatten(self._params), self._from)

    def _differentiated(self, params: Any, handed: Any) -> Any:
        return jax_leaves.differentiated(lambda params: self._evaluated(params, handed), params)

    def _loss(self, params: Any, batch: Any) -> float:
        return float(self._with_gradient(params, batch)[0])

    def _with_gradient(self, params: Any, batch: Any) -> Any:
        handed = self._given(batch)
        with telling("Training.loss"):
            try:  # one program for both: compiling is what takes time
                return self._compiled(params, handed)
            except (*_UNTRACED, TypeError):  # it needs numbers: not compiled
                return self._differentiated(params, handed)

    def careful(self) -> bool:
        """No hurry: another program rounds otherwise, by much where a network is saturated."""
        was_hurried, self._is_hurried = self._is_hurried, False
        self._compiled = jax.jit(self._differentiated)
        if self._alone is not None:
            self._alone.careful()
        return was_hurried

    def gradient(
        self, batch: Any, at: Sequence[np.ndarray] | None, mark: Any
    ) -> tuple[float, list[np.ndarray | None]]:
        """Loss and gradient by reverse mode."""
        params = self._params if at is None else self._built(at)
        with self._from(mark):
            value, grads = self._with_gradient(params, batch)
        self.dtype = str(value.dtype)
        return float(value), list(self._arrays(grads))


def loop(training: Training) -> JaxLoop:
    """The loop of a training."""
    return JaxLoop(training)
