"""Several losses in one step, each with its optimizer: as many trainings, the others beside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from pytest_gradcheck.backends.steps import Training
from pytest_gradcheck.errors import UsageError
from pytest_gradcheck.results import Evidence, Finding

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these


@dataclass(frozen=True, slots=True)
class Part:
    """One loss with its optimizer.

    Args:
        training: The training of this loss.
        others: Optimizers of the other losses, whose parameters are not its own.
        label: Name of the loss; empty where it is the only one.
        number: Its number, from 1.
    """

    training: Training
    others: tuple[Any, ...] = ()
    label: str = ""
    number: int = 1


def parts(training: Training, backend: str) -> list[Part]:
    """A training for each loss.

    Raises:
        UsageError: There are not as many optimizers as losses, or not in torch.
    """
    losses = training.loss
    if callable(losses):
        return [Part(training)]
    if backend != "torch":
        raise UsageError(f"several losses are for torch; {backend} takes one: Training.loss")
    optimizers = training.optimizer
    count = len(optimizers) if isinstance(optimizers, (list, tuple)) else 1
    if count != len(losses):
        raise UsageError(
            f"Training.loss has {len(losses)} losses for {count} optimizer"
            f"{'s' if count != 1 else ''}; give one loss for all, or one for each optimizer"
        )
    return [
        Part(
            replace(training, loss=loss, optimizer=optimizers[k]),
            (*optimizers[:k], *optimizers[k + 1 :]),
            str(getattr(loss, "__name__", f"loss {k + 1}")),
            k + 1,
        )
        for k, loss in enumerate(losses)
    ]


def labelled(
    part: Part, findings: Sequence[Finding], evidence: Sequence[Evidence]
) -> tuple[list[Finding], list[Evidence]]:
    """What was found of a part, with the name of its loss."""
    if not part.label:
        return list(findings), list(evidence)
    told = [replace(f, message=f"{part.label}: {f.message}") for f in findings]
    suffix = f"-{part.number}" if part.number > 1 else ""
    shown = [replace(e, name=e.name + suffix, title=f"{part.label}: {e.title}") for e in evidence]
    return told, shown
