"""A LightningModule as a training: its hooks called as its Trainer calls them."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pytest_gradcheck.backends.handed import scalar, takes
from pytest_gradcheck.backends.steps import Training
from pytest_gradcheck.errors import UsageError

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

CLIPS = {"norm": "clip_grad_norm_", "value": "clip_grad_value_"}  # names in torch.nn.utils


def lightning_training(
    module: Any,
    batches: Iterable[Any],
    *,
    accumulate_grad_batches: int = 1,
    gradient_clip_val: float | None = None,
    gradient_clip_algorithm: str = "norm",
) -> Training:
    """The training that a ``Trainer`` makes of a module, one batch at a call.

    Called are ``configure_optimizers``, ``training_step``, ``backward``, ``optimizer_step``,
    ``optimizer_zero_grad``, ``configure_gradient_clipping``, ``lr_scheduler_step`` and the hooks
    between them, those that the module has. No ``Trainer`` takes part: ``self.trainer`` is not
    there, and ``self.log`` logs nothing.

    Args:
        module: A fresh module with automatic optimisation and one optimizer.
        batches: The batches of an epoch.
        accumulate_grad_batches: As the ``Trainer`` takes it.
        gradient_clip_val: Likewise.
        gradient_clip_algorithm: ``"norm"`` or ``"value"``, likewise.

    Raises:
        UsageError: The module optimises by hand, has several optimizers, or lacks a method.
    """
    for name in ("training_step", "configure_optimizers"):
        if not callable(getattr(module, name, None)):
            raise UsageError(f"a LightningModule has a method {name}, {module!r} has none")
    if not getattr(module, "automatic_optimization", True):
        raise UsageError(
            "automatic_optimization=False: its training_step needs a Trainer; write the step "
            "yourself and hand over a Training"
        )
    if gradient_clip_algorithm not in CLIPS:
        raise UsageError(
            f"gradient_clip_algorithm={gradient_clip_algorithm!r} is not allowed; allowed: "
            f"{', '.join(CLIPS)}"
        )
    listed = list(batches)
    optimizer, schedulers = _configured(module)
    clip = (gradient_clip_val, gradient_clip_algorithm)
    loop = Lightning(module, optimizer, schedulers, len(listed), accumulate_grad_batches, clip)
    module.train()
    return Training(
        step=loop.step,
        loss=loop.loss,
        batches=listed,
        model=module,
        optimizer=optimizer,
        # It divides by accumulate_grad_batches, also in a short last window.
        weights="window" if accumulate_grad_batches > 1 else None,
    )


def _configured(module: Any) -> tuple[Any, list[dict[str, Any]]]:
    """The optimizer, and the schedulers with their settings."""
    made = module.configure_optimizers()
    schedulers: Any = []
    if isinstance(made, Mapping):
        made, schedulers = made["optimizer"], made.get("lr_scheduler", [])
    elif isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], (list, tuple)):
        made, schedulers = made
    found = list(made) if isinstance(made, (list, tuple)) else [made]
    if len(found) != 1 or found[0] is None or isinstance(found[0], Mapping):
        raise UsageError(
            f"configure_optimizers must return one optimizer here, got {len(found)} "
            f"({', '.join(type(o).__name__ for o in found)})"
        )
    listed = schedulers if isinstance(schedulers, (list, tuple)) else [schedulers]
    plain = [s if isinstance(s, Mapping) else {"scheduler": s} for s in listed]
    return found[0], [dict(s) for s in plain]


class Lightning:
    """What the Trainer counts, and the order in which it calls."""

    def __init__(
        self,
        module: Any,
        optimizer: Any,
        schedulers: list[dict[str, Any]],
        length: int,
        window: int,
        clip: tuple[float | None, str],
    ) -> None:
        self.module, self.optimizer, self.schedulers = module, optimizer, schedulers
        self.length, self.window, self.clip = length, window, clip
        self.calls = 0

    def loss(self, batch: Any, number: int = 0) -> Any:
        """The loss of a batch: a tensor, or what a dictionary has under ``loss``."""
        has_number = takes(self.module.training_step, 2) != 1
        answer = self.module.training_step(*([batch, number] if has_number else [batch]))
        return scalar(answer["loss"] if isinstance(answer, Mapping) else answer)

    def step(self, batch: Any) -> None:
        """One batch."""
        epoch, number = divmod(self.calls, self.length)
        self.calls += 1
        is_last = number + 1 == self.length
        place = number % self.window
        if place + 1 < self.window and not is_last:
            self._backward(batch, epoch, number, place == 0)
            return

        def closure() -> Any:
            loss = self._backward(batch, epoch, number, place == 0)
            self._hook("on_before_optimizer_step", self.optimizer)
            self._clip()
            return loss

        if not self._hook("optimizer_step", epoch, number, self.optimizer, closure):
            self.optimizer.step(closure)
        self._advance(is_last)

    def _backward(self, batch: Any, epoch: int, number: int, is_first: bool) -> Any:
        loss = self.loss(batch, number)
        if is_first:
            self._hook("on_before_zero_grad", self.optimizer)
            if not self._hook("optimizer_zero_grad", epoch, number, self.optimizer):
                self.optimizer.zero_grad()
        self._hook("on_before_backward", loss)
        if not self._hook("backward", loss / self.window):
            (loss / self.window).backward()
        self._hook("on_after_backward")
        return loss

    def _clip(self) -> None:
        value, kind = self.clip

        def clipped(
            optimizer: Any,
            gradient_clip_val: float | None = None,
            gradient_clip_algorithm: str | None = None,
        ) -> None:
            most, how = gradient_clip_val or value, gradient_clip_algorithm or kind
            if most:
                held = [p for group in optimizer.param_groups for p in group["params"]]
                getattr(importlib.import_module("torch.nn.utils"), CLIPS[how])(held, most)

        with _attribute(self.module, "clip_gradients", clipped):
            if not self._hook("configure_gradient_clipping", self.optimizer, value, kind):
                clipped(self.optimizer)

    def _advance(self, is_last: bool) -> None:
        """Schedulers: after each update, or at the end of the epoch."""
        for settings in self.schedulers:
            every = settings.get("frequency", 1)
            is_due = is_last if settings.get("interval", "epoch") == "epoch" else True
            settings["seen"] = settings.get("seen", 0) + is_due
            if not is_due or settings["seen"] % every or settings.get("monitor") is not None:
                continue  # what a scheduler monitors is measured outside of the step
            scheduler = settings["scheduler"]
            if not self._hook("lr_scheduler_step", scheduler, None):
                scheduler.step()

    def _hook(self, name: str, *args: Any) -> bool:
        """Call a method of the module; whether there is one."""
        found: Callable[..., Any] | None = getattr(self.module, name, None)
        if found is None:
            return False
        found(*args)
        return True


@contextmanager
def _attribute(module: Any, name: str, value: Any) -> Iterator[None]:
    """Another attribute of an instance for a while; its class has one of that name or none."""
    object.__setattr__(module, name, value)
    try:
        yield
    finally:
        object.__delattr__(module, name)
