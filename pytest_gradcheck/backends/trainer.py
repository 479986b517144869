"""A Trainer of Hugging Face's transformers as a training: one of its steps at a call."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Iterable
from typing import Any

from pytest_gradcheck.backends.steps import Training
from pytest_gradcheck.errors import UsageError

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

BATCHES = 8  # of the loader: an epoch of fine-tuning would take hours


def trainer_training(trainer: Any, batches: Iterable[Any] | None = None) -> Training:
    """The training that ``trainer.train()`` makes, one batch at a call, on one device.

    Called are ``create_optimizer_and_scheduler``, ``training_step``, ``compute_loss`` and, between
    them, what the arguments say about accumulation and clipping.

    Args:
        trainer: A fresh ``Trainer``, or a subclass.
        batches: The batches; by default the first eight of ``trainer.get_train_dataloader()``.

    Raises:
        UsageError: It scales its loss, or counts tokens over several batches.
    """
    for name in ("training_step", "compute_loss", "create_optimizer_and_scheduler"):
        if not callable(getattr(trainer, name, None)):
            raise UsageError(f"a Trainer has a method {name}, {type(trainer).__name__} has none")
    arguments = trainer.args
    if getattr(arguments, "fp16", False):
        raise UsageError("args.fp16=True: the loss scale stands in accelerate; check with bf16")
    window = int(arguments.gradient_accumulation_steps)
    if window > 1 and getattr(trainer, "model_accepts_loss_kwargs", False):
        raise UsageError(
            f"args.gradient_accumulation_steps={window}: this model's loss is a mean over the "
            f"tokens of a window, which no single batch shows; check with 1"
        )
    given = trainer.get_train_dataloader() if batches is None else batches
    listed = list(itertools.islice(given, BATCHES if batches is None else None))
    trainer.create_optimizer_and_scheduler(max(len(listed), 1))
    trainer.model.train()
    loop = Trainer(trainer, len(listed), window)
    return Training(
        step=loop.step,
        loss=loop.loss,
        batches=listed,
        model=trainer.model,
        optimizer=trainer.optimizer,
    )


class Trainer:
    """What ``train()`` counts, and the order in which it calls."""

    def __init__(self, trainer: Any, length: int, window: int) -> None:
        self.trainer, self.length, self.window, self.calls = trainer, length, window, 0

    def loss(self, batch: Any) -> Any:
        """The loss of a batch."""
        prepared = self.trainer._prepare_inputs(batch)
        with self.trainer.compute_loss_context_manager():
            return self.trainer.compute_loss(self.trainer.model, prepared)

    def step(self, batch: Any) -> None:
        """One batch: an update where the window, or the epoch, ends."""
        trainer, number = self.trainer, self.calls % self.length
        self.calls += 1
        start = number // self.window * self.window
        size = min(self.window, self.length - start)  # the last window may be short
        trainer.current_gradient_accumulation_steps = size
        trainer.training_step(trainer.model, batch)
        if number + 1 < start + size:
            return
        most = getattr(trainer.args, "max_grad_norm", None)
        if most:
            utils = importlib.import_module("torch.nn.utils")
            utils.clip_grad_norm_(trainer.model.parameters(), most)
        trainer.optimizer.step()
        if trainer.lr_scheduler is not None:
            trainer.lr_scheduler.step()
        trainer.model.zero_grad()
