"""JAX: a transformation of optax asked alone, beside the step that uses it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pytest_gradcheck.backends import jax_leaves, jax_places, jax_states
from pytest_gradcheck.backends.jax_hurry import compiled

MOST_GATHERED = 64  # calls for one update that a transformation gathers by itself


class Alone:
    """What a transformation makes of gradients.

    Args:
        tx: The transformation.
    """

    def __init__(self, tx: Any) -> None:
        self._tx = tx
        self.wants: tuple[str, ...] = ()  # what the step gives it by name
        self._updated = compiled(tx.update)
        self._answered = compiled(self._answer)

    def careful(self) -> None:
        """Compile as a step does, from now on."""
        self._updated = jax.jit(self._tx.update)

    @property
    def is_known(self) -> bool:
        """Whether all that it wants by name can be made up."""
        return set(self.wants) <= set(jax_places.STAND_INS)

    def again(
        self,
        given: Any,
        state: Any,
        params: Any,
        before: Sequence[np.ndarray],
        more: Mapping[Any, Any],
    ) -> tuple[list[np.ndarray], list[np.ndarray], Any]:
        """Its updates from a state, at parameters and at zero ones, and the state after them.

        Args:
            given: Gradients, as it was given them.
            state: State.
            params: What stands for parameters there.
            before: The parameters.
            more: What it is given by name.
        """
        zeros = [np.zeros_like(x) for x in before]
        bare, _ = self._updated(given, state, jax_states.holding(params, zeros), **more)
        moved, state = self._updated(given, state, jax_states.holding(params, before), **more)
        return jax_leaves.arrays(moved), jax_leaves.arrays(bare), state

    def is_same(self, grads: Sequence[Any], params: Any) -> bool:
        """Whether two gradients leave the same updates and the same state, after a whole window."""
        try:
            start = self._tx.init(params)
            finals = [jax.tree.leaves(self._window(g, grads[0], start, params)) for g in grads]
        except Exception:  # a transformation that takes no such gradient is not asked
            return False
        if not all(finals):
            return False
        pairs = zip(*finals, strict=True)
        return all(jax_leaves.is_near(jax_leaves.wide(a), jax_leaves.wide(b)) for a, b in pairs)

    def _window(self, grads: Any, slope: Any, state: Any, params: Any) -> Any:
        """What it makes of the same gradients until an update, where it gathers some itself."""
        answer = self._asked(grads, slope, state, params)
        for _ in range(MOST_GATHERED):
            if answer is not None and jax_places.gathers(answer):
                answer = self._asked(grads, slope, answer[1], params)
        return answer

    def _asked(self, grads: Any, slope: Any, state: Any, params: Any) -> Any:
        return self._answered(grads, slope, state, params) if self.is_known else None

    def _answer(self, grads: Any, slope: Any, state: Any, params: Any) -> Any:
        extra = {name: jax_places.STAND_INS[name](slope, params) for name in self.wants}
        return self._tx.update(grads, state, params, **extra)

    def of_nothing(self, params: Any) -> list[np.ndarray]:
        """Its first updates of gradients of zero; none where it cannot be asked."""
        if not self.is_known:
            return []
        try:
            found = compiled(self._without)(params)
        except Exception:  # a transformation that takes no such gradient is not asked
            return []
        return [jax_leaves.wide(x) for x in jax.tree.leaves(found)]

    def _without(self, params: Any) -> Any:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return self._answer(zeros, zeros, self._tx.init(params), params)[0]
