"""A wrong gradient in words and numbers: which input, what is wrong with it, what to look for."""

from __future__ import annotations

import math

from pytest_gradcheck.checks.compare import strongest
from pytest_gradcheck.checks.locate import Culprit
from pytest_gradcheck.checks.measured import Measured
from pytest_gradcheck.checks.patterns import Diagnosis, Place
from pytest_gradcheck.checks.power import percent
from pytest_gradcheck.checks.rounding import Lossy
from pytest_gradcheck.errors import listed
from pytest_gradcheck.limits import Scalar
from pytest_gradcheck.results import Evidence, Finding

EXACT = 1e-6  # relative; what two looks can tell at least
CONSTANTS = {
    "pi": math.pi,
    "2 pi": 2 * math.pi,
    "1/pi": 1 / math.pi,
    "1/(2 pi)": 1 / (2 * math.pi),
    "180/pi, degrees": 180 / math.pi,
    "pi/180, degrees": math.pi / 180,
    "ln 2": math.log(2),
    "1/ln 2": 1 / math.log(2),
    "ln 10": math.log(10),
    "1/ln 10": 1 / math.log(10),
    "root of 2": math.sqrt(2),
    "1/root of 2": math.sqrt(0.5),
    "root of 2 pi": math.sqrt(2 * math.pi),
}
# For each pattern that one sentence tells: the input's {name}, {detail} and {factor} found.
SENTENCES = {
    "missing": "none reaches {name}, though the output depends on it",
    "zero": "{name} gets zero, though the output depends on it",
    "sign": "{name} has the wrong sign",
    "factor": "{name} gets {factor} times the right one",
    "transposed": "{name} gets the right one transposed",
    "adjoint": "{name} gets the product with the Jacobian, not with its transpose",
    "triangle": "{name} is taken for symmetric; only its {detail} triangle is read",
    "rolled": "{name} gets the right one shifted by one element",
    "flipped": "{name} gets the right one in reverse order",
    "conjugate": "{name} gets the complex conjugate of the right one",
    "swapped": "{name} gets another one; {detail} has got the right one",
    "exchanged": "in {name} the cotangents of {detail} are swapped",
    "mean": "{name} lacks a term of the normalisation over {detail}",
    "cotangent": "{name} gets the same one for every upstream cotangent",
    "broadcast": "{name} gets {detail}",
    "rounded": "{name} is off by as much as {detail} rounds",
    "output": "{name} is wrong only in the derivative of {detail}",
}
# Those with a code of their own; the rest is a wrong gradient of no known form.
PATTERNS = (*SENTENCES, "offset", "term", "masked", "element")


def accusation(seen: Measured, culprit: Culprit) -> Finding:
    """The finding on one input."""
    is_place = culprit.pattern == "element"
    shown = culprit.diagnosis.places[0].comparison if is_place else culprit.worst
    numbers = [
        ("claimed", shown.claimed),
        ("reference", shown.reference),
        ("bound", shown.bound),
        ("ratio", shown.ratio),
    ]
    told = {"factor": culprit.diagnosis.factor, "share": culprit.diagnosis.share}
    numbers += [(name, number) for name, number in told.items() if not math.isnan(number)]
    return Finding(
        code=f"gradient-{culprit.pattern}" if culprit.pattern != "other" else "wrong-gradient",
        severity="fail",
        where=_names(seen, culprit)[0],
        message=_sentence(seen, culprit),
        numbers=tuple(numbers),
    )


def _names(seen: Measured, culprit: Culprit) -> list[str]:
    """Paths of what is wrong: the input, or its wrong elements with their indices."""
    if culprit.pattern == "element":
        return [_place(seen, culprit, place) for place in culprit.diagnosis.places]
    return [seen.name(culprit.index)]


def _place(seen: Measured, culprit: Culprit, place: Place) -> str:
    index = f"[{', '.join(map(str, place.index))}]" if place.index else ""
    return seen.name(culprit.index) + index


def _sentence(seen: Measured, culprit: Culprit) -> str:
    found, names = culprit.diagnosis, _names(seen, culprit)
    if found.pattern == "other":
        return _unexplained(seen, culprit, names[0])
    if found.pattern == "element":
        hint = f"; no other is {found.detail}" if found.detail else ""
        return _scaled(seen, names, found.factor) + hint
    if found.pattern == "masked":
        return f"{_scaled(seen, names, found.factor)}, only {found.detail}"
    if found.pattern in ("offset", "term"):
        return _added(seen, culprit.index, found, names[0])
    factor, hint = _factor(seen, found.factor)
    told = SENTENCES[found.pattern].format(name=names[0], detail=found.detail, factor=factor)
    if found.pattern in ("rolled", "flipped") and found.detail:
        return f"{told} along {found.detail}"
    return told + (hint if found.pattern == "factor" else "")


def _added(seen: Measured, index: int, found: Diagnosis, name: str) -> str:
    """What was added to or left out of the right gradient."""
    right = f"{name} gets the right one {'minus' if found.factor < 0 else 'plus'} "
    if math.isnan(found.factor):  # another one for each upstream cotangent
        return right + (f"a multiple of {found.detail}" if found.detail else "a constant")
    # Measured to no more digits than these.
    size = float(f"{abs(found.factor):.4g}")
    factor, _ = _factor(seen, size if size == 1 else abs(found.factor))
    if not found.detail:
        is_one = seen.plan.probe.problem.inputs[index].size == 1
        return f"{right}{factor}" + ("" if is_one else " in every element")
    return right + (found.detail if factor == "1" else f"{factor} times {found.detail}")


def _unexplained(seen: Measured, culprit: Culprit, name: str) -> str:
    worst, found = culprit.worst, culprit.diagnosis
    if all(look.stood_still for look in culprit.looks):
        return f"{name} gets a gradient, though the output does not change with it"
    if is_flat(culprit):
        return f"{name} gets a gradient, though the function is flat along it"
    size = abs(worst.difference) / max(abs(worst.reference), abs(worst.claimed))
    told = f"{name} is off by {percent(size)}"
    if found.detail:
        return f"{told}, in {found.detail}"
    places = [_place(seen, culprit, place) for place in found.places]
    return told + (f", most of it in {listed(places)}" if places else "")


def is_flat(culprit: Culprit) -> bool:
    """Whether the right gradient is zero and nothing else is known of the claimed one."""
    known = [c for look in culprit.looks for c in look.comparisons if c.is_known]
    return culprit.pattern == "other" and all(abs(c.reference) <= c.bound for c in known)


def _scaled(seen: Measured, names: list[str], factor: float) -> str:
    """What a part of a gradient gets."""
    name = listed(names)
    if factor == 0:
        return f"{name} gets zero"
    if math.isnan(factor):
        return f"{name} {'are' if len(names) > 1 else 'is'} wrong"
    if abs(factor + 1) < 1e-3:
        return f"{name} has the wrong sign"
    return f"{name} gets {_factor(seen, factor)[0]} times the right one"


def _factor(seen: Measured, factor: float) -> tuple[str, str]:
    """The factor in digits, and where it comes from if it is a length or a known constant."""
    for leaf in seen.plan.probe.problem.leaves:
        for n in {*leaf.shape, leaf.size} if leaf.dtype else ():
            if n > 2 and abs(factor * n - 1) < EXACT:
                return f"1/{n}", f" ({n} is a length of {leaf.path})"
            if n > 2 and abs(factor / n - 1) < EXACT:
                return f"{n}", f" ({n} is a length of {leaf.path})"
    for name, constant in CONSTANTS.items():
        if abs(factor / constant - 1) < EXACT:
            return f"{factor:.4g}", f" ({name})"
    if EXACT / 1000 < abs(factor - 1) < 1e-3:
        return f"1 {'+' if factor > 1 else '-'} {abs(factor - 1):.2g}", ""
    return f"{factor:.4g}", ""


def hooks(seen: Measured) -> tuple[Finding, ...]:
    """A note on the accused inputs whose gradient a hook of the user's may have changed."""
    inputs = seen.plan.probe.problem.inputs
    names = [seen.name(c.index) for c in seen.culprits if inputs[c.index].hooked]
    if not names:
        return ()
    told = f"a hook on {', '.join(names)} (register_hook) ran, and may have changed its gradient"
    return (Finding(code="gradient-hook", severity="note", where=names[0], message=told),)


def table(seen: Measured) -> Evidence:
    """One row for each accused input or element: claimed, reference, bound, ratio."""
    rows: list[tuple[Scalar, ...]] = []
    for culprit in seen.culprits:
        shown = [(_place(seen, culprit, p), p.comparison) for p in culprit.diagnosis.places]
        if culprit.pattern != "element":
            shown.insert(0, (seen.name(culprit.index), culprit.worst))
        rows += [(name, c.claimed, c.reference, c.bound, c.ratio) for name, c in shown]
    return Evidence(
        name="inputs",
        title="derivative along a random direction in one input, or of one element",
        columns=("input", "claimed", "reference", "bound", "ratio"),
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
