"""One thing that is wrong with a flow, or open."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_gradcheck.results import Severity

Numbers = tuple[tuple[str, int | float], ...]


@dataclass(frozen=True, slots=True)
class Symptom:
    """One thing that is wrong, or open.

    Args:
        kind: Which: ``vanishing``, ``exploding``, ``dead``, ``saturated``, ``missing``, ...
        where: Layer or parameter.
        message: One sentence.
        numbers: What it rests on.
        severity: ``fail``, ``warn`` or ``note``.
        is_open: Whether more initialisations might decide it.
    """

    kind: str
    where: str
    message: str
    numbers: Numbers = ()
    severity: Severity = "fail"
    is_open: bool = False
