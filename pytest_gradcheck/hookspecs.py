"""Hooks that a ``conftest.py`` or another plugin may implement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pytest_gradcheck.backends import Entry
    from pytest_gradcheck.limits import Limits
    from pytest_gradcheck.reports.run import Run
    from pytest_gradcheck.results import Result


@pytest.hookspec
def pytest_gradcheck_backends() -> Sequence[Entry]:  # type: ignore[empty-body]
    """Offer backends for other frameworks.

    Called once in each process, before the first test. A value belongs to a backend when its type
    comes from one of the entry's packages; entries of plugins are asked before the built-in ones.

    Example::

        def pytest_gradcheck_backends():
            return [Entry("mine", frozenset({"mine"}), "mine.gradcheck:BACKEND")]
    """


@pytest.hookspec(firstresult=True)
def pytest_gradcheck_limits(
    item: pytest.Item, check: str, limits: Limits
) -> Mapping[str, float | str] | None:
    """Change limits for an item; the first answer that is not None counts.

    Called in the process that runs the item, once for each verb, when a check first needs them.
    The answer stands above flags and ini and below markers and calls.

    Args:
        item: The test.
        check: Name of the verb, such as ``gradcheck``.
        limits: As flags and ini left them.

    Returns:
        Names and values of the limits to change.

    Example::

        def pytest_gradcheck_limits(item, check, limits):
            return {"tolerance": 1e-3} if "solver" in item.nodeid else None
    """


@pytest.hookspec
def pytest_gradcheck_finished(item: pytest.Item, result: Result) -> None:
    """A check has its verdict.

    Called in the process that runs the item, once for each check, before its verdict can fail
    the test.

    Args:
        item: The test.
        result: The frozen result.
    """


@pytest.hookspec
def pytest_gradcheck_report(config: pytest.Config, run: Run) -> Mapping[str, Any] | None:
    """The report is about to be written.

    Called once, in the controller (or without xdist), when all tests are done and a report was
    asked for. The answers are merged into the ``extra`` section of the report; a later plugin wins.

    Args:
        config: The session's configuration.
        run: Everything that was found.

    Returns:
        Names and plain values (what JSON can hold) to add, or None.
    """
