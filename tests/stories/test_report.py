"""The JSON report: strict, whole or absent, and never at the cost of a verdict."""

import errno

import pytest

MIXED = """
def test_right(gradcheck):
    gradcheck(square, X, grad=right)

def test_wrong(gradcheck):
    gradcheck(square, X, grad=wrong)
"""
RIGHT = """
def test_right(gradcheck):
    gradcheck(square, X, grad=right)
"""


def files(project):
    return {path.name for path in project.path.iterdir() if path.is_file()}


def test_the_report_is_strict_json_even_for_numbers_that_json_has_not(project, way):
    project.tests(
        """
        def test_odd():
            check_gradient(constant, X, grad=np.ones_like, label="NaN, \\u221e and \\U0001d6c1")
            check_gradient(square, X, grad=np.zeros_like, label="Infinity")
        """
    )
    project.run(*way).assert_outcomes(passed=1)
    moved, still = project.results()  # read strictly
    assert moved["label"] == "NaN, ∞ and 𝛁"
    assert moved["findings"][0]["numbers"]["ratio"] == "NaN"
    assert still["label"] == "\\Infinity"  # a text that only looks like a number


def test_the_report_names_its_schema_and_its_tool(project):
    project.tests(RIGHT)
    project.run()
    report = project.report()
    assert report["schema"] == 1
    assert report["tool"]["name"] == "pytest-gradcheck"
    assert report["extra"] == {}


def test_the_report_replaces_an_older_one_and_leaves_nothing_else(project, way):
    project.tests(RIGHT)
    project.report_path.write_text("old", encoding="utf-8")
    before = files(project)
    project.run(*way).assert_outcomes(passed=1)
    assert project.totals() == {"checks": 1, "pass": 1}
    assert files(project) == before


def test_a_relative_path_starts_where_pytest_was_started(project, way):
    project.tests(RIGHT)
    (project.path / "out").mkdir()
    project.report_path = "out/here.json"
    project.run(*way).assert_outcomes(passed=1)
    assert files(project) >= {"test_sample.py"}
    assert [path.name for path in (project.path / "out").iterdir()] == ["here.json"]


def test_a_directory_that_is_missing_is_made(project, way):
    project.tests(RIGHT)
    project.report_path = project.path / "out" / "today" / "report.json"
    project.run(*way).assert_outcomes(passed=1)
    assert project.totals() == {"checks": 1, "pass": 1}


def test_several_reports_may_be_asked_for(project):
    project.tests(RIGHT)
    run = project.run("--gradcheck-report=json:second.json")
    run.stdout.fnmatch_lines(["report: json in */report.json", "report: json in */second.json"])
    assert (project.path / "second.json").read_text() == project.report_path.read_text()


def unwritable(project, case):
    """A path that cannot be written, and what the message says about it."""
    if case == "no directory can be made":
        path = project.path / "sample.py" / "deeper" / "report.json"
        return path, "Not a directory; give a path that can be written"
    if case == "a file for a directory":
        path = project.path / "sample.py" / "report.json"
        return path, "Not a directory; give a path that can be written"
    path = project.path
    return path, "this is a directory; name a file in it"


CASES = ["no directory can be made", "a file for a directory", "a directory for a file"]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("way", [(), ("-q",), ("-n", "2")], ids=["no xdist", "quiet", "n2"])
def test_a_path_that_cannot_be_written_costs_no_verdict(project, way, case):
    project.tests(RIGHT)
    project.report_path, why = unwritable(project, case)
    run = project.run(*way)
    run.assert_outcomes(passed=1)
    assert run.ret == pytest.ExitCode.TESTS_FAILED
    run.stdout.fnmatch_lines(
        [
            "*1 check: 1 passed",
            f"report not written: json:{project.report_path}: {why}; the verdicts above stand",
        ],
        consecutive=True,
    )


def test_a_failed_run_stays_failed_where_the_report_is_lost(project):
    project.tests(MIXED)
    project.report_path, _ = unwritable(project, "a directory for a file")
    run = project.run()
    run.assert_outcomes(passed=1, failed=1)
    assert run.ret == pytest.ExitCode.TESTS_FAILED
    run.stdout.fnmatch_lines(
        ["2 checks: 1 passed, 1 failed", "FAIL *", "  wrong *", "report not *"]
    )


def test_one_lost_report_does_not_take_the_others_along(project):
    project.tests(RIGHT)
    run = project.run("--gradcheck-report=json:sample.py/report.json")
    assert run.ret == pytest.ExitCode.TESTS_FAILED
    assert project.totals() == {"checks": 1, "pass": 1}


def test_a_text_that_utf8_cannot_hold_is_written_as_an_escape(project):
    project.file(
        "conftest.py",
        "def pytest_gradcheck_report(config, run):\n    return {'file': 'caf\\udce9'}",
    )
    project.tests(RIGHT)
    project.run().assert_outcomes(passed=1)
    assert project.report()["extra"] == {"file": "caf\udce9"}


NOT_JSON = {
    "object()": "Object of type object is not JSON serializable",
    "float('nan')": "Out of range float values are not JSON compliant*",
}


@pytest.mark.parametrize(("value", "why"), NOT_JSON.items(), ids=["object", "nan"])
def test_a_value_that_json_cannot_hold_leaves_the_older_report(project, value, why):
    project.file(
        "conftest.py",
        f"def pytest_gradcheck_report(config, run):\n    return {{'when': {value}}}",
    )
    project.tests(RIGHT)
    project.report_path.write_text("old", encoding="utf-8")
    before = files(project)
    run = project.run()
    run.assert_outcomes(passed=1)
    assert run.ret == pytest.ExitCode.TESTS_FAILED
    run.stdout.fnmatch_lines(
        [
            f"report not written: json:{project.report_path}: a plugin added a value that JSON "
            f"cannot hold ({why}); the verdicts above stand"
        ]
    )
    assert project.report_path.read_text(encoding="utf-8") == "old"
    assert files(project) == before


def test_a_full_disk_leaves_the_older_report(project, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    project.tests(RIGHT)
    project.report_path.write_text("old", encoding="utf-8")
    before = files(project)
    monkeypatch.setattr("pathlib.Path.replace", full)  # the last step of writing
    run = project.run("-p", "no:cacheprovider")
    monkeypatch.undo()
    assert run.ret == pytest.ExitCode.TESTS_FAILED
    run.stdout.fnmatch_lines(
        ["report not written: *: No space left on device; give a path that can be written; *"]
    )
    assert project.report_path.read_text(encoding="utf-8") == "old"
    assert files(project) == before
