"""Which mistake a clip makes: the one whose prediction every wrong case confirms."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import numpy as np

from pytest_gradcheck.checks.clipping import sizes, values
from pytest_gradcheck.checks.clipping.cases import HALVES
from pytest_gradcheck.checks.clipping.claim import Claim
from pytest_gradcheck.checks.clipping.judge import Judged
from pytest_gradcheck.checks.clipping.right import (
    TINY,
    Prediction,
    Tensors,
    distance,
    only_rounded,
    right,
)
from pytest_gradcheck.checks.clipping.sizes import Cause
from pytest_gradcheck.numerics import clipping

LOOSE = 3e-3  # the small number that many add to a norm shows at a thousandth of the threshold
FIT = 30.0  # roundings by which a prediction may be off; the mistakes differ by far more
MOST = 0.2  # or anything would be explained by anything, in half precision


def recognised(wrong: Sequence[Judged], claim: Claim, names: Sequence[str], tol: float) -> Cause:
    """The first mistake that explains every wrong case; a general one where none does."""
    lost = next((j for j in wrong if j.case.dtype in HALVES and not j.after > 0), None)
    if lost is not None:
        return Cause(
            "clip-overflow",
            f"in {lost.case.dtype} a norm of {lost.before:.4g} becomes {lost.after:.4g}",
            "take the norm in float32",
        )
    rounded = only_rounded(wrong, claim)
    if rounded:
        return Cause(
            "clip-norm",
            f"is off by {rounded:.2g}, more than clip_rounding={tol:.2g} allows, and otherwise "
            f"right",
            "allow it with clip_rounding=, or take norm and factor in float64",
        )
    fit = max(tol, min(FIT * tol, MOST))
    for cause, predict in _known(wrong, claim, names):
        if _explains(wrong, predict, claim, fit):
            return cause
    is_only_touched = all(item.wrong == "touched" for item in wrong)
    for cause, predict in _known(wrong, claim, names):
        if cause.code == "clip-not-applied" or (is_only_touched and cause.code != "clip-boost"):
            continue
        if _explains(wrong, predict, claim, LOOSE):
            return cause
    if claim.max_norm is not None and claim.per == "all":
        other = _other_threshold(wrong, claim, max(fit, 1e-5)) or _added(wrong, claim, fit)
        if other is not None:
            return other
    return _general(wrong, claim, fit)


def _explains(wrong: Sequence[Judged], predict: Prediction, claim: Claim, tolerance: float) -> bool:
    """Whether a mistake predicts every wrong case, and one of them otherwise than a right clip."""
    expected = right(claim)
    return all(distance(item, predict) <= tolerance for item in wrong) and (
        expected is None or any(distance(item, predict, expected) > tolerance for item in wrong)
    )


def _known(
    wrong: Sequence[Judged], claim: Claim, names: Sequence[str]
) -> Iterator[tuple[Cause, Prediction]]:
    c, p = claim.threshold, claim.norm_type
    yield (
        Cause(
            "clip-not-applied",
            "leaves a gradient above the threshold as it is",
            "look for a result that is not assigned, another list of parameters, an exhausted "
            "generator, or a clip that runs before there are gradients",
        ),
        lambda x: list(x),
    )
    yield (
        Cause(
            "clip-sign",
            "turns the gradient around",
            "look for a negative norm or threshold, such as a sentinel of -1",
        ),
        lambda x: [-g for g in _scaled(x, c / clipping.norm(x, p))],
    )
    expected = right(claim)
    for turned in (lambda x: list(x), expected):
        if turned is not None:
            yield (
                Cause(
                    "clip-sign",
                    "turns every gradient around",
                    "look for a minus, or for an optimizer behind the clip: hand over the clip",
                ),
                functools.partial(_turned, turned),
            )
    if claim.max_value is not None:
        yield from values.known(wrong, claim, names)
        return
    if claim.per != "tensor":
        yield (
            Cause(
                "clip-per-tensor",
                "clips each tensor by itself, so the direction changes",
                "take one norm over all gradients, and one factor for all of them",
            ),
            lambda x: [g * min(1.0, c / max(clipping.norm([g], p), TINY)) for g in x],
        )
    if claim.per != "all":
        yield (
            Cause(
                "clip-norm",
                "takes one norm over all gradients",
                f"take a norm for each {claim.per}",
            ),
            lambda x: _scaled(x, min(1.0, c / max(clipping.norm(x, p), TINY))),
        )
        return
    yield (
        Cause(
            "clip-by-value",
            "clips every element by its value, so the direction changes",
            "clip by the norm, or claim max_value= in the place of max_norm=",
        ),
        lambda x: [np.clip(g, -c, c) for g in x],
    )
    for other in (1.0, 2.0, np.inf):
        if other != p:
            yield (
                Cause(
                    "clip-wrong-norm",
                    f"takes the norm of order {other:g} where {_order(p)} is claimed",
                    "look at norm_type, and at a sum of squares without a root or the reverse",
                ),
                sizes.to(c, functools.partial(clipping.norm, p=other)),
            )
    yield from _formulas(claim)
    yield from sizes.of_tensors(claim)
    yield from sizes.of_one_tensor(claim, names)
    yield from sizes.of_some_tensors(wrong, claim, names)
    yield from sizes.of_two_groups(claim, len(names))


def _formulas(claim: Claim) -> Iterator[tuple[Cause, Prediction]]:
    c, p = claim.threshold, claim.norm_type
    told = {
        "scales every gradient to the threshold, small ones up": lambda n: c / n,
        "takes the square of the norm for the norm": lambda n: min(1.0, c / n**2),
        "takes the square root of the norm for the norm": lambda n: min(1.0, c / n**0.5),
        "compares the norm, and divides by its square": lambda n: 1.0 if n < c else c / n**2,
        "divides by the norm and leaves the threshold out": lambda n: 1.0 if n < c else 1 / n,
        "multiplies by norm / threshold": lambda n: max(1.0, n / c),
        "sets every gradient to zero": lambda n: 0.0 if n > c else 1.0,
        "multiplies by the threshold": lambda n: c if n > c else 1.0,
    }
    for message, factor in told.items():
        code = "clip-boost" if "small ones up" in message else "clip-norm"
        cause = Cause(code, message, "the factor is min(1, max_norm / norm)")
        yield cause, sizes.by(factor, functools.partial(clipping.norm, p=p))


def _turned(predict: Prediction, x: Tensors) -> list[np.ndarray]:
    return [-g for g in predict(x)]


def _scaled(x: Tensors, factor: float) -> list[np.ndarray]:
    return [g * factor for g in x]


def _order(p: float | str) -> str:
    return p if isinstance(p, str) else f"{p:g}"


def _other_threshold(wrong: Sequence[Judged], claim: Claim, tolerance: float) -> Cause | None:
    """The threshold that is kept in the place of the claimed one, where all cases have the same."""
    kept = [j.after for j in wrong if j.bites]
    if not kept or any(j.cosine < 1 - tolerance for j in wrong if j.bites):
        return None
    if kept[0] == 0 or max(kept) - min(kept) > tolerance * kept[0]:
        return None
    return Cause(
        "clip-threshold",
        f"keeps a norm of {kept[0]:.3g} where {claim.threshold:.3g} is claimed",
        "look at the threshold, at its unit, and at a norm that is taken twice",
    )


def _added(wrong: Sequence[Judged], claim: Claim, tolerance: float) -> Cause | None:
    """The number that is added to the norm before it divides, where all cases have the same."""
    if any(j.cosine < 1 - tolerance or not 0 < j.factor < 1 for j in wrong):
        return None
    sizes = [(j.before, claim.threshold / j.factor - j.before) for j in wrong]
    added = min(sizes)[1]
    if added <= 0 or any(abs(e - added) > 1e-3 * added + tolerance * n for n, e in sizes):
        return None
    return Cause(
        "clip-norm",
        f"adds {added:.3g} to the norm before it divides, which shows",
        "take a small number such as 1e-6",
    )


def _general(wrong: Sequence[Judged], claim: Claim, tolerance: float) -> Cause:
    broken = next((j for j in wrong if j.wrong == "broken"), None)
    if broken is not None:
        return Cause(
            "clip-broken",
            f"makes inf or nan of finite gradients ({broken.case.name})",
            "look for a division by zero, or a norm that overflows",
        )
    touched = [j for j in wrong if j.wrong == "touched"]
    if touched and len(touched) == len(wrong):
        factor = touched[0].factor
        return Cause(
            "clip-touched",
            f"changes a gradient below the threshold (factor {factor:.4g})",
            "leave a gradient whose norm is below max_norm alone, bit for bit",
        )
    bent = next((j for j in wrong if j.bites and abs(j.cosine) < 1 - tolerance), None)
    if bent is not None and claim.max_norm is not None:
        return Cause(
            "clip-direction",
            f"has no common factor for all elements ({_factors(bent)})",
            "multiply all gradients by one number",
        )
    if claim.max_value is not None:
        return values.general(wrong, claim)
    item = next((j for j in wrong if j.bites), wrong[0])
    return Cause(
        "clip-norm",
        f"leaves a norm of {item.after:.4g} where {item.threshold:.4g} is claimed "
        f"(norm before: {item.before:.4g})",
        "the factor is min(1, max_norm / norm)",
    )


def _factors(item: Judged) -> str:
    """Between which numbers the factors of the elements lie, in words."""
    before, after = item.rows
    is_seen = np.abs(before) > 1e-6 * np.max(np.abs(before))
    factors = after[is_seen] / before[is_seen]
    return f"between {np.min(factors):.3g} and {np.max(factors):.3g}"
