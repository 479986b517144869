"""Markers: one for each verb, with the limits it takes as arguments.

PYTEST_DONT_REWRITE
"""

from __future__ import annotations

import pytest

from pytest_gradcheck.errors import UsageError
from pytest_gradcheck.limits import Limits, limits_of

AUTOMATIC = "_gradcheck_automatic"  # marks a marker that a fixture brought, not the user


def line(verb: str) -> str:
    """The line that ``pytest --markers`` prints."""
    arguments = ", ".join(f"{name}=…" for name in limits_of(verb))
    return (
        f"{verb}({arguments}): limits for the checks of this test; "
        f"a marked test in which nothing is checked is vacuous and fails."
    )


def narrowed(item: pytest.Item, verb: str, limits: Limits) -> Limits:
    """Limits with those of the item's markers on top, the closest last.

    Raises:
        UsageError: An argument that the verb does not take, or a value that is not allowed.
    """
    for mark in reversed(list(item.iter_markers(verb))):
        place = f"@pytest.mark.{verb}"
        if mark.args:
            raise UsageError(
                f"{place} takes keyword arguments only, got {mark.args[0]!r}; "
                f"it takes {', '.join(limits_of(verb))}"
            )
        values = {name: value for name, value in mark.kwargs.items() if name != AUTOMATIC}
        limits = limits.narrowed("marker", place, values)
    return limits


def is_marked_by_user(item: pytest.Item, verb: str) -> bool:
    """Whether a marker stands in the user's own code."""
    return any(AUTOMATIC not in mark.kwargs for mark in item.iter_markers(verb))
