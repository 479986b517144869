"""Check a training step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pytest_gradcheck import collector as collecting
from pytest_gradcheck.results import Result
from pytest_gradcheck.verbs.record import asked, asserting, circumstances, given, narrowed

if TYPE_CHECKING:
    from pytest_gradcheck.backends.steps import Training

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these


@asked
def check_step(
    training: Training | Callable[[], Training],
    *,
    optimizer: str | None = None,
    lr: float | None = None,
    momentum: float | None = None,
    nesterov: bool | None = None,
    betas: tuple[float, float] | None = None,
    eps: float | None = None,
    weight_decay: float | None = None,
    hyper: Mapping[str, Any] | None = None,
    schedule: Callable[[int], float] | Sequence[float] | None = None,
    no_decay: str | Sequence[str] | None = None,
    max_norm: float | None = None,
    norm_type: float | None = None,
    max_value: float | None = None,
    accumulate: int | None = None,
    weights: str | Callable[[Any], float] | None = None,
    frozen: str | Sequence[str] | None = None,
    loss_scale: float | None = None,
    nonfinite: str | None = None,
    semi_gradient: str | None = None,
    backend: str | None = None,
    seed: int | None = None,
    label: str | None = None,
    step_calls: float | None = None,
    step_fresh: float | None = None,
    step_gradient: float | None = None,
    step_replay: float | None = None,
    step_slope: float | None = None,
    step_lost: float | None = None,
    undecided: str | None = None,
    vacuous: str | None = None,
) -> Result:
    """Check that a training step uses the right gradient and moves the right parameters.

    Args:
        training: A function that builds a fresh ``Training``, or one itself, which is then set
            back to what it was. The user's step runs as it is, over an epoch and at least seven
            calls.
        optimizer: Name of the claimed rule, such as ``"adamw"``; by default that of the class of
            a torch optimizer, with the hyperparameters of its groups.
        lr: Claimed learning rate.
        momentum: Claimed momentum.
        nesterov: Whether it looks ahead.
        betas: Claimed decay rates of the moments.
        eps: Claimed small number in the denominator.
        weight_decay: Claimed decay.
        hyper: Further claimed hyperparameters, as torch names them (``alpha``, ``rho``,
            ``dampening``, ``decay="coupled"``, ...).
        schedule: Claimed learning rate of each update, as a list or a function of its number
            (from 0).
        no_decay: Globs of parameters without decay.
        max_norm: Claimed threshold of the global norm; by default as seen to be asked for.
        norm_type: Order of that norm.
        max_value: Claimed threshold of each element.
        accumulate: Claimed calls of the step for each update.
        weights: How the calls of a window count: ``"samples"`` (the default: each sample the
            same, or each token, where the loss divides by them), ``"batches"`` (each batch the
            same), ``"window"`` (each as one of a full window, in a short one too), or a function
            that gives the weight of a batch, such as its number of tokens.
        frozen: Globs of parameters that must not move, beside those that take no gradient.
        loss_scale: Factor on the loss that must be gone when the optimizer gets the gradient.
        nonfinite: What must happen to a batch that is not finite, which is then tried:
            ``"skip"``, ``"raise"`` or ``"propagate"``.
        semi_gradient: Why the gradient is not meant to be the slope of the loss (temporal
            differences, actor-critic, stop-gradient, straight-through): noted in the result.
            With what the loss holds back held still, it must be the slope.
        backend: ``torch``, ``jax`` or ``numpy``; found from the training by default.
        seed: Seed, noted in the result.
        label: Name in messages and reports; the step's own by default.
        step_calls: Least number of calls and updates.
        step_fresh: First calls whose gradient is held against a fresh one where parameters or
            batches are large, beside those unlike the others.
        step_gradient: Relative difference accepted between a received gradient and the right one.
        step_replay: Relative difference accepted between an update and its replay.
        step_slope: Relative difference accepted between the gradient and the slope of the loss.
        step_lost: Share of updates that may be lost to rounding.
        undecided: ``warn`` or ``fail``: what ``assert_step`` does with that verdict.
        vacuous: ``warn`` or ``fail``, likewise. Defaults of all limits: ``docs/limits.md``.

    Returns:
        The result, also recorded in the report of the running test.

    Raises:
        UsageError: The call cannot be carried out as written.
    """
    from pytest_gradcheck.checks.steps.check import Question, check
    from pytest_gradcheck.checks.steps.given import contract

    collector = collecting.current()
    limits = narrowed(
        "gradstep",
        step_calls=step_calls,
        step_fresh=step_fresh,
        step_gradient=step_gradient,
        step_replay=step_replay,
        step_slope=step_slope,
        step_lost=step_lost,
        undecided=undecided,
        vacuous=vacuous,
    )
    named = given(
        lr=lr,
        momentum=momentum,
        nesterov=nesterov,
        betas=betas,
        eps=eps,
        weight_decay=weight_decay,
    )
    claims = {
        "optimizer": optimizer,
        "hyper": hyper,
        "schedule": schedule,
        "no_decay": no_decay,
        "max_norm": max_norm,
        "norm_type": norm_type,
        "max_value": max_value,
        "accumulate": accumulate,
        "weights": weights,
        "frozen": frozen,
        "loss_scale": loss_scale,
        "nonfinite": nonfinite,
        "semi_gradient": semi_gradient,
    }
    question = Question(
        training=training,
        contract=contract(claims, named),
        backend=backend,
        label=None if label is None else str(label),
    )
    context = circumstances(seed)
    result = check(question, limits, context)
    collector.add(result)
    return result


assert_step = asserting(check_step)
