"""Tests that report more than once: reruns and subtests."""

import pytest

FLAKY = """
from pathlib import Path

def attempt():
    with Path("attempts").open("a") as file:
        file.write(".")
    return Path("attempts").stat().st_size
"""


@pytest.fixture
def rerunfailures():
    pytest.importorskip("pytest_rerunfailures")


def attempts(project):
    return [
        (test["attempt"], test["outcome"], [result["verdict"] for result in test["results"]])
        for test in project.report()["tests"]
    ]


@pytest.mark.usefixtures("rerunfailures")
def test_every_attempt_is_recorded_and_the_last_one_counts(project, way):
    project.tests(
        FLAKY
        + """
def test_flaky(gradcheck):
    gradcheck(square, X, grad=right if attempt() == 3 else wrong)
"""
    )
    run = project.run(*way, "--reruns=4")
    run.assert_outcomes(passed=1)
    assert attempts(project) == [
        (1, "rerun", ["fail"]),
        (2, "rerun", ["fail"]),
        (3, "passed", ["pass"]),
    ]
    assert project.totals() == {"checks": 1, "pass": 1}
    run.stdout.fnmatch_lines(["1 check: 1 passed"])


@pytest.mark.usefixtures("rerunfailures")
def test_an_attempt_without_a_check_replaces_one_with(project):
    project.tests(
        FLAKY
        + """
def test_flaky(gradcheck):
    if attempt() == 1:
        gradcheck(square, X, grad=wrong)
"""
    )
    project.run("--reruns=1").assert_outcomes(passed=1)
    assert attempts(project) == [(1, "rerun", ["fail"]), (2, "passed", [])]
    assert project.totals() == {}


@pytest.mark.usefixtures("rerunfailures")
def test_an_attempt_that_checks_nothing_is_vacuous_whatever_went_before(project):
    project.tests(
        FLAKY
        + """
@pytest.mark.gradcheck
def test_flaky(gradcheck):
    if attempt() == 1:
        gradcheck(square, X, grad=wrong)
"""
    )
    project.run("--reruns=1").assert_outcomes(failed=1)
    assert attempts(project) == [(1, "rerun", ["fail"]), (2, "failed", ["vacuous"])]


@pytest.mark.usefixtures("needs_nine")
def test_subtests_neither_lose_nor_double_results(project, way):
    project.tests(
        """
        def test_parts(subtests):
            assert_gradient(square, X, grad=right, label="before")
            for name, grad in {"one": right, "two": wrong, "three": right}.items():
                with subtests.test(name):
                    assert_gradient(square, X, grad=grad, label=name)
            assert_gradient(square, X, grad=right, label="after")
        """
    )
    run = project.run(*way)
    assert run.ret == pytest.ExitCode.TESTS_FAILED
    labels = [(result["label"], result["verdict"]) for result in project.results()]
    assert labels == [
        ("before", "pass"),
        ("one", "pass"),
        ("two", "fail"),
        ("three", "pass"),
        ("after", "pass"),
    ]
    assert project.totals() == {"checks": 5, "pass": 4, "fail": 1}
    run.stdout.fnmatch_lines(
        [
            "_* test_parts ?two? _*",
            "E * pytest_gradcheck.GradCheckError: wrong gradient of two: x has the wrong sign",
            "SUBFAILED?two? test_sample.py::test_parts - *",
        ]
    )


def test_subtests_of_unittest_neither_lose_nor_double_results(project, way):
    project.tests(
        """
        import unittest

        class TestCase(unittest.TestCase):
            def test_parts(self):
                for name, grad in {"one": right, "two": wrong}.items():
                    with self.subTest(name):
                        assert_gradient(square, X, grad=grad, label=name)
        """
    )
    assert project.run(*way).ret == pytest.ExitCode.TESTS_FAILED
    labels = [(result["label"], result["verdict"]) for result in project.results()]
    assert labels == [("one", "pass"), ("two", "fail")]


@pytest.mark.usefixtures("needs_nine")
def test_a_check_in_a_subtest_is_a_check_of_the_marked_test(project):
    project.tests(
        """
        @pytest.mark.gradcheck
        def test_parts(subtests):
            with subtests.test("one"):
                assert_gradient(square, X, grad=right)
        """
    )
    assert project.run().ret == pytest.ExitCode.OK
    assert project.verdicts() == {"test_parts": ["pass"]}


@pytest.mark.usefixtures("rerunfailures")
@pytest.mark.usefixtures("needs_nine")
def test_only_the_subtests_of_the_last_attempt_count(project):
    project.tests(
        FLAKY
        + """
def test_parts(subtests):
    number = attempt()
    for name in ("one", "two"):
        with subtests.test(name):
            assert_gradient(square, X, grad=right if number == 2 else wrong)
"""
    )
    assert project.run("--reruns=1").ret == pytest.ExitCode.OK
    assert project.verdicts() == {"test_parts": ["fail", "fail", "pass", "pass"]}
    assert project.totals() == {"checks": 2, "pass": 2}
