"""Every limit in one table, and the frozen values that a test is judged by.

Flags, ini names, marker arguments, call arguments and the reference page (``docs/limits.md``) are
generated from ``LIMITS``. Precedence: call > closest marker > hook > flag > ini > default.

Longer than 300 lines, since it is one table. Loaded at every start of pytest: named tuples, which
are made in a tenth of a dataclass's time.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Literal, NamedTuple, get_args

from pytest_gradcheck.errors import UsageError

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

Check = Literal["gradient", "flow", "clipping", "step", "match", "hyper"]
Scalar = str | bool | int | float | None
Value = float | str
Source = Literal["call", "marker", "hook", "flag", "ini", "default"]
SOURCES: tuple[Source, ...] = get_args(Source)

# The verbs, as fixtures and markers are called, and what each one checks, as results call it; its
# plain functions are ``check_`` and ``assert_`` with that name.
VERBS: dict[str, Check] = {
    "gradcheck": "gradient",
    "gradflow": "flow",
    "gradclip": "clipping",
    "gradstep": "step",
}

# Smallest relative error of an input's gradient that must be visible. In float64, or promoted to
# it, 1 % costs one or two directions; natively, what central differences of that precision certify
# (measured bounds of native differences: f32 1e-4, f16 6e-2, bf16 0.3 of the derivative).
RESOLUTION = {"float64": 0.01, "float32": 0.02, "float16": 0.5, "bfloat16": 0.5}
# One undetected error in 100,000 checks that each hold one of exactly that size, and one in a
# million where it is ten times larger: what one direction can tell in float64.
MISS_PROBABILITY = 1e-5
# Error of a derivative that is right, norm-wise, beside differences of the same precision: about
# sqrt(eps) in float64, some hundred units in the last place in the others.
# A promoted function is held to four units of float32: its owner never sees it in float64, and a
# solver in it may stop there.
PROMOTED = "what is promoted"
TOLERANCE = {
    "float64": 1e-8,
    PROMOTED: 5e-7,
    "float32": 1e-4,
    "float16": 2e-2,
    "bfloat16": 5e-2,
}
# What a right gradient may lose in its own precision beside float64: in float32 five units of the
# TF32 arithmetic (2**-10) that GPUs use for it; 50 units in float16, 13 in bfloat16.
ROUNDING = {"float64": 1e-8, "float32": 5e-3, "float16": 5e-2, "bfloat16": 1e-1}

# Flow of the gradient at the first layers over that at the last. Networks that train have 0.014 to
# 11 (benchmarks/flow.py); one that is six depth scales deep, beyond which training fails
# (Schoenholz et al. 2017), has exp(-6) = 2.5e-3 left.
VANISH, EXPLODE = 1e-2, 1e2
# As samples become parallel with depth, half of the units of healthy rectifiers are on for none
# (Poole et al. 2016; up to 0.54 in benchmarks/flow.py).
DEAD = 0.6
SATURATED = 0.5  # of the units, as SageMaker Debugger and DeepDiagnosis have it
UPDATE_RATIO = 1.0  # a step as large as the weights leaves nothing of their initialisation
# Error of a norm, a factor or an element that a right clip may leave: 16 units in the last place;
# float32 and below lose a few more in norms that are reduced in parallel.
CLIP_ROUNDING = {"float64": 1e-14, "float32": 4e-6, "float16": 1.6e-2, "bfloat16": 0.125}

# A received gradient beside a fresh one of the same precision: the same code on the same numbers,
# but sums over micro-batches, clipping and unscaling round anew; a wrong one is off by 1e-2. In
# float64 one that went through float32 is off by 2e-8, and right ones by less than 1e-9
# (benchmarks/steps.py).
STEP_GRADIENT = {"float64": 1e-9, "float32": 2e-4, "float16": 2e-2, "bfloat16": 5e-2}
# An update beside its replay in float64, beyond the rounding of the parameter itself.
STEP_REPLAY = {"float64": 1e-7, "float32": 2e-4, "float16": 2e-2, "bfloat16": 5e-2}
# The slope of the loss by differences beside the gradient, beyond the error of the differences.
STEP_SLOPE = {"float64": 1e-4, "float32": 1e-2, "float16": 0.1, "bfloat16": 0.2}


class LimitUse(NamedTuple):
    """A limit as it was used: its value and the place that set it.

    ``place`` tells where the source is written (an option, a marker, a dtype).
    """

    name: str
    value: Scalar
    source: Source
    place: str = ""


class Limit(NamedTuple):
    """One row of the table.

    Args:
        name: As written in a marker or a call; flags and ini names are derived from it.
        checks: The verbs (marker names) that read it.
        default: A value, or one for each precision.
        help: One phrase, capital first, no full stop.
        source: Where the default comes from.
        low: Lower end of the allowed range, not allowed itself.
        high: Upper end of the allowed range, allowed itself.
        is_whole: Whether it counts something.
        choices: The allowed words, for a limit that is not a number.
        unit: Unit of the value.
        suffix: Ends a number in another unit, such as the ``s`` in ``30s``; the default is then a
            word.
    """

    name: str
    checks: tuple[str, ...]
    default: Value | Mapping[str, Value]
    help: str
    source: str
    low: float = -math.inf
    high: float = math.inf
    is_whole: bool = False
    choices: tuple[str, ...] = ()
    unit: str = ""
    suffix: str = ""

    @property
    def flag(self) -> str:
        """The command-line flag."""
        return "--gradcheck-" + self.name.replace("_", "-")

    @property
    def ini(self) -> str:
        """The ini name."""
        return "gradcheck_" + self.name

    @property
    def allowed(self) -> str:
        """The allowed values in words."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        if self.suffix:
            return f"a number of {self.unit}, seconds such as 30{self.suffix}, or {self.default}"
        if self.is_whole:
            return f"a whole number from {self.low + 1:g} to {self.high:g}"
        return f"a number in ({self.low:g}, {self.high:g}]"

    def default_for(self, dtype: str) -> Value:
        """The default in a precision; that of float64 for one that has none of its own."""
        if isinstance(self.default, Mapping):
            dtype = "float16" if dtype == "tensorfloat32" else dtype  # the same unit
            return self.default.get(dtype, self.default["float64"])
        return self.default

    def parse(self, value: object, place: str) -> Value:
        """The value, checked; ``place`` says where it was written.

        Raises:
            UsageError: The value is not allowed; names place, value and what is allowed.
        """
        if self.choices:
            if isinstance(value, str) and value in self.choices:
                return value
            raise UsageError(f"{place}: {value!r} is not allowed; allowed: {self.allowed}")
        if self.suffix and value == self.default:
            return str(value)
        is_other = bool(self.suffix) and isinstance(value, str) and value.endswith(self.suffix)
        number = _number(str(value).removesuffix(self.suffix) if is_other else value)
        is_part = self.is_whole and number is not None and not number.is_integer()
        if number is None or is_part or not self.low < number <= self.high:
            raise UsageError(f"{place}: {value!r} is not allowed; allowed: {self.allowed}")
        return f"{number:g}{self.suffix}" if is_other else number


def _number(value: object) -> float | None:
    if isinstance(value, bool):
        return None
    try:
        return float(value)  # type: ignore[arg-type]  # anything float() takes is welcome
    except (OverflowError, TypeError, ValueError):
        return None


LIMITS: tuple[Limit, ...] = (
    Limit(
        name="resolution",
        checks=("gradcheck",),
        default=RESOLUTION,
        help="Largest relative error of an input's gradient that may stay unseen in a pass; the "
        "tolerance where that is more",
        source="1 % costs one or two directions in float64; natively what differences certify",
        low=0.0,
        high=1.0,
        unit="relative, norm of the input's gradient",
    ),
    Limit(
        name="miss_probability",
        checks=("gradcheck",),
        default=MISS_PROBABILITY,
        help="Probability with which an error as large as the resolution may be missed",
        source="one missed error in 100,000 checks",
        low=0.0,
        high=0.5,
        unit="probability",
    ),
    Limit(
        name="tolerance",
        checks=("gradcheck",),
        default=TOLERANCE,
        help="Relative error of an input's gradient accepted beyond the bound of the reference",
        source="rounding of right gradients, norm-wise, in each precision",
        low=0.0,
        high=1.0,
        unit="relative, norm of the input's gradient",
    ),
    Limit(
        name="rounding",
        checks=("gradcheck",),
        default=ROUNDING,
        help="Relative difference accepted between a gradient in its own precision and in float64",
        source="five units of TF32 for float32; 50 of float16, 13 of bfloat16",
        low=0.0,
        high=1.0,
        unit="relative, norm of the input's gradient",
    ),
    Limit(
        name="at_kink",
        checks=("gradcheck",),
        default="accept",
        help="What to do at a kink: accept a value between both slopes, nudge the point, or fail",
        source="a value between the slopes on both sides is right",
        choices=("accept", "nudge", "fail"),
    ),
    Limit(
        name="budget",
        checks=("gradcheck",),
        default="unlimited",
        help="Evaluations, or seconds such as 30s, after which a check stops looking",
        source="a check stops by itself when more would not help",
        low=0.0,
        unit="evaluations",
        suffix="s",
    ),
    Limit(
        name="vanish",
        checks=("gradflow",),
        default=VANISH,
        help="Smallest flow of gradient at the first layers, over that at the last, that passes",
        source="six depth scales (Schoenholz et al. 2017) leave 2.5e-3; healthy networks 1.4e-2",
        low=0.0,
        high=1.0,
        unit="ratio; twice its decades for the size of the data on their way forward",
    ),
    Limit(
        name="explode",
        checks=("gradflow",),
        default=EXPLODE,
        help="Largest flow of gradient at the first layers, over that at the last, that passes",
        source="the inverse of vanish; healthy networks reach 11",
        low=1.0,
        high=1e30,
        unit="ratio",
    ),
    Limit(
        name="dead",
        checks=("gradflow",),
        default=DEAD,
        help="Largest share of a layer's units that may be off for every sample",
        source="half of them in healthy deep rectifier networks, as samples become parallel",
        low=0.0,
        high=1.0,
        unit="share of units",
    ),
    Limit(
        name="saturated",
        checks=("gradflow",),
        default=SATURATED,
        help="Largest share of a layer's sigmoid or tanh units that may be saturated",
        source="half, as in SageMaker Debugger and DeepDiagnosis; of units whose mean slope is 1 %",
        low=0.0,
        high=1.0,
        unit="share of units",
    ),
    Limit(
        name="update_ratio",
        checks=("gradflow",),
        default=UPDATE_RATIO,
        help="Largest step of an optimizer, over the size of the weights it moves, that passes",
        source="a step as large as the weights leaves nothing of their initialisation",
        low=0.0,
        high=1e6,
        unit="ratio of norms",
    ),
    Limit(
        name="clip_rounding",
        checks=("gradclip",),
        default=CLIP_ROUNDING,
        help="Relative error accepted of a clipped norm, of its factor and of the returned norm",
        source="16 units in the last place; a wrong clip is off by its threshold",
        low=0.0,
        high=1.0,
        unit="relative",
    ),
    Limit(
        name="step_calls",
        checks=("gradstep",),
        default=7.0,
        help="Least number of calls of a step, and of updates",
        source="RAdam changes its formula after the fifth update; state shows at the second",
        low=0.0,
        high=1000.0,
        is_whole=True,
        unit="calls",
    ),
    Limit(
        name="step_fresh",
        checks=("gradstep",),
        default=1.0,
        help="First calls of a large training whose gradient is held against a fresh one, beside "
        "those that are unlike these (seven and the last where it is not seen what a step "
        "differentiates); as many as there are: all",
        source="a fresh gradient costs what a step costs, and what goes on like the first call is "
        "seen without",
        low=0.0,
        high=1000.0,
        is_whole=True,
        unit="calls",
    ),
    Limit(
        name="step_gradient",
        checks=("gradstep",),
        default=STEP_GRADIENT,
        help="Relative difference accepted between a received gradient and the right one",
        source="rounding of sums, of clipping and of unscaling in each precision",
        low=0.0,
        high=1.0,
        unit="relative, norm of each tensor",
    ),
    Limit(
        name="step_replay",
        checks=("gradstep",),
        default=STEP_REPLAY,
        help="Relative difference accepted between an update and its replay in float64",
        source="rounding of an optimizer's arithmetic in each precision",
        low=0.0,
        high=1.0,
        unit="relative, norm of each update",
    ),
    Limit(
        name="step_slope",
        checks=("gradstep",),
        default=STEP_SLOPE,
        help="Relative difference accepted between the gradient and the slope of the loss",
        source="kinks that a difference crosses; a gradient that is wrong is off by more",
        low=0.0,
        high=1.0,
        unit="relative, slope along the gradient",
    ),
    Limit(
        name="step_lost",
        checks=("gradstep",),
        default=0.1,
        help="Share of updates of single weights that may be lost to rounding",
        source="float32 loses hardly any; bfloat16 without master weights most",
        low=0.0,
        high=1.0,
        unit="share",
    ),
    Limit(
        name="undecided",
        checks=tuple(VERBS),
        default="fail",
        help="What an undecided verdict does to its test",
        source="never pass without power",
        choices=("warn", "fail"),
    ),
    Limit(
        name="vacuous",
        checks=tuple(VERBS),
        default="fail",
        help="What a vacuous verdict does to its test",
        source="never pass without power",
        choices=("warn", "fail"),
    ),
)


@functools.cache
def limits_of(check: str) -> Mapping[str, Limit]:
    """The limits that a verb reads, by name."""
    return {limit.name: limit for limit in LIMITS if check in limit.checks}


class Limits(NamedTuple):
    """The limits of one verb, each with the place that set it; defaults where nothing did."""

    check: str
    uses: tuple[LimitUse, ...] = ()

    def narrowed(self, source: Source, place: str, values: Mapping[str, object]) -> Limits:
        """These limits with ``values`` on top.

        Raises:
            UsageError: A name that the verb does not read, or a value that is not allowed.
        """
        known = limits_of(self.check)
        unknown = sorted(set(values) - set(known))
        if unknown:
            rest = f"; all else goes into the call of {self.check}" if source == "marker" else ""
            raise UsageError(
                f"{place}: {self.check} has no argument {unknown[0]!r}; it takes "
                f"{', '.join(known)}{rest}"
            )
        added = tuple(
            LimitUse(
                name=name,
                value=known[name].parse(value, f"{place}: {name}"),
                source=source,
                place=place,
            )
            for name, value in values.items()
        )
        kept = tuple(use for use in self.uses if use.name not in values)
        return Limits(self.check, kept + added)

    def use(self, name: str, dtype: str = "float64") -> LimitUse:
        """The limit as it applies in a precision, with its source."""
        for use in self.uses:
            if use.name == name:
                return use
        value = limits_of(self.check)[name].default_for(dtype)
        return LimitUse(name=name, value=value, source="default", place=dtype)

    def number(self, name: str, dtype: str = "float64") -> float:
        """The value of a numeric limit in a precision."""
        return float(self.use(name, dtype).value)  # type: ignore[arg-type]  # parsed as a number

    def used(self, dtype: str, **others: str) -> tuple[LimitUse, ...]:
        """Every limit of the verb as it applies, in the order of the table.

        Args:
            dtype: The precision it applies in.
            **others: Precisions of limits that apply in another one, by name.
        """
        return tuple(self.use(name, others.get(name, dtype)) for name in limits_of(self.check))
