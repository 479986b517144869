"""Inputs so small, or so far from zero, that every sample looks the same to the model.

The gradient flows all the same, through what the biases alone make; so the answers are looked at,
and that the inputs are the cause is known where standardised ones set them apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from pytest_gradcheck.backends.layers import Pass
from pytest_gradcheck.checks.flow.cause import PAIRED, Trial
from pytest_gradcheck.checks.flow.passes import Passes, statistics
from pytest_gradcheck.checks.flow.small import TABLES
from pytest_gradcheck.checks.flow.symptom import Symptom
from pytest_gradcheck.results import Severity

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

ALIKE, APART = 0.01, 0.1  # spread of the answers over the samples, over their size
TWINS = 3e-3  # at which they are too much alike to train on; histograms differ by more, and train
SMALL = 1e-3  # size of inputs below which it is asked whether the answer is felt at all
UNFELT, FELT = 1e-4, 3e-3  # share of a zero answer's loss by which the answer moves it
FAINT, LIFTED = 3e-5, 1e3  # size of inputs at which any such share will do, and times it grows


def inputs(passes: Passes) -> tuple[tuple[Symptom, ...], tuple[Trial, ...]]:
    """What inputs out of proportion do, where standardised ones cure it."""
    plain = passes.finite
    contrasts = sorted(one.contrast for one in plain if not math.isnan(one.contrast))
    is_alike = len(contrasts) == len(plain) and contrasts[len(plain) // 2 :][:1] < [ALIKE]
    is_unfelt = all(one.source < SMALL and _varied(one) < UNFELT for one in plain)
    starts = plain[0].layers[:1] if plain else ()
    is_learned = any(one.is_learned for one in plain) or any(y.op in TABLES for y in starts)
    if is_learned or not plain or not (is_alike or is_unfelt):
        return (), ()
    if "input" not in passes.probe.changes:
        return (), ()
    made = [passes.probe.measure(state, ("input", -1)) for state in passes.states[:PAIRED]]
    if not all(one.is_finite for one in made):
        return (), ()
    severity: Severity = "fail"
    if is_alike and all(one.contrast > APART for one in made):
        before, after = contrasts[len(plain) // 2], made[0].contrast
        severity, much = ("fail", "just") if before < TWINS else ("warn", "nearly")
        told = (
            f"every sample looks {much} the same: the answers differ by {before:.1e} of their "
            f"size, and by {after:.2g} with standardised inputs"
        )
    elif is_unfelt and _is_felt(list(zip(made, plain, strict=False))):
        before, after = _felt(plain[0], plain[0]), _felt(made[0], plain[0])
        told = (
            f"the inputs have size {plain[0].source:.1e}: the answer moves the loss by "
            f"{before:.1e} of it, and by {after:.2g} with standardised inputs"
        )
    else:
        return (), ()
    seen = statistics(made)
    cure = (Trial("input", seen.mean, seen.growth, math.nan, True),) if severity == "fail" else ()
    return (Symptom("inputs", "", told, (("before", before), ("after", after)), severity),), cure


def _is_felt(pairs: Sequence[tuple[Pass, Pass]]) -> bool:
    """Whether the answers to standardised inputs move the loss, where those to plain ones do not.

    How far one answer moves it is chance, so that all of them count together.
    """
    after = [_felt(one, plain) for one, plain in pairs]
    if math.fsum(after) > FELT * len(after):
        return True
    return all(
        plain.source < FAINT and moved > max(UNFELT, LIFTED * _felt(plain, plain))
        for moved, (_, plain) in zip(after, pairs, strict=True)
    )


def _varied(one: Pass) -> float:
    """The part of that by which the answers vary over the samples, which biases alone do not do."""
    return _felt(one, one) * (1.0 if math.isnan(one.contrast) else min(1.0, one.contrast))


def _felt(one: Pass, plain: Pass) -> float:
    """Share of the loss of a zero answer by which an answer moves it; NaN where not known."""
    if one.loss is None or not plain.plain_loss:
        return math.nan
    return abs(one.loss - plain.plain_loss) / abs(plain.plain_loss)
