"""Each verdict gets from a test to the terminal, the exit status and the report."""

import pytest

ALL_VERDICTS = """
def test_right(gradcheck):
    gradcheck(square, X, grad=right)

def test_wrong(gradcheck):
    gradcheck(square, X, grad=wrong)

def test_island(gradcheck):
    gradcheck(island, X, grad=np.ones_like)

def test_constant(gradcheck):
    gradcheck(constant, X, grad=np.zeros_like)

@pytest.mark.gradcheck
def test_idle():
    pass
"""

VERDICTS = {
    "test_right": ["pass"],
    "test_wrong": ["fail"],
    "test_island": ["undecided"],
    "test_constant": ["vacuous"],
    "test_idle": ["vacuous"],
}

HEADLINES = {
    "test_wrong": "wrong gradient of square: x has the wrong sign",
    "test_island": "undecided on island: it is not finite (or raises) on both sides of the point "
    "at every step tried",
    "test_constant": "nothing to check in constant: every gradient is zero and the output does "
    "not change to first order",
}


def test_only_a_pass_is_green(project, way):
    project.tests(ALL_VERDICTS)
    run = project.run(*way)
    run.assert_outcomes(passed=1, failed=4)
    assert run.ret == pytest.ExitCode.TESTS_FAILED
    assert project.verdicts() == VERDICTS
    assert project.totals() == {"checks": 5, "pass": 1, "fail": 1, "undecided": 1, "vacuous": 2}


def test_a_failure_begins_with_its_headline_and_points_at_the_users_line(project):
    project.tests(ALL_VERDICTS)
    run = project.run()
    for headline in HEADLINES.values():
        run.stdout.fnmatch_lines([f"E * pytest_gradcheck.GradCheckError: {headline}"])
    run.stdout.fnmatch_lines([">*gradcheck(square, X, grad=wrong)"])
    run.stdout.no_fnmatch_line("*/verbs/*.py:*")  # no frame of the plugin


def test_an_idle_marked_test_fails_without_a_traceback(project):
    project.tests(ALL_VERDICTS)
    run = project.run()
    run.stdout.fnmatch_lines(
        [
            "*_ test_idle _*",
            "vacuous: the test is marked gradcheck, and nothing was checked in it",
            "try: use the fixture gradcheck or assert_gradient in the test, or remove the",
            "     marker",
        ],
        consecutive=True,
    )


def test_undecided_and_vacuous_may_be_mild(project, way):
    project.tests(ALL_VERDICTS)
    run = project.run(
        *way,
        "--gradcheck-undecided=warn",
        "--gradcheck-vacuous=warn",
        "-W",
        "default::pytest_gradcheck.GradCheckWarning",
    )
    run.assert_outcomes(passed=4, failed=1, warnings=3)
    assert project.verdicts() == VERDICTS
    # A warning points at the line of the check, where there is one.
    run.stdout.fnmatch_lines(
        [
            "test_sample.py::test_island",
            f"*/test_sample.py:14: GradCheckWarning: {HEADLINES['test_island']}",
        ],
        consecutive=True,
    )
    run.stdout.fnmatch_lines(["*: GradCheckWarning: vacuous: the test is marked gradcheck, and *"])


def test_a_mild_verdict_fails_where_warnings_are_errors(project):
    project.tests(ALL_VERDICTS)
    run = project.run("--gradcheck-undecided=warn", "-k", "island or right")
    run.assert_outcomes(passed=1, failed=1)
    run.stdout.fnmatch_lines([f"E * pytest_gradcheck.GradCheckWarning: {HEADLINES['test_island']}"])


def test_mildness_does_not_reach_a_wrong_gradient(project):
    project.tests(ALL_VERDICTS)
    run = project.run("--gradcheck-undecided=warn", "-k", "wrong")
    run.assert_outcomes(failed=1)


def test_report_only_lets_every_verdict_pass_and_reports_it(project, way):
    project.tests(ALL_VERDICTS)
    run = project.run(*way, "--gradcheck-report-only")
    run.assert_outcomes(passed=5)
    assert run.ret == pytest.ExitCode.OK
    assert project.verdicts() == VERDICTS
    run.stdout.fnmatch_lines(["5 checks: 1 passed, 1 failed, 1 undecided, 2 vacuous"])


def test_a_check_in_a_fixture_counts_and_obeys_the_limits(project, way):
    project.tests(
        """
        @pytest.fixture
        def checked():
            yield assert_gradient(square, X, grad=right)
            assert_gradient(square, X, grad=right, label="after")

        @pytest.mark.gradcheck(resolution=0.25)
        def test_busy(checked):
            pass
        """
    )
    project.run(*way, "--gradcheck-seed=11").assert_outcomes(passed=1)
    before, after = project.results()
    assert (before["label"], after["label"]) == ("square", "after")
    assert [test["phase"] for test in project.report()["tests"]] == ["setup", "teardown"]
    for result in (before, after):
        assert result["context"]["seed"] == 11
        assert result["limits"][0]["value"] == 0.25
        assert result["limits"][0]["source"] == "marker"


def test_a_wrong_gradient_in_a_fixture_is_an_error(project):
    project.tests(
        """
        @pytest.fixture
        def checked():
            assert_gradient(square, X, grad=wrong)

        def test_never_runs(checked):
            raise SystemExit
        """
    )
    project.run().assert_outcomes(errors=1)
    assert project.verdicts() == {"test_never_runs": ["fail"]}
