"""Check what clips gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pytest_gradcheck import collector as collecting
from pytest_gradcheck.results import Result
from pytest_gradcheck.verbs.record import asked, asserting, circumstances, narrowed

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these


@asked
def check_clipping(
    clip: Any,
    *,
    max_norm: float | None = None,
    norm_type: float | str = 2.0,
    max_value: float | None = None,
    per: str = "all",
    nonfinite: str | None = None,
    params: Any = None,
    norms: Sequence[Any] | None = None,
    dtypes: Sequence[str] | None = None,
    backend: str | None = None,
    seed: int | None = None,
    label: str | None = None,
    clip_rounding: float | None = None,
    undecided: str | None = None,
    vacuous: str | None = None,
) -> Result:
    """Check that a clip does what it claims, over gradients that bite and that do not.

    Args:
        clip: A torch callable over parameters (or over a model, when its argument is called
            ``model``, or over its own, with ``params``); an optax transformation; what makes one
            from a threshold; or a function from gradients to gradients, which may return the norm
            beside them. Where it takes ``max_norm``, ``clip_value`` or ``norm_type`` as arguments,
            the claimed ones are handed over and others are tried too.
        max_norm: The claimed threshold of the norm.
        norm_type: 1, 2, ``inf``, any other order, or ``"rms"`` (the root of the mean square).
        max_value: The claimed threshold of each element, in the place of ``max_norm``.
        per: What has one norm: ``"all"`` gradients together, each ``"tensor"`` (per block), each
            ``"unit"`` (adaptive: the threshold is ``max_norm`` times the norm of the unit's
            parameters), each ``"example"`` (along the first axis, summed afterwards).
        nonfinite: What is claimed to happen to inf and nan: ``"propagate"``, ``"raise"``,
            ``"zero"`` or ``"skip"`` (leave all as it is). By default whatever does not hide them.
        params: A module, tensors, or a nested value: the gradients get its structure and shapes.
        norms: Norms recorded in a real run; the share that was clipped is reported, and all or
            none is a warning.
        dtypes: Precisions to check, each to be held; by default that of ``params`` or float32
            (NumPy: float64), and float16 and bfloat16 beside it as warnings.
        backend: ``numpy``, ``torch`` or ``jax``; found from what the clip uses by default.
        seed: Seed of the gradients; a hash of the test's name by default.
        label: Name in messages and reports; the clip's own by default.
        clip_rounding: Relative error accepted of a norm or an element.
        undecided: ``warn`` or ``fail``: what ``assert_clipping`` does with that verdict.
        vacuous: ``warn`` or ``fail``, likewise. Defaults of all limits: ``docs/limits.md``.

    Returns:
        The result, also recorded in the report of the running test.

    Raises:
        UsageError: The call cannot be carried out as written.

    Example:
        >>> import numpy as np
        >>> def clip(grads, max_norm):
        ...     norm = np.sqrt(sum((g**2).sum() for g in grads))
        ...     return [g * min(1.0, max_norm / norm) if norm > max_norm else g for g in grads]
        >>> check_clipping(clip, max_norm=1.0).verdict
        'pass'
    """
    from pytest_gradcheck.checks.clipping.check import Question, check
    from pytest_gradcheck.checks.clipping.claim import claim

    collector = collecting.current()
    limits = narrowed(
        "gradclip",
        clip_rounding=clip_rounding,
        undecided=undecided,
        vacuous=vacuous,
    )
    question = Question(
        clip=clip,
        claim=claim(max_norm, norm_type, max_value, per, nonfinite),
        params=params,
        norms=norms,
        dtypes=dtypes,
        backend=backend,
        label=None if label is None else str(label),
    )
    context = circumstances(seed)
    result = check(question, limits, context)
    collector.add(result)
    return result


assert_clipping = asserting(check_clipping)
