"""What a check could have seen and could not, in words and numbers."""

from __future__ import annotations

from pytest_gradcheck.checks.measured import Measured
from pytest_gradcheck.checks.rounding import Lossy
from pytest_gradcheck.limits import Limits
from pytest_gradcheck.numerics.precision import real_part
from pytest_gradcheck.results import Evidence, Finding

HUGE = 1e30  # a mask of the most negative number, most often


def independent(seen: Measured, index: int) -> Finding:
    """An input whose gradient is zero, and that moves the output not at all or in steps."""
    name = seen.name(index)
    looks = [look for look in seen.survey.looks if index in look.inputs]
    if any(look.climbs_stairs for look in looks):
        return Finding(
            code="staircase",
            severity="warn",
            where=name,
            message=f"the output moves in steps with {name}, and its gradient is zero",
        )
    return Finding(
        code="independent-input",
        severity="warn",
        where=name,
        message=f"the output does not change with {name}, and its gradient is zero",
    )


def faint(seen: Measured, index: int) -> Finding:
    """An input whose influence drowns in the rounding of the output."""
    name = seen.name(index)
    return Finding(
        code="below-noise",
        severity="note",
        where=name,
        message=f"the gradient of {name} moves the output by less than its rounding error",
        numbers=(("gradient", seen.survey.gradient_size(index)),),
    )


def coarse(seen: Measured, index: int) -> Finding:
    """An input whose small gradient was seen less finely than asked."""
    name, resolution = seen.name(index), seen.survey.resolution(index)
    return Finding(
        code="coarse",
        severity="note",
        where=name,
        message=f"the gradient of {name} is small beside the others; in it, errors above "
        f"{percent(resolution)} would have been seen",
        numbers=(("resolution", resolution),),
    )


def blindness(resolution: float) -> str:
    """The smallest visible error in words."""
    if resolution >= 1:
        return "an error as large as the gradient"
    return f"an error of {percent(resolution)} of the gradient"


def percent(value: float) -> str:
    """A relative number as a person reads it."""
    return f"{value:.2g}" if value < 1e-4 else f"{100 * value:.3g} %"


def sharper(seen: Measured, resolution: float, limits: Limits) -> str:
    """What to do so that more would be seen."""
    accepted = limits.number("tolerance", seen.plan.claimed_in)
    if seen.survey.demand.resolution <= accepted:
        return (
            f"resolution={seen.survey.demand.resolution:g} asks for errors that "
            f"tolerance={accepted:g} takes as right: give a resolution above the tolerance"
        )
    huge = [
        name
        for name, scale in zip(seen.plan.probe.problem.names, seen.plan.probe.scales, strict=True)
        if scale > HUGE
    ]
    if huge:
        return f"leave {huge[0]} out with wrt=: beside numbers so large nothing else shows"
    if "not promoted" in seen.plan.reason:
        return (
            "make the function work in float64: pass the module itself, or call .double() on "
            "what the function closes over"
        )
    if resolution < 0.5:
        return f"give a smoother point, or accept it with resolution={2 * resolution:.1g}"
    return "give a smoother point, or a function with less rounding inside"


def _budget(limits: Limits) -> str:
    value = limits.use("budget").value
    return f"{value:g} evaluations" if isinstance(value, float) else str(value)


def spent(seen: Measured, limits: Limits, dull: list[int]) -> Finding:
    """What a budget left unchecked."""
    names = ", ".join(seen.name(i) for i in dull[:5]) + (", …" if len(dull) > 5 else "")
    return Finding(
        code="budget",
        severity="fail",
        message=f"the budget ({_budget(limits)}) was spent; left unchecked: {names}",
    )


def resolutions(seen: Measured, inputs: list[int]) -> Evidence:
    """What would have been seen, input by input."""
    survey = seen.survey
    return Evidence(
        name="resolution",
        title="smallest relative error of each input's gradient that would have been seen",
        columns=("input", "resolution [relative]", "gradient size [input size]"),
        rows=tuple((seen.name(i), survey.resolution(i), survey.gradient_size(i)) for i in inputs),
    )


def circumstances(seen: Measured) -> tuple[Finding, ...]:
    """What limits the meaning of the verdict, whatever it is."""
    plan = seen.plan
    findings: list[Finding] = []
    if not plan.native.is_repeatable:
        findings.append(
            Finding(
                code="nondeterministic",
                severity="warn",
                message="two equal calls of the function differ, random state set back in between",
                numbers=(("difference", plan.native.wobble),),
            )
        )
    cut = [leaf for leaf in plan.native.outputs.leaves if leaf.dtype and not leaf.trainable]
    if cut and len(cut) < sum(bool(leaf.dtype) for leaf in plan.native.outputs.leaves):
        findings += [
            Finding(
                code="detached-output",
                severity="note",
                where=leaf.path,
                message=f"output {leaf.path} is declared not differentiable and was left out",
            )
            for leaf in cut
        ]
    findings += [
        Finding(
            code="padding-row",
            severity="note",
            where=leaf.path,
            message=f"row {row} of {leaf.path} is declared to be padding, and was left out",
        )
        for leaf in plan.probe.problem.inputs
        for row in leaf.padding
    ]
    if "not promoted" in plan.reason and real_part(plan.native.precision) != "float64":
        findings.append(
            Finding(
                code="native-precision",
                severity="note",
                message=f"the reference was computed in {plan.reason}",
            )
        )
    explained = [item for item in seen.lossy if item.arithmetic]
    if explained:
        findings.append(_by_arithmetic(seen, explained))
    if seen.survey.inside:
        asked = percent(seen.survey.demand.resolution)
        findings.append(
            Finding(
                code="inner-precision",
                severity="warn",
                message=f"the function rounds inside as {seen.survey.inside} does, so errors "
                f"below {asked} of a gradient were not asked to show",
                numbers=(("asked", seen.survey.demand.resolution),),
            )
        )
    return tuple(findings)


def _by_arithmetic(seen: Measured, explained: list[Lossy]) -> Finding:
    worst, dtype = max(explained, key=lambda item: item.loss), seen.plan.asis.dtype
    others = f" (and {len(explained) - 1} more)" if len(explained) > 1 else ""
    return Finding(
        code="lower-arithmetic",
        severity="note",
        where=seen.name(worst.index),
        message=f"the {dtype} gradient for {seen.name(worst.index)}{others} differs from the "
        f"float64 one by {percent(worst.loss)}, as the function's arithmetic in "
        f"{worst.arithmetic} explains",
        numbers=(("loss", worst.loss), ("allowed", worst.allowed)),
    )
