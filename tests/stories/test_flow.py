"""Gradient flow in a suite: fixture, marker, flag, ini, plain function, xdist, report."""

import pytest

from pytest_gradcheck.limits import limits_of

HEAD = """
import unittest
import numpy as np
import pytest
from pytest_gradcheck import assert_flow, check_flow

EVEN = {"first": np.eye(3), "middle": np.eye(3), "last": np.eye(3)}
FADED = {"first": 1e-5 * np.eye(3), "middle": 1e-2 * np.eye(3), "last": np.eye(3)}
"""

SUITE = """
def test_even(gradflow):
    assert gradflow(EVEN).verdict == "pass"

def test_faded(gradflow):
    gradflow(FADED)

@pytest.mark.gradflow(vanish=1e-9)
def test_marked(gradflow):
    gradflow(FADED)

@pytest.mark.gradflow(vanish=1e-9)
def test_called(gradflow):
    gradflow(FADED, vanish=1e-2)

@pytest.mark.gradflow
def test_idle():
    pass

class TestPlain(unittest.TestCase):
    def test_unit(self):
        assert_flow(EVEN)
"""
VERDICTS = {
    "test_even": ["pass"],
    "test_faded": ["fail"],
    "test_marked": ["pass"],
    "test_called": ["fail"],
    "test_idle": ["vacuous"],
    "test_unit": ["pass"],
}


def write(project, text=SUITE):
    project.file("test_sample.py", HEAD + text)


def test_fixture_marker_and_plain_function_in_every_way_of_running(project, way):
    write(project)
    run = project.run(*way)
    run.assert_outcomes(passed=3, failed=3)
    assert project.verdicts() == VERDICTS


def test_a_failure_shows_symptom_chart_and_limits(project):
    write(project)
    run = project.run("-k", "faded")
    run.stdout.fnmatch_lines(
        [
            "E *.GradCheckError: vanishing gradient in the record: 0.0032 per layer, 1.0e-05*",
            "E * fail: the gradient fades by 0.0032 per layer*",
            "E * flow of the gradient by layer, in the order of the data (log scale):",
            "E * first   █  *1.7e-05 <",
            "E * last    ██████████████████████████████  1.7e+00",
            "E * try: *",
            "E * limits: vanish=0.01 (default)*",
            "E * reproduce: pytest test_sample.py::test_faded --gradcheck-seed=*",
        ]
    )
    told = [line for line in run.outlines if line.startswith("E  ") and "Error:" not in line]
    assert max(map(len, told)) <= 84  # eight of them are pytest's own
    run.stdout.no_fnmatch_line("*/verbs/*.py:*")


@pytest.mark.parametrize(
    ("arguments", "ini"), [(["--gradcheck-vanish=1e-9"], ""), ([], "gradcheck_vanish = 1e-9\n")]
)
def test_a_flag_or_an_ini_sets_a_limit(project, arguments, ini):
    write(project)
    if ini:
        path = project.path / "pyproject.toml"
        path.write_text(path.read_text("utf-8") + ini, "utf-8")
    project.run("-k", "faded or called", *arguments)
    assert project.verdicts() == {"test_faded": ["pass"], "test_called": ["fail"]}
    (use,) = (u for u in project.results()[1]["limits"] if u["name"] == "vanish")
    assert use["source"] == ("ini" if ini else "flag")


def test_a_misused_marker_is_an_error_of_its_test(project):
    write(project, "@pytest.mark.gradflow(tolerance=1)\ndef test_x(gradflow):\n    pass\n")
    run = project.run()
    run.assert_outcomes(errors=1)
    names = ", ".join(limits_of("gradflow"))
    assert (
        f"@pytest.mark.gradflow: gradflow has no argument 'tolerance'; it takes {names}; "
        "all else goes into the call of gradflow"
    ) in run.stdout.lines


def test_tests_that_use_the_fixture_carry_the_marker(project):
    write(project)
    run = project.run("-m", "gradflow", "--collect-only", "-q")
    assert sum("::" in line for line in run.outlines) == 5
    project.run("--markers").stdout.fnmatch_lines(["@pytest.mark.gradflow(vanish=…, explode=…*"])


def test_the_report_holds_tables_for_plots(project):
    write(project)
    project.run("-k", "faded")
    (result,) = project.results()
    assert result["check"] == "flow"
    tables = {table["name"]: table for table in result["evidence"]}
    assert set(tables) == {"layers", "parameters", "initialisations"}
    assert tables["layers"]["columns"][:3] == ["layer", "operation", "flow"]
    assert [row[0] for row in tables["layers"]["rows"]] == ["first", "middle", "last"]


def test_report_only_lets_nothing_fail(project):
    write(project)
    project.run("--gradcheck-report-only", "-k", "faded").assert_outcomes(passed=1)
    assert project.verdicts() == {"test_faded": ["fail"]}
