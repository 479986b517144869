"""A wrong gradient in words and numbers: which input, what is wrong with it, what to look for."""

from __future__ import annotations

from pytest_gradcheck.checks.compare import strongest
from pytest_gradcheck.checks.locate import Culprit
from pytest_gradcheck.checks.measured import Measured
from pytest_gradcheck.checks.power import percent
from pytest_gradcheck.checks.rounding import Lossy
from pytest_gradcheck.limits import Scalar
from pytest_gradcheck.results import Evidence, Finding

ADVICE = {
    "missing": "look for detach, .data, .item(), a non-differentiable step, or a None in backward",
    "zero": "look for detach, stop_gradient, an input left out of backward, or a mask of zeros",
    "sign": "look for a minus sign, or a difference written the other way round",
    "factor": "look for a constant that forward and backward do not share (mean, square, scale)",
    "other": "compare the formula for this input term by term",
}


def accusation(seen: Measured, culprit: Culprit) -> Finding:
    """The finding on one input."""
    name, worst = seen.name(culprit.index), culprit.worst
    return Finding(
        code=f"gradient-{culprit.pattern}" if culprit.pattern != "other" else "wrong-gradient",
        severity="fail",
        where=name,
        message=_sentence(seen, culprit, name),
        numbers=(
            ("claimed", worst.claimed),
            ("reference", worst.reference),
            ("bound", worst.bound),
            ("ratio", worst.ratio),
        ),
    )


def _sentence(seen: Measured, culprit: Culprit, name: str) -> str:
    worst = culprit.worst
    if culprit.pattern == "missing":
        return f"none reaches {name}, though the output depends on it"
    if culprit.pattern == "zero":
        return f"{name} gets zero, though the output depends on it"
    if culprit.pattern == "sign":
        return f"{name} has the wrong sign"
    if culprit.pattern == "factor":
        factor, hint = _factor(seen, culprit.factor)
        return f"{name} gets {factor} times the right one{hint}"
    if all(look.stood_still for look in culprit.looks):
        return f"{name} gets a gradient, though the output does not change with it"
    size = abs(worst.difference) / max(abs(worst.reference), abs(worst.claimed))
    return f"{name} is off by {percent(size)}"


def _factor(seen: Measured, factor: float) -> tuple[str, str]:
    """The factor in digits, and where it comes from if it is a length (a mean against a sum)."""
    for leaf in seen.plan.probe.problem.leaves:
        for n in {*leaf.shape, leaf.size} if leaf.dtype else ():
            if n > 2 and abs(factor * n - 1) < 1e-6:
                return f"1/{n}", f" ({n} is a length of {leaf.path})"
            if n > 2 and abs(factor / n - 1) < 1e-6:
                return f"{n}", f" ({n} is a length of {leaf.path})"
    if abs(factor - 1) < 1e-3:
        return f"1 {'+' if factor > 1 else '-'} {abs(factor - 1):.2g}", ""
    return f"{factor:.4g}", ""


def table(seen: Measured) -> Evidence:
    """One row for each accused input: claimed, reference, bound, ratio."""
    rows: list[tuple[Scalar, ...]] = []
    for culprit in seen.culprits:
        c = culprit.worst
        rows.append((seen.name(culprit.index), c.claimed, c.reference, c.bound, c.ratio))
    return Evidence(
        name="inputs",
        title="derivative along a random direction in one input",
        columns=("input", "claimed", "reference", "bound", "claimed/reference"),
        rows=tuple(rows),
    )


def steps(seen: Measured, culprit: Culprit) -> Evidence:
    """The difference quotients of one input against the step, for a plot."""
    look = culprit.looks[0]
    column = look.comparisons.index(strongest(look.comparisons))
    ladder, claimed = look.line.ladder, look.comparisons[column].claimed
    rows = tuple(
        (float(h), float(d[column] / (2 * h)), claimed - float(d[column] / (2 * h)))
        for h, d in zip(ladder.steps, ladder.first, strict=True)
    )
    return Evidence(
        name="differences",
        title=f"central differences against step, input {seen.name(culprit.index)}",
        columns=("step [input size]", "difference quotient", "claimed minus quotient"),
        rows=rows,
    )


def loss(seen: Measured, item: Lossy) -> Finding:
    """The finding on a gradient that is right in float64 only."""
    name, dtype = seen.name(item.index), seen.plan.asis.dtype
    return Finding(
        code="low-precision",
        severity="fail",
        where=name,
        message=f"the {dtype} gradient for {name} differs from the float64 one by "
        f"{percent(item.loss)}",
        numbers=(("loss", item.loss), ("allowed", item.allowed)),
    )
