"""What pytest can do with any failing test, it can do with ours."""

import pytest

THREE = """
def test_1_right(gradcheck):
    gradcheck(square, X, grad=right)

def test_2_wrong(gradcheck):
    gradcheck(square, X, grad=wrong)

def test_3_right(gradcheck):
    gradcheck(square, X, grad=right)
"""


@pytest.mark.parametrize("way", [("-p", "no:xdist"), ("-n", "0")], ids=["no xdist", "n0"])
def test_exitfirst_stops_and_still_reports(project, way):
    project.tests(THREE)
    run = project.run(*way, "-x")
    run.assert_outcomes(passed=1, failed=1)
    assert project.verdicts() == {"test_1_right": ["pass"], "test_2_wrong": ["fail"]}
    run.stdout.fnmatch_lines(["2 checks: 1 passed, 1 failed"])


def test_exitfirst_stops_workers_too(project):
    project.tests(THREE)
    run = project.run("-n", "1", "-x")
    assert run.ret == pytest.ExitCode.INTERRUPTED
    assert project.verdicts()["test_2_wrong"] == ["fail"]


def test_last_failed_runs_the_wrong_one_again(project, way):
    project.tests(THREE)
    project.run(*way).assert_outcomes(passed=2, failed=1)
    project.run(*way, "--lf").assert_outcomes(failed=1)
    assert project.verdicts() == {"test_2_wrong": ["fail"]}


def test_pdb_is_entered_at_a_wrong_gradient_and_at_an_idle_test(project):
    project.file(
        "debugger.py",
        """
        class Debugger:
            quitting = False

            def __init__(self, *args, **kwargs):
                pass

            def reset(self):
                pass

            def interaction(self, frame, cause):
                print("debugger entered")
        """,
    )
    project.tests(THREE + "\n@pytest.mark.gradcheck\ndef test_4_idle():\n    pass\n")
    project.pytester.syspathinsert()
    run = project.run("--pdb", "--pdbcls=debugger:Debugger")
    run.assert_outcomes(passed=2, failed=2)
    assert run.stdout.lines.count("debugger entered") == 2
    assert project.verdicts()["test_2_wrong"] == ["fail"]
    assert project.verdicts()["test_4_idle"] == ["vacuous"]


def test_quitting_pdb_keeps_what_was_found(project):
    project.tests(THREE)
    report = f"--gradcheck-report=json:{project.report_path}"
    run = project.run_alone("--pdb", report, stdin=b"q\n")
    assert run.ret == pytest.ExitCode.INTERRUPTED
    run.stdout.fnmatch_lines(["> */test_sample.py(11)test_2_wrong()", "*Exit: Quitting debugger*"])
    assert project.verdicts() == {"test_1_right": ["pass"], "test_2_wrong": ["fail"]}


def test_an_interrupt_keeps_what_was_found(project):
    project.tests(THREE + "\ndef test_4_stop():\n    raise KeyboardInterrupt\n")
    run = project.run_alone(f"--gradcheck-report=json:{project.report_path}")
    assert run.ret == pytest.ExitCode.INTERRUPTED
    assert project.totals() == {"checks": 3, "pass": 2, "fail": 1}


def test_a_doctest_is_a_test(project):
    project.file(
        "module.py",
        """
        def doubled():
            \"""
            >>> from pytest_gradcheck import assert_gradient
            >>> from sample import X, right, square
            >>> assert_gradient(square, X, grad=right).verdict
            'pass'
            \"""
        """,
    )
    project.run("--doctest-modules").assert_outcomes(passed=1)
    assert project.verdicts() == {"module.doubled": ["pass"]}


XFAIL = """
from pytest_gradcheck import GradCheckError

@pytest.mark.xfail(raises=GradCheckError, strict=True)
def test_known_bug(gradcheck):
    gradcheck(square, X, grad=wrong)

@pytest.mark.xfail(strict=False)
def test_known_flaw(gradcheck):
    gradcheck(square, X, grad=right)

@pytest.mark.xfail(strict=True)
def test_repaired(gradcheck):
    gradcheck(square, X, grad=right)

@pytest.mark.xfail(raises=GradCheckError)
def test_other_bug(gradcheck):
    gradcheck(square, X, grad=right)
    raise KeyError

@pytest.mark.gradcheck
@pytest.mark.xfail
def test_idle():
    pass
"""


def test_xfail_expects_a_verdict(project, way):
    project.tests(XFAIL)
    run = project.run(*way)
    run.assert_outcomes(xfailed=2, xpassed=1, failed=2)
    assert project.verdicts() == {
        "test_known_bug": ["fail"],
        "test_known_flaw": ["pass"],
        "test_repaired": ["pass"],
        "test_other_bug": ["pass"],
        "test_idle": ["vacuous"],
    }
    outcomes = {
        test["nodeid"].rpartition("::")[2]: test["outcome"] for test in project.report()["tests"]
    }
    assert outcomes["test_known_bug"] == "skipped"  # as pytest reports an expected failure
    assert outcomes["test_repaired"] == "failed"


@pytest.mark.usefixtures("needs_nine")
def test_strict_configuration_makes_an_unexpected_pass_fail(project):
    project.tests(
        """
        @pytest.mark.xfail
        def test_repaired(gradcheck):
            gradcheck(square, X, grad=right)
        """
    )
    project.run().assert_outcomes(failed=1)
    assert project.verdicts() == {"test_repaired": ["pass"]}


PLAIN = """
def test_right():
    assert_gradient(square, X, grad=right)

def test_wrong():
    assert_gradient(square, X, grad=wrong)
"""


def test_the_functions_still_check_where_the_plugin_is_blocked(project):
    project.tests(PLAIN)
    run = project.run_alone("-p", "no:gradcheck")
    run.assert_outcomes(passed=1, failed=1)
    run.stdout.fnmatch_lines(["E * wrong gradient of square: x has the wrong sign"])
    run.stdout.no_fnmatch_line("*gradient checks*")
    run.stdout.no_fnmatch_line("*gradcheck-0*")


def test_a_blocked_plugin_has_no_flags_and_no_fixture(project):
    project.tests("def test_right(gradcheck):\n    pass")
    run = project.run_alone("-p", "no:gradcheck")
    run.assert_outcomes(errors=1)
    run.stdout.fnmatch_lines(["E *fixture 'gradcheck' not found"])
    run = project.run_alone("-p", "no:gradcheck", "--gradcheck-seed=1")
    assert run.ret == pytest.ExitCode.USAGE_ERROR


@pytest.mark.parametrize("by_environment", [False, True], ids=["flag", "environment"])
def test_the_plugin_loads_by_name_where_autoload_is_off(project, monkeypatch, by_environment):
    project.tests(THREE)
    off = [] if by_environment else ["--disable-plugin-autoload"]
    if by_environment:
        monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    run = project.run_alone(*off, "-p", "gradcheck", "--strict-markers")
    run.assert_outcomes(passed=2, failed=1)
    run.stdout.fnmatch_lines(["3 checks: 2 passed, 1 failed"])


LISTINGS = [
    "--collect-only",
    "--collect-only -n 2",
    "--fixtures",
    "--fixtures-per-test",
    "--setup-plan",
]


@pytest.mark.parametrize("listing", LISTINGS)
def test_a_listing_checks_nothing_and_leaves_the_report_alone(project, listing):
    project.tests(THREE)
    project.report_path.write_text("old", encoding="utf-8")
    run = project.run(*listing.split())
    assert run.ret == pytest.ExitCode.OK
    run.stdout.no_fnmatch_line("*gradient checks*")
    run.stdout.no_fnmatch_line("report:*")
    assert project.report_path.read_text(encoding="utf-8") == "old"


def test_a_run_without_tests_has_an_empty_report(project, way):
    run = project.run(*way)
    assert run.ret == pytest.ExitCode.NO_TESTS_COLLECTED
    assert project.report()["tests"] == []
    assert project.report()["totals"]["checks"] == 0
    run.stdout.no_fnmatch_line("*gradient checks*")


def test_a_broken_module_has_an_empty_report(project):
    project.tests("1 / 0")
    run = project.run()
    run.stdout.fnmatch_lines(["E * ZeroDivisionError: division by zero"])
    assert project.report()["tests"] == []
