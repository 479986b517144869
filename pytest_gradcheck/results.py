"""Frozen values of a verdict, and their form as plain builtins (the report schema).

A value here holds strings, booleans, Python numbers, None and tuples only: no array of any
framework, no enum and no open mapping, so that a result can cross a process boundary and be
compared, hashed and written as it is.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from pytest_gradcheck.limits import Check, LimitUse, Scalar

SCHEMA_VERSION = 1

Verdict = Literal["pass", "fail", "undecided", "vacuous"]
Severity = Literal["fail", "warn", "note"]

CHECKS: tuple[Check, ...] = get_args(Check)
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
SEVERITIES: tuple[Severity, ...] = get_args(Severity)

# Strict JSON has no non-finite number; these strings stand for them where a number is expected.
_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was seen, and where.

    Args:
        code: Stable kebab-case name, documented in ``docs/findings.md``.
        severity: ``fail`` decides the verdict, ``warn`` deserves a look, ``note`` explains.
        where: Path of the input, layer or parameter; empty for the whole check.
        message: One sentence.
        numbers: Pairs of name and number.
    """

    code: str
    severity: Severity
    message: str
    where: str = ""
    numbers: tuple[tuple[str, int | float], ...] = ()

    def number(self, name: str) -> int | float:
        """The number called ``name``; KeyError when the finding has none of that name."""
        return dict(self.numbers)[name]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """A named table: what was measured, in a form that can be printed or plotted.

    Args:
        name: Kebab-case name, unique within a result.
        title: One line for a heading.
        columns: Column names, with the unit in brackets where there is one.
        rows: One tuple a row, as long as ``columns``.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Scalar, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """The circumstances of a check.

    Args:
        backend: Name of the backend, such as ``torch``.
        device: Device of the inputs as the framework names it.
        dtype: Precision of the inputs as given.
        precision: Precision in which the reference was computed, and why.
        seed: Seed of every random direction.
        evaluations: Evaluations of the function, its derivatives not counted.
        derivatives: Evaluations of the derivative under test.
        seconds: Wall time.
        location: ``file:line`` of the call, empty when unknown.
        test: Node id of the test, empty outside pytest.
    """

    backend: str = ""
    device: str = ""
    dtype: str = ""
    precision: str = ""
    seed: int = 0
    evaluations: int = 0
    derivatives: int = 0
    seconds: float = 0.0
    location: str = ""
    test: str = ""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Result:
    """What a check found.

    Args:
        check: Which verb was asked.
        label: Name of the function, model or step under test.
        verdict: ``pass``, ``fail``, ``undecided`` or ``vacuous``; only ``pass`` is green.
        headline: One sentence under 100 characters; the first line of a failure.
        findings: Worst first.
        evidence: Tables to print or plot.
        limits: Every limit that was used, with the place that set it.
        context: Backend, device, seed, cost and place.
        advice: What to try next, one sentence each.
    """

    check: Check
    label: str
    verdict: Verdict
    headline: str
    findings: tuple[Finding, ...] = ()
    evidence: tuple[Evidence, ...] = ()
    limits: tuple[LimitUse, ...] = ()
    context: Context = field(default_factory=Context)
    advice: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """Whether it is green, so that ``assert check_gradient(...)`` fails where it is not."""
        return self.verdict == "pass"

    def __repr__(self) -> str:
        """In short: pytest shows it beside an assertion on a part of it."""
        return f"Result(verdict={self.verdict!r}, headline={self.headline!r})"

    def __str__(self) -> str:
        """The headline, what was found and what to try, for whoever prints it."""
        found = [f"  {f.severity}: {f.message} [{f.code}]" for f in self.findings]
        return "\n".join([self.headline, *found, *(f"try: {told}" for told in self.advice)])

    def table(self, name: str) -> Evidence | None:
        """The evidence called ``name``, or None."""
        return next((item for item in self.evidence if item.name == name), None)

    def to_plain(self) -> dict[str, Any]:
        """The result as builtins that strict JSON can hold: dict, list, str, numbers, bool, None.

        Non-finite floats become the strings ``NaN``, ``Infinity`` and ``-Infinity``; lone
        surrogates in text are written as backslash escapes.
        """
        plain: dict[str, Any] = _plain(self)
        return plain


def _plain(value: Any) -> Any:  # Any: walks every field type of the values above
    if isinstance(value, Finding):
        fields = {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return fields | {"numbers": {escaped(name): _plain(n) for name, n in value.numbers}}
    if isinstance(value, LimitUse):
        return {name: _plain(item) for name, item in value._asdict().items()}
    if dataclasses.is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return _number(value)
    return escaped(value) if isinstance(value, str) else value


def _number(value: float) -> float | str:
    if math.isfinite(value):
        return float(value)  # NumPy's float64 is a float too, and no builtin
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def escaped(value: str) -> str:
    """A text in its plain form: without lone surrogates, and none that reads as a number."""
    text = value.encode("utf-8", "backslashreplace").decode("utf-8")
    return f"\\{text}" if text.lstrip("\\") in _NON_FINITE else text


def unescaped(value: str) -> str:
    """The text whose plain form is given."""
    return value[1:] if value.startswith("\\") and value.lstrip("\\") in _NON_FINITE else value


def _scalar(value: Any) -> Any:  # Any: a JSON scalar
    if isinstance(value, str):
        return _NON_FINITE[value] if value in _NON_FINITE else unescaped(value)
    return value


def _strings(plain: dict[str, Any]) -> dict[str, Any]:
    return {name: _scalar(value) for name, value in plain.items()}


def finding_from_plain(plain: dict[str, Any]) -> Finding:
    """The finding whose plain form is given."""
    numbers = tuple((unescaped(name), _scalar(n)) for name, n in plain["numbers"].items())
    return Finding(**_strings(plain) | {"numbers": numbers})


def evidence_from_plain(plain: dict[str, Any]) -> Evidence:
    """The table whose plain form is given."""
    return Evidence(
        name=unescaped(plain["name"]),
        title=unescaped(plain["title"]),
        columns=tuple(unescaped(column) for column in plain["columns"]),
        rows=tuple(tuple(_scalar(cell) for cell in row) for row in plain["rows"]),
    )


def result_from_plain(plain: dict[str, Any]) -> Result:
    """The result whose plain form is given; the inverse of ``Result.to_plain``."""
    return Result(
        check=plain["check"],
        label=unescaped(plain["label"]),
        verdict=plain["verdict"],
        headline=unescaped(plain["headline"]),
        findings=tuple(finding_from_plain(item) for item in plain["findings"]),
        evidence=tuple(evidence_from_plain(item) for item in plain["evidence"]),
        limits=tuple(LimitUse(**_strings(item)) for item in plain["limits"]),
        context=Context(**_strings(plain["context"])),
        advice=tuple(unescaped(line) for line in plain["advice"]),
    )
