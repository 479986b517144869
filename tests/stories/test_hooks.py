"""Third parties change limits, listen to verdicts and add to the report."""

import pytest

MIXED = """
def test_right(gradcheck):
    gradcheck(square, X, grad=right)

def test_wrong(gradcheck):
    gradcheck(square, X, grad=wrong)
"""


def test_a_plugin_changes_the_limits_of_an_item(project, way):
    project.file(
        "conftest.py",
        """
        def pytest_gradcheck_limits(item, check, limits):
            assert check == limits.check == "gradcheck"
            assert limits.number("tolerance") == 1e-7  # as the flag left it
            return {"resolution": 0.5} if "right" in item.nodeid else None
        """,
    )
    project.tests(MIXED)
    project.run(*way, "--gradcheck-tolerance=1e-7").assert_outcomes(passed=1, failed=1)
    changed, unchanged = (result["limits"][0] for result in project.results())
    assert changed == {
        "name": "resolution",
        "value": 0.5,
        "source": "hook",
        "place": "pytest_gradcheck_limits",
    }
    assert unchanged["source"] == "default"


def test_a_conftest_changes_the_limits_of_its_own_directory_only(project):
    (project.path / "inside").mkdir()
    project.file(
        "inside/conftest.py",
        "def pytest_gradcheck_limits(item, check, limits):\n    return {'resolution': 0.5}",
    )
    project.file("conftest.py", "")
    project.tests(MIXED, "inside/test_inside.py")
    project.tests(MIXED, "test_outside.py")
    project.run("-k", "right").assert_outcomes(passed=2, deselected=2)
    sources = {r["context"]["test"]: r["limits"][0]["source"] for r in project.results()}
    assert sources == {
        "inside/test_inside.py::test_right": "hook",
        "test_outside.py::test_right": "default",
    }


def test_a_plugin_that_answers_nonsense_is_an_error_of_the_test(project):
    project.file(
        "conftest.py",
        "def pytest_gradcheck_limits(item, check, limits):\n    return {'tol': 0.5}",
    )
    project.tests(MIXED)
    run = project.run("-k", "right")
    run.assert_outcomes(errors=1, deselected=1)
    run.stdout.fnmatch_lines(
        ["pytest_gradcheck_limits: gradcheck has no argument 'tol'; it takes resolution, *"]
    )


def test_a_plugin_hears_each_verdict_before_it_fails_the_test(project, way):
    project.file(
        "conftest.py",
        """
        from pathlib import Path

        def pytest_gradcheck_finished(item, result):
            with Path(f"{item.name}.heard").open("a") as file:
                print(result.verdict, result.headline, file=file)
        """,
    )
    project.tests(
        MIXED
        + """
@pytest.mark.gradcheck
def test_idle():
    pass

def test_twice():
    check_gradient(square, X, grad=wrong)
    check_gradient(square, X, grad=wrong)
"""
    )
    project.run(*way).assert_outcomes(passed=2, failed=2)
    heard = {path.stem: path.read_text() for path in project.path.glob("*.heard")}
    assert heard.pop("test_right").startswith("pass gradient of square is right in 1 input")
    assert heard == {
        "test_wrong": "fail wrong gradient of square: x has the wrong sign\n",
        "test_idle": "vacuous vacuous: the test is marked gradcheck, and nothing was checked "
        "in it\n",
        "test_twice": "fail wrong gradient of square: x has the wrong sign\n" * 2,
    }


EXTRA = """
from pathlib import Path

def pytest_gradcheck_report(config, run):
    with Path("asked").open("a") as file:
        file.write("once ")
    return {"who": "NAME", "by NAME": [result.verdict for result in run.results]}
"""


def test_plugins_add_to_the_report_once_and_the_later_one_wins(project, way):
    project.file("later.py", EXTRA.replace("NAME", "later"))
    project.file("conftest.py", "pytest_plugins = ['later']\n" + EXTRA)
    project.tests(MIXED)
    project.run(*way).assert_outcomes(passed=1, failed=1)
    extra = project.report()["extra"]
    assert extra.pop("who") == "later"
    assert {name: sorted(verdicts) for name, verdicts in extra.items()} == {
        "by NAME": ["fail", "pass"],
        "by later": ["fail", "pass"],
    }
    assert (project.path / "asked").read_text() == "once once "  # in the controller only


def test_plugins_are_not_asked_for_a_report_that_nobody_wants(project):
    project.file("conftest.py", EXTRA)
    project.tests(MIXED)
    project.run_alone().assert_outcomes(passed=1, failed=1)
    assert not (project.path / "asked").exists()


def broken(project, hook, arguments):
    """Write a plugin in which the hook raises, beside an innocent one; return the message."""
    project.file("broken.py", f"def {hook}({arguments}):\n    raise KeyError('lost')")
    project.file("innocent.py", f"def {hook}({arguments}):\n    return None")
    project.file("conftest.py", "pytest_plugins = ['broken', 'innocent']")
    return f"{hook} of plugin broken raised KeyError: 'lost'"


@pytest.mark.parametrize("way", [(), ("-n", "2")], ids=["no xdist", "n2"])
def test_backends_of_a_broken_plugin_are_a_usage_error(project, way):
    message = broken(project, "pytest_gradcheck_backends", "")
    project.tests(MIXED)
    run = project.run(*way)
    assert run.ret == pytest.ExitCode.USAGE_ERROR
    run.stderr.fnmatch_lines([f"ERROR: pytest-gradcheck: {message}"])


def test_limits_of_a_broken_plugin_are_an_error_of_each_test(project):
    message = broken(project, "pytest_gradcheck_limits", "item")
    project.tests(MIXED)
    run = project.run()
    run.assert_outcomes(errors=2)
    run.stdout.fnmatch_lines([f"E * RuntimeError: {message}"])


def test_a_broken_listener_fails_the_test_and_keeps_the_result(project, way):
    message = broken(project, "pytest_gradcheck_finished", "result")
    project.tests(MIXED)
    run = project.run(*way)
    run.assert_outcomes(failed=2)
    run.stdout.fnmatch_lines([f"E * RuntimeError: {message}"])
    assert project.verdicts() == {"test_right": ["pass"], "test_wrong": ["fail"]}


def test_a_broken_addition_to_the_report_costs_only_the_addition(project, way):
    message = broken(project, "pytest_gradcheck_report", "run")
    project.tests("def test_right(gradcheck):\n    gradcheck(square, X, grad=right)")
    run = project.run(*way)
    run.assert_outcomes(passed=1)
    assert run.ret == pytest.ExitCode.TESTS_FAILED
    run.stdout.fnmatch_lines(
        [
            "report: json in */report.json",
            f"report without its extra section: {message}",
        ],
        consecutive=True,
    )
    assert project.verdicts() == {"test_right": ["pass"]}
    assert project.report()["extra"] == {}
