"""A table of sizes by layer as bars of their logarithm, for a terminal of 80 columns."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pytest_gradcheck.results import Evidence

ROWS = 16  # lines; of more layers, every so-many-th and the ends
NAME, BAR = 30, 30  # columns
LEAST = 1.0  # decades that a whole bar spans at least


def bars(evidence: Evidence, label: str, size: str, mark: str = "") -> list[str]:
    """One line for each row: name, bar, number; the row called ``mark`` has an arrow.

    Args:
        evidence: The table.
        label: Column of the names.
        size: Column of the sizes; a row without one has no bar.
        mark: Name of the row that a finding is about.
    """
    names, sizes = (evidence.columns.index(column) for column in (label, size))
    rows = [(str(row[names]), _size(row[sizes])) for row in evidence.rows]
    rows = _chosen(rows, mark)
    logs = [math.log10(value) for _, value in rows if value > 0]
    if not logs:
        return []
    low, high = min(logs), max(logs)
    span = max(high - low, LEAST)
    wide = min(NAME, max(len(name) for name, _ in rows))
    return [
        _line(name, value, (math.log10(value) - low) / span if value > 0 else -1.0, wide, mark)
        for name, value in rows
    ]


def _size(value: object) -> float:
    number = value if isinstance(value, (int, float)) else 0.0
    return float(number) if math.isfinite(number) and number > 0 else 0.0


def _chosen(rows: Sequence[tuple[str, float]], mark: str) -> list[tuple[str, float]]:
    if len(rows) <= ROWS:
        return list(rows)
    last = len(rows) - 1
    picked = {round(k * last / (ROWS - 1)) for k in range(ROWS)}
    picked |= {n for n, (name, _) in enumerate(rows) if name == mark}
    return [rows[n] for n in sorted(picked)]


def _line(name: str, value: float, share: float, wide: int, mark: str) -> str:
    short = name if len(name) <= wide else f"…{name[-wide + 1 :]}"
    bar = "█" * (1 + round(share * (BAR - 1))) if share >= 0 else ""
    told = f"{value:.1e}" if value else "none"
    arrow = " <" if name == mark else ""
    return f"{short.ljust(wide)}  {bar.ljust(BAR)}  {told}{arrow}"
