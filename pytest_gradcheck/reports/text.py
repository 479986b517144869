"""Results as text for a terminal of 80 columns."""

from __future__ import annotations

import math
import shlex
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import replace

from pytest_gradcheck.limits import Scalar
from pytest_gradcheck.reports import chart
from pytest_gradcheck.reports.run import Run, Test
from pytest_gradcheck.results import Evidence, Result

WORST = 5  # rows of a table and lines of a summary; everything is in the JSON report
WIDTH = 80
SHOWN = (
    "inputs",
    "resolution",
    "clipping",
    "updates",
)  # the table of a failure: the first that is there
NEAR = 5e-3  # three digits show a ratio so close to 1 as 1


def failure(result: Result) -> str:
    """The message of a failed check: what, where, the numbers, what to try; first line alone."""
    parts = [
        [result.headline],
        _findings(result),
        _chart(result),
        _numbers(result),
        [line for advice in result.advice for line in _wrapped("try: ", advice)],
        _limits(result),
        _circumstances(result) if result.context.backend else [],
        _reproduce(result),
    ]
    return "\n".join(line for part in parts for line in part)


def _findings(result: Result) -> list[str]:
    told = {result.headline}
    lines = []
    for finding in result.findings[:WORST]:
        if not any(finding.message in line for line in told):
            lines += _wrapped(f"  {finding.severity}: ", f"{finding.message} [{finding.code}]")
    more = len(result.findings) - WORST
    return lines + ([f"  … and {more} more"] if more > 0 else [])


def _chart(result: Result) -> list[str]:
    """The flow of the gradient layer by layer, where that was measured."""
    layers = result.table("layers")
    where = result.findings[0].where if result.findings else ""
    lines = [] if layers is None else chart.bars(layers, "layer", "flow", where)
    heading = ["  flow of the gradient by layer, in the order of the data (log scale):"]
    return [*heading, *(f"  {line}" for line in lines)] if lines else []


def _numbers(result: Result) -> list[str]:
    shown = next((t for name in SHOWN if (t := result.table(name)) is not None), None)
    return [] if shown is None else ["  " + line for line in table(_compact(shown))]


def _compact(evidence: Evidence) -> Evidence:
    """The table with each reference and its bound in one column, ratios near 1 in full."""
    if not {"reference", "bound"} <= set(evidence.columns):
        return evidence
    rows = [dict(zip(evidence.columns, row, strict=True)) for row in evidence.rows]
    for row in rows:
        row["reference"] = f"{cell(row['reference'])} ± {cell(row.pop('bound'))}"
        row["ratio"] = _ratio(row.get("ratio"))
    heads = {"reference": "reference ± bound"}
    columns = [column for column in evidence.columns if column != "bound"]
    return replace(
        evidence,
        columns=tuple(heads.get(column, column) for column in columns),
        rows=tuple(tuple(row[column] for column in columns) for row in rows),
    )


def _ratio(value: Scalar) -> Scalar:
    """A ratio that three digits would show as 1 by its distance from it."""
    if not isinstance(value, float) or not 0 < abs(value - 1) < NEAR:
        return value
    return f"1 {'+' if value > 1 else '-'} {abs(value - 1):.2g}"


def table(evidence: Evidence) -> list[str]:
    """A table with aligned columns, the first few rows."""
    rows = [tuple(cell(value) for value in row) for row in evidence.rows[:WORST]]
    widths = [max(map(len, column)) for column in zip(evidence.columns, *rows, strict=True)]
    lines = [_row(r, widths) for r in [evidence.columns, *rows]]
    more = len(evidence.rows) - WORST
    return lines + ([f"… and {more} more"] if more > 0 else [])


def _row(cells: Sequence[str], widths: Sequence[int]) -> str:
    first = cells[0].ljust(widths[0])
    rest = (c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True))
    return "  ".join([first, *rest]).rstrip()


def cell(value: Scalar) -> str:
    """A value in a table: three significant digits."""
    if isinstance(value, float):
        return "-" if math.isnan(value) else f"{value + 0.0:.3g}"  # no negative zero
    return "-" if value is None else str(value)


def _limits(result: Result) -> list[str]:
    told = [
        f"{use.name}={cell(use.value)} ({use.source})"
        for use in result.limits
        if isinstance(use.value, float) or use.source != "default"
    ]
    return _wrapped("limits: ", ", ".join(told))


def _wrapped(head: str, sentence: str) -> list[str]:
    # Four columns are left for the "E   " that pytest puts before each line.
    return textwrap.wrap(
        sentence,
        WIDTH - 4,
        initial_indent=head,
        subsequent_indent=" " * len(head),
        break_long_words=False,
        break_on_hyphens=False,
    )


def _circumstances(result: Result) -> list[str]:
    context = result.context
    told = [
        f"{context.backend} on {context.device}",
        f"{context.dtype}",
        *([f"reference in {context.precision}"] if context.precision else []),
        *_counted(result),
    ]
    return _wrapped("checked: ", ", ".join(told))


def _counted(result: Result) -> list[str]:
    """What was run: passes forward and backward, or evaluations and derivatives."""
    context = result.context
    if result.check == "flow":
        noun = "pass" if context.evaluations == 1 else "passes"
        return [f"{context.evaluations} {noun} forward and backward"]
    counted = ((context.evaluations, "evaluation"), (context.derivatives, "derivative"))
    return [f"{count} {noun}{'' if count == 1 else 's'}" for count, noun in counted]


def _reproduce(result: Result) -> list[str]:
    context = result.context
    if not context.test:
        return [f"reproduce: call it with seed={context.seed}"]
    return [f"reproduce: pytest {shlex.quote(context.test)} --gradcheck-seed={context.seed}"]


def counts(results: Iterable[Result]) -> str:
    """How many checks gave which verdict, such as ``3 passed, 1 failed``."""
    words = {"pass": "passed", "fail": "failed", "undecided": "undecided", "vacuous": "vacuous"}
    verdicts = [result.verdict for result in results]
    return ", ".join(f"{verdicts.count(v)} {w}" for v, w in words.items() if v in verdicts)


def one_line(run: Run) -> str:
    """The whole run in one line, for ``-q``."""
    results = run.results
    noun = "check" if len(results) == 1 else "checks"
    return f"gradcheck: {len(results)} {noun}: {counts(results)}"


def summary(run: Run, verbosity: int) -> list[str]:
    """The lines of the summary section: counts, then what is not green; with ``-v`` everything.

    Of more than there is room for, what made a test fail comes first.
    """
    lines = [one_line(run).removeprefix("gradcheck: ")]
    shown = [(t, r) for t in run.final for r in t.results if verbosity > 0 or _is_news(r)]
    limit = len(shown) if verbosity > 0 else WORST
    if len(shown) > limit:
        shown.sort(key=lambda pair: (pair[0].outcome == "passed", pair[1].verdict == "pass"))
    for test, result in shown[:limit]:
        lines += _summary_lines(test, result)
    more = len(shown) - limit
    return lines + ([f"… and {more} more; -v shows all"] if more > 0 else [])


def _is_news(result: Result) -> bool:
    return result.verdict != "pass" or any(f.severity == "warn" for f in result.findings)


def _summary_lines(test: Test, result: Result) -> list[str]:
    is_wanted = result.verdict != "pass" and test.outcome == "passed"
    beside = " (the test passed)" if is_wanted else ""
    lines = [
        f"{result.verdict.upper()} {test.nodeid}{beside}",
        *_wrapped("  ", result.headline),
    ]
    if result.verdict == "pass":
        warned = (f for f in result.findings if f.severity == "warn")
        lines += [line for f in warned for line in _wrapped("  warn: ", f"{f.message} [{f.code}]")]
    return lines
