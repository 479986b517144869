"""PyTorch: the updates of one optimizer, watched through its hooks."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from pytest_gradcheck.backends import torch_optimizers
from pytest_gradcheck.backends.steps import Update
from pytest_gradcheck.backends.torch_record import Record


class Watch:
    """Notes the updates of one optimizer while it is open."""

    def __init__(self, loop: Any, optimizer: Any, which: int, record: Record) -> None:
        self._loop, self._optimizer, self._which = loop, optimizer, which
        self._record = record
        self._before: list[np.ndarray] = []
        self._received: list[np.ndarray | None] = []
        self._lay: list[Any] = []
        self._hyper: list[dict[str, Any]] = []
        self._has_closure = False
        self._scale = 1.0

    @contextmanager
    def open(self) -> Iterator[None]:
        """Hooks of torch's optimizers; a wrapped method for one's own."""
        if torch_optimizers.has_hooks(self._optimizer):
            handles = [
                self._optimizer.register_step_pre_hook(self._pre),
                self._optimizer.register_step_post_hook(self._post),
            ]
            try:
                yield
            finally:
                for handle in handles:
                    handle.remove()
            return
        # An optimizer of one's own may keep its step as an attribute, or allow none.
        is_own = "step" in getattr(self._optimizer, "__dict__", {})
        owner = self._optimizer if is_own else type(self._optimizer)
        is_inherited = "step" not in vars(owner)
        before = owner.step
        owner.step = wrapped = self._wrapped(before, is_own)
        try:
            yield
        finally:
            if is_inherited:
                del owner.step
            elif owner.step is wrapped:  # else the step has put another one there
                owner.step = before

    def _wrapped(self, own: Any, is_own: bool) -> Any:
        @functools.wraps(own)
        def step(*args: Any, **kwargs: Any) -> Any:
            if is_own:
                return self._stepping(own, *args, **kwargs)
            if args[0] is not self._optimizer:
                return own(*args, **kwargs)
            return self._stepping(functools.partial(own, args[0]), *args[1:], **kwargs)

        return step

    def _stepping(self, own: Any, *args: Any, **kwargs: Any) -> Any:
        self._pre(self._optimizer, (self._optimizer, *args), kwargs)
        answer = own(*args, **kwargs)
        self._post(self._optimizer, args, kwargs)
        return answer

    def _pre(self, optimizer: Any, args: Any, kwargs: Any) -> Any:
        self._record.is_stepping = True
        self._record.see_flags()
        self._before = self._loop.now()
        self._scale = torch_optimizers.scale(optimizer)
        self._received, self._lay = self._own(self._loop.received()), self._record.lay()
        self._hyper = torch_optimizers.hypers(optimizer, self._loop.tensors)
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        self._has_closure = callable(closure)
        if not callable(closure):
            return None
        first = [True]

        def noting() -> Any:
            with torch.enable_grad():
                value = closure()
            if first:
                first.clear()
                self._received = self._own(self._loop.received())
            return value

        return (args[0], noting, *args[2:]), {k: v for k, v in kwargs.items() if k != "closure"}

    def _own(self, grads: list[np.ndarray | None]) -> list[np.ndarray | None]:
        groups = torch_optimizers.groups(self._optimizer)
        mine = {id(p) for group in groups for p in group["params"]}
        pairs = zip(grads, self._loop.tensors, strict=True)
        held = [g if not mine or id(p) in mine else None for g, p in pairs]
        if self._scale == 1.0:
            return held
        return [None if g is None else g / self._scale for g in held]

    def _post(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        self._record.is_stepping = False
        if torch_optimizers.is_left_out(optimizer):
            self._record.note("step left out", math.nan)
            return
        self._record.note("step", math.nan)
        # An optimizer of torch itself writes nothing that its tensors do not count.
        is_left = type(optimizer) in torch_optimizers.NAMES and self._lay == self._record.lay()
        left = self._received if is_left else self._own(self._loop.received())
        # What a loss scale is removed from may be written back, which is no other gradient.
        touched = (
            not self._has_closure
            and self._scale == 1.0
            and any(
                a is not b and a is not None and b is not None and not _is_same(a, b)
                for a, b in zip(self._received, left, strict=True)
            )
        )
        fresh = self._record.fresh_at(self._before)
        self._record.start = after = self._loop.now()
        self._record.updates.append(
            Update(
                before=self._before,
                after=after,
                received=self._received,
                hyper=self._hyper,
                which=self._which,
                touched=touched,
                place=len(self._record.events) - 1,
                fresh=fresh,
            )
        )


def _is_same(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(np.array_equal(a, b, equal_nan=True))


@contextmanager
def seen_steps(optimizers: Sequence[Any], note: Callable[[], None]) -> Iterator[None]:
    """Note the steps of optimizers that are not judged here."""
    known = [o for o in optimizers if isinstance(o, torch.optim.Optimizer)]
    handles = [o.register_step_post_hook(lambda *_: note()) for o in known]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
