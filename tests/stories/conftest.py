"""A tiny NumPy project for each story, and the three ways of running it."""

from __future__ import annotations

import json
import sys
import textwrap
from pathlib import Path
from typing import Any

# In-process runs drop from sys.modules what they import. NumPy does not survive a second import,
# and the plugin's own modules would exist twice; both are therefore loaded before the first run.
import numpy as np
import pytest

import pytest_gradcheck.backends.numpy
import pytest_gradcheck.backends.numpy_probe
import pytest_gradcheck.checks.flow.check
import pytest_gradcheck.checks.gradient
import pytest_gradcheck.verbs.flow
import pytest_gradcheck.verbs.gradient  # noqa: F401

np.random.default_rng()  # NumPy loads its generators on first use

# Plugins of the machine that would add seconds or randomness to every run.
BYSTANDERS = ("randomly", "benchmark", "hypothesispytest", "jaxtyping", "pytest_torch")
ALONE = [word for name in BYSTANDERS for word in ("-p", f"no:{name}")]

WAYS = {"no xdist": ("-p", "no:xdist"), "n0": ("-n", "0"), "n2": ("-n", "2")}

# Functions of the sample project with their derivatives: one for each verdict.
SAMPLE = """
import numpy as np

X = np.array([0.5, -1.0, 2.0])

def square(x):
    return (x**2).sum()

def right(x):
    return 2 * x

def wrong(x):
    return -2 * x

def island(x):  # finite at X alone: no difference quotient exists, so every check is undecided
    return np.where(x == X, x, np.nan).sum()

def constant(x):
    return 1.0
"""

# Native TOML tables, strict mode and subtests came with pytest 9.
NINE = pytest.version_tuple >= (9, 0)

CONFIG = """
[tool.pytest]
strict = true
filterwarnings = ["error"]
"""
OLDER_CONFIG = """
[tool.pytest.ini_options]
addopts = ["--strict-markers", "--strict-config"]
filterwarnings = ["error"]
"""

HEADER = """
import numpy as np
import pytest
from pytest_gradcheck import assert_gradient, check_gradient
from sample import X, constant, island, right, square, wrong
"""


class Project:
    """A project of one's own: files, runs of pytest in it, and what its JSON report says."""

    def __init__(self, pytester: pytest.Pytester) -> None:
        self.pytester = pytester
        self.path = pytester.path
        self.report_path = self.path / "report.json"
        self.file("sample.py", SAMPLE)
        self.file("pyproject.toml", CONFIG if NINE else OLDER_CONFIG)

    def file(self, name: str, text: str) -> Path:
        """Write a file, without the indentation that the text has in its story."""
        path = self.path / name
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        return path

    def tests(self, text: str, name: str = "test_sample.py") -> Path:
        """Write a test module; the sample functions and the verbs are imported already."""
        return self.file(name, HEADER + textwrap.dedent(text))

    def run(self, *args: object) -> pytest.RunResult:
        """Run pytest in this process, and write a JSON report."""
        return self.pytester.runpytest_inprocess(
            *ALONE, f"--gradcheck-report=json:{self.report_path}", *args
        )

    def run_alone(self, *args: str, stdin: bytes = b"") -> pytest.RunResult:
        """Run pytest in a process of its own, without a report."""
        return self.pytester.run(sys.executable, "-m", "pytest", *ALONE, *args, stdin=stdin)

    def report(self) -> dict[str, Any]:
        """The JSON report of the last run, read strictly."""

        def refuse(constant: str) -> None:
            raise ValueError(f"{constant} is not strict JSON")

        return json.loads(self.report_path.read_text(encoding="utf-8"), parse_constant=refuse)

    def verdicts(self) -> dict[str, list[str]]:
        """Verdicts of the last run by the name of the test, in their order."""
        found: dict[str, list[str]] = {}
        for test in self.report()["tests"]:
            name = test["nodeid"].rpartition("::")[2]
            found.setdefault(name, []).extend(r["verdict"] for r in test["results"])
        return found

    def results(self) -> list[dict[str, Any]]:
        """Every result of the last run, ordered by test."""
        tests = sorted(self.report()["tests"], key=lambda test: test["nodeid"])
        return [result for test in tests for result in test["results"]]

    def totals(self) -> dict[str, int]:
        """How many checks there were of each verdict; verdicts that nobody got are left out."""
        return {name: count for name, count in self.report()["totals"].items() if count}


@pytest.fixture
def needs_nine() -> None:
    """For a story about what came with pytest 9."""
    if not NINE:
        pytest.skip("needs pytest 9 or newer")


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Project:
    """An empty sample project, run as at a desk: in CI pytest's own summary is longer."""
    for name in ("CI", "BUILD_NUMBER"):
        monkeypatch.delenv(name, raising=False)
    return Project(pytester)


@pytest.fixture(params=WAYS.values(), ids=WAYS.keys())
def way(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """Arguments of a run without xdist, with it but no worker, and with two workers."""
    return request.param
