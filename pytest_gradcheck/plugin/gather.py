"""Gathers results from reports, prints the summary and writes the reports; in the controller only.

PYTEST_DONT_REWRITE
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_gradcheck.plugin.session import SETTINGS, guarded

if TYPE_CHECKING:
    from pytest_gradcheck.reports.run import Run


class Gatherer:
    """The results of a run, as the reports of its tests arrive.

    The renderers are imported when there is something to render: most sessions have nothing.

    Args:
        config: The session's configuration.
    """

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._tests: list[dict[str, Any]] = []  # plain, as they came
        self._written: list[str] = []
        self._failed: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Read the plain results off a report, from this process or a worker."""
        carried = getattr(report, "gradcheck", None)
        if carried is None:
            return
        node = getattr(report, "node", None)
        gateway = getattr(node, "gateway", None)
        self._tests.append(
            {
                "nodeid": carried["test"],
                "phase": report.when or "",
                "attempt": carried["attempt"],
                "outcome": report.outcome,
                "worker": getattr(gateway, "id", ""),
                "results": carried["results"],
            }
        )

    @property
    def run(self) -> Run:
        """The run so far."""
        from pytest_gradcheck import __version__
        from pytest_gradcheck.reports.run import Run, Test
        from pytest_gradcheck.results import result_from_plain

        tests = (
            Test(**test | {"results": tuple(result_from_plain(plain) for plain in test["results"])})
            for test in self._tests
        )
        return Run(tests=tuple(tests), version=__version__)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Write the reports; one that cannot be written makes the run red, no verdict is lost."""
        reports = self._config.stash[SETTINGS].reports
        if not reports or _only_lists(self._config.option):
            return
        run = self.run
        try:
            run = self._extended(run)
        except RuntimeError as error:  # a hook of somebody else's, named in the message
            self._failed.append(f"report without its extra section: {error}")
        for kind, path in reports:
            self._write(kind, self._config.invocation_params.dir / path, run)
        if self._failed and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def _extended(self, run: Run) -> Run:
        from pytest_gradcheck.reports.run import Run

        hook = self._config.hook.pytest_gradcheck_report
        answers = guarded(hook, config=self._config, run=run)
        extra = {key: value for answer in reversed(answers) for key, value in answer.items()}
        return Run(tests=run.tests, version=run.version, extra=tuple(extra.items()))

    def _write(self, kind: str, path: Path, run: Run) -> None:
        from pytest_gradcheck.reports import json

        try:
            json.write(json.render(run), path)
            self._written.append(f"report: {kind} in {path}")
        except (OSError, TypeError, ValueError) as error:
            self._failed.append(
                f"report not written: {kind}:{path}: {_why(error, path)}; the verdicts above stand"
            )

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """A section when a check ran; one line under ``-q``; nothing otherwise."""
        verbosity = self._config.get_verbosity()
        if self._tests:
            self._summarise(terminalreporter, verbosity)
        if verbosity >= 0:
            for line in self._written:
                terminalreporter.write_line(line)
        for line in self._failed:
            terminalreporter.write_line(line, red=True)

    def _summarise(self, terminalreporter: pytest.TerminalReporter, verbosity: int) -> None:
        from pytest_gradcheck.reports import text

        run = self.run
        if run.results and verbosity < 0:
            terminalreporter.write_line(text.one_line(run))
        elif run.results:
            terminalreporter.write_sep("=", "gradient checks")
            for line in text.summary(run, verbosity):
                terminalreporter.write_line(line)


def _only_lists(option: argparse.Namespace) -> bool:
    # No test runs: there is nothing to tell, and an older report may lie at the path.
    listings = ("collectonly", "setuponly", "showfixtures", "show_fixtures_per_test")
    return any(getattr(option, name) for name in listings)


def _why(error: Exception, path: Path) -> str:
    if not isinstance(error, OSError):
        return f"a plugin added a value that JSON cannot hold ({error})"
    if path.is_dir():
        return "this is a directory; name a file in it"
    return f"{error.strerror or error}; give a path that can be written"
