"""Check a derivative."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from pytest_gradcheck import collector as collecting
from pytest_gradcheck.errors import UsageError
from pytest_gradcheck.limits import limits_of
from pytest_gradcheck.results import Result
from pytest_gradcheck.verbs.foreign import hint
from pytest_gradcheck.verbs.record import asked, asserting, circumstances, narrowed

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

ALIKE = 0.85  # of two names, by difflib: one letter of eight
NEAR_A_LIMIT = 0.8


@asked
def check_gradient(
    fn: Callable[..., Any],
    *args: Any,
    wrt: int | str | Sequence[int | str] | None = None,
    grad: Callable[..., Any] | None = None,
    vjp: Callable[..., Any] | None = None,
    jac: Callable[..., Any] | None = None,
    value_and_grad: bool = False,
    modes: Sequence[str] = ("reverse",),
    order: int = 1,
    intended: str | None = None,
    backend: str | None = None,
    device: str | None = None,
    seed: int | None = None,
    label: str | None = None,
    resolution: float | None = None,
    miss_probability: float | None = None,
    tolerance: float | None = None,
    rounding: float | None = None,
    at_kink: str | None = None,
    budget: float | str | None = None,
    undecided: str | None = None,
    vacuous: str | None = None,
    **kwargs: Any,
) -> Result:
    """Check a derivative against finite differences that know their own error.

    Args:
        fn: A function, or a module (torch, Flax ``nnx`` or bound ``linen``, Equinox), whose
            trainable parameters are then under test too.
        *args: Its inputs, nested as they are (dict, list, tuple, dataclass, pytree). Arrays of
            floating-point or complex type are differentiated; integers, booleans, strings and
            None pass through. Python floats are differentiated only where no input is an array, or
            where ``wrt`` names them (NumPy, JAX).
        wrt: The inputs under test, by position, name or path glob; all by default. A glob picks
            among the arrays.
        grad: Hand-written gradient ``grad(*args)`` of a scalar function, one array (or nested
            value) for each input under test.
        vjp: Hand-written ``vjp(cotangent, *args)``; the cotangent has the structure of the output.
        jac: Hand-written Jacobian ``jac(*args)`` of shape output + input; of complex inputs the
            plain one, by which the output changes by the real part (or all) of ``jac @ dz``.
        value_and_grad: ``fn`` itself returns ``(value, gradient)``.
        modes: Which of the framework's modes to check: ``reverse``, ``forward`` (also against
            reverse), ``batched`` (``vmap`` over cotangents).
        order: 2 checks the derivative of the gradient too, by every mode that is asked for.
        intended: The reason why the derivative is meant to differ from that of the function (a
            straight-through estimator); a difference is then reported and not failed.
        backend: ``numpy``, ``torch`` or ``jax``; found from the values by default.
        device: Device to move the inputs to, as the framework names it.
        seed: Seed of the random directions; a hash of the test's name by default.
        label: Name in messages and reports; the function's own by default.
        resolution: Largest relative error of an input's gradient that may stay unseen in a pass.
        miss_probability: Probability with which an error of that size may be missed.
        tolerance: Relative error of an input's gradient that is accepted as right.
        rounding: Relative difference accepted between a gradient in its own precision and the
            same in float64.
        at_kink: ``accept`` (the default) checks beside a kink and asks that the value at it lies
            between the slopes on both sides; ``nudge`` only checks beside it; ``fail`` fails.
        budget: Number of evaluations, or seconds such as ``"30s"``, after which the check stops
            looking and says what it left unchecked.
        undecided: ``warn`` or ``fail``: what ``assert_gradient`` does with that verdict.
        vacuous: ``warn`` or ``fail``, likewise. Defaults of all limits: ``docs/limits.md``.
        **kwargs: Keyword arguments of ``fn``, differentiated like the others.

    Returns:
        The result, also recorded in the report of the running test.

    Raises:
        UsageError: The call cannot be carried out as written.

    Example:
        >>> import numpy as np
        >>> check_gradient(np.sin, np.array([0.5, 1.0]), jac=lambda x: np.diag(np.cos(x))).verdict
        'pass'
    """
    from pytest_gradcheck.checks.gradient import check
    from pytest_gradcheck.checks.question import Question

    if kwargs:
        _require_taken(fn, kwargs)
    collector = collecting.current()
    limits = narrowed(
        "gradcheck",
        resolution=resolution,
        miss_probability=miss_probability,
        tolerance=tolerance,
        rounding=rounding,
        at_kink=at_kink,
        budget=budget,
        undecided=undecided,
        vacuous=vacuous,
    )
    question = Question(
        fn=fn,
        args=args,
        kwargs=kwargs,
        wrt=wrt,
        grad=grad,
        vjp=vjp,
        jac=jac,
        value_and_grad=value_and_grad,
        modes=modes,
        order=order,
        intended=_reason(intended),
        backend=backend,
        device=device or collector.device or None,
        label=None if label is None else str(label),
    )
    context = circumstances(seed)
    try:
        result = check(question, limits, context, collector.progress)
    finally:
        if collector.progress is not None:
            collector.progress.close()
    collector.add(result)
    return result


assert_gradient = asserting(check_gradient)


def _require_taken(fn: object, names: Iterable[str]) -> None:
    """Refuse a keyword that neither the verb nor the function knows: a misspelt one, most often.

    Raises:
        UsageError: Names the keyword and the nearest one that is known.
    """
    taken = inspect.signature(check_gradient).parameters.values()
    known = [p.name for p in taken if p.kind is p.KEYWORD_ONLY]
    parameters = _parameters(fn)
    if parameters is not None and any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        _require_no_limit(name for name in names if name not in parameters)
        return
    for name in (name for name in names if parameters is None or name not in parameters):
        # Where it cannot be seen what the function takes, only what looks misspelt is refused.
        likeness = ALIKE if parameters is None else 0.6
        near = difflib.get_close_matches(name, [*known, *(parameters or ())], 1, likeness)
        if near or parameters is not None:
            told = hint(name, known, near)
            raise UsageError(f"neither the check nor the function takes an argument {name!r}{told}")


def _require_no_limit(names: Iterable[str]) -> None:
    """Refuse what a function would take as it takes anything, and looks like a limit.

    Raises:
        UsageError: Names the limit, and how else to hand the argument to the function.
    """
    for name in names:
        near = difflib.get_close_matches(name, limits_of("gradcheck"), 1, NEAR_A_LIMIT)
        if near:
            raise UsageError(
                f"{name}= is no limit; did you mean {near[0]}=? If it is for the function, bind "
                f"it: functools.partial(f, {name}=...)"
            )


def _parameters(fn: object) -> Mapping[str, inspect.Parameter] | None:
    """What a function takes; None where that cannot be seen."""
    try:
        return inspect.signature(getattr(fn, "forward", fn)).parameters  # type: ignore[arg-type]  # anything may be given; it raises
    except (TypeError, ValueError):
        return None


def _reason(intended: object) -> str | None:
    if intended is None or (isinstance(intended, str) and intended.strip()):
        return intended
    raise UsageError(
        f"intended={intended!r} is not allowed; allowed: the reason in words why the derivative "
        f"is meant to differ"
    )
