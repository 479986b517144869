"""All results of a run as one frozen value: what every renderer reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pytest_gradcheck.results import (
    SCHEMA_VERSION,
    VERDICTS,
    Result,
    escaped,
    result_from_plain,
    unescaped,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Test:
    """The results that one phase of one attempt of a test brought.

    Args:
        nodeid: Node id.
        phase: ``setup``, ``call`` or ``teardown``.
        attempt: 1, or more when the test was rerun.
        outcome: ``passed``, ``failed``, ``skipped`` or ``rerun``.
        worker: Name of the xdist worker, empty without one.
        results: In the order in which they came.
    """

    nodeid: str
    phase: str = "call"
    attempt: int = 1
    outcome: str = "passed"
    worker: str = ""
    results: tuple[Result, ...] = ()

    def to_plain(self) -> dict[str, Any]:
        """The test as builtins."""
        return {
            "nodeid": escaped(self.nodeid),
            "phase": self.phase,
            "attempt": self.attempt,
            "outcome": self.outcome,
            "worker": escaped(self.worker),
            "results": [result.to_plain() for result in self.results],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run of pytest as far as gradients go.

    Args:
        tests: Those with at least one result, in the order in which they were reported.
        version: Version of the plugin.
        extra: Pairs of a plugin's name and the plain value that it adds to the report.
    """

    tests: tuple[Test, ...] = ()
    version: str = ""
    extra: tuple[tuple[str, Any], ...] = ()

    @property
    def final(self) -> tuple[Test, ...]:
        """The tests without the attempts that a rerun replaced."""
        last = {test.nodeid: 0 for test in self.tests}
        for test in self.tests:
            last[test.nodeid] = max(last[test.nodeid], test.attempt)
        return tuple(test for test in self.tests if test.attempt == last[test.nodeid])

    @property
    def results(self) -> tuple[Result, ...]:
        """Every result that counts."""
        return tuple(result for test in self.final for result in test.results)

    def to_plain(self) -> dict[str, Any]:
        """The run as builtins that strict JSON can hold; ``schema.json`` describes it."""
        verdicts = [result.verdict for result in self.results]
        return {
            "schema": SCHEMA_VERSION,
            "tool": {"name": "pytest-gradcheck", "version": escaped(self.version)},
            "totals": {"checks": len(verdicts)} | {v: verdicts.count(v) for v in VERDICTS},
            "tests": [test.to_plain() for test in self.tests],
            "extra": dict(self.extra),
        }


def test_from_plain(plain: dict[str, Any]) -> Test:
    """The test whose plain form is given."""
    return Test(
        nodeid=unescaped(plain["nodeid"]),
        phase=plain["phase"],
        attempt=plain["attempt"],
        outcome=plain["outcome"],
        worker=unescaped(plain["worker"]),
        results=tuple(result_from_plain(item) for item in plain["results"]),
    )


def run_from_plain(plain: dict[str, Any]) -> Run:
    """The run whose plain form is given, such as a JSON report that was read."""
    return Run(
        tests=tuple(test_from_plain(item) for item in plain["tests"]),
        version=unescaped(plain["tool"]["version"]),
        extra=tuple(plain["extra"].items()),
    )
