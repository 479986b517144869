"""Check how the gradient flows through a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from pytest_gradcheck import collector as collecting
from pytest_gradcheck.errors import UsageError
from pytest_gradcheck.results import Result
from pytest_gradcheck.verbs.record import asked, asserting, circumstances, narrowed

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these


@asked
def check_flow(
    model: Any,
    loss: Callable[[Any, Any], Any] | None = None,
    batch: Any = None,
    *,
    make: Callable[..., Any] | None = None,
    seeds: int = 5,
    optimizer: Any = None,
    frozen: str | Sequence[str] = (),
    backend: str | None = None,
    device: str | None = None,
    seed: int | None = None,
    label: str | None = None,
    vanish: float | None = None,
    explode: float | None = None,
    dead: float | None = None,
    saturated: float | None = None,
    update_ratio: float | None = None,
    undecided: str | None = None,
    vacuous: str | None = None,
) -> Result:
    """Check that the gradient reaches every layer of a model as it is initialised.

    The verdict is an interval over fresh initialisations against limits, on quantities that do not
    change with the scale of the loss or of the layers. A failure names symptom, layer and, where
    changing one thing on a copy restores the flow, the cause.

    Args:
        model: A ``torch.nn.Module``; a pytree of parameters (JAX, NumPy); or gradients that are
            already there: a mapping of layer to gradient (or to a pair of value and gradient), or
            a sequence of recorded layers ``(name, activation, gradient)``, in the order of the
            data; a list of such for several initialisations. None where ``make`` builds it.
        loss: ``loss(model, batch)``, a scalar. For NumPy it returns the recorded layers, or
            ``(value, layers)``, or ``(value, layers, gradients of the parameters)``.
        batch: What ``loss`` is given; 16 samples or more, so that dead units can be told.
        make: Builds a fresh initialisation: ``make()`` or ``make(seed)`` for torch,
            ``make(seed)`` for JAX and NumPy. Without it torch modules are reset by their own
            ``reset_parameters`` where they look like draws of it; else one realisation is judged.
        seeds: Initialisations to begin with; up to 20 while a verdict is open.
        optimizer: A torch optimizer of the model's parameters or what makes one of parameters, an
            optax transformation: the size of its first update is judged too.
        frozen: Parameters that are meant to stay as they are, by name or path glob.
        backend: ``numpy``, ``torch`` or ``jax``; found from the values by default.
        device: Device to move model and batch to, as the framework names it.
        seed: First seed of the initialisations; a hash of the test's name by default.
        label: Name in messages and reports; that of the model's class by default.
        vanish: Smallest flow at the first layers over that at the last that passes.
        explode: Largest flow at the first layers over that at the last that passes.
        dead: Largest share of a layer's units that may be off for every sample.
        saturated: Largest share of a layer's outputs that may be saturated.
        update_ratio: Largest step of the optimizer over the size of the weights.
        undecided: ``warn`` or ``fail``: what ``assert_flow`` does with that verdict.
        vacuous: ``warn`` or ``fail``, likewise. Defaults of all limits: ``docs/limits.md``.

    Returns:
        The result, also recorded in the report of the running test.

    Raises:
        UsageError: The call cannot be carried out as written.

    Example:
        >>> import numpy as np
        >>> check_flow({"first": 1e-9 * np.eye(3), "last": np.eye(3)}).verdict
        'fail'
    """
    from pytest_gradcheck.checks.flow.check import check
    from pytest_gradcheck.checks.flow.question import FlowQuestion

    collector = collecting.current()
    limits = narrowed(
        "gradflow",
        vanish=vanish,
        explode=explode,
        dead=dead,
        saturated=saturated,
        update_ratio=update_ratio,
        undecided=undecided,
        vacuous=vacuous,
    )
    question = FlowQuestion(
        model=model,
        loss=loss,
        batch=batch,
        make=make,
        seeds=_count(seeds),
        optimizer=optimizer,
        frozen=_names(frozen),
        backend=backend,
        device=device or collector.device or None,
        label=None if label is None else str(label),
    )
    context = circumstances(seed)
    result = check(question, limits, context)
    collector.add(result)
    return result


assert_flow = asserting(check_flow)


def _count(seeds: int) -> int:
    if isinstance(seeds, bool) or not isinstance(seeds, int):
        raise UsageError(f"seeds={seeds!r} is not allowed; allowed: a number of 1 or more")
    return seeds


def _names(frozen: str | Sequence[str]) -> tuple[str, ...]:
    names = (frozen,) if isinstance(frozen, str) or not isinstance(frozen, Iterable) else frozen
    if not all(isinstance(name, str) for name in names):
        raise UsageError(f"frozen={frozen!r} is not allowed; allowed: names or globs of parameters")
    return tuple(names)
