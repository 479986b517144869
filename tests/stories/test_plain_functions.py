"""The verbs as plain functions: wherever they are called in a test, the report has them."""

import pytest

PLAIN = """
def test_plain():
    assert_gradient(square, X, grad=right)

def test_asked_only():
    result = check_gradient(square, X, grad=wrong)
    assert result.verdict == "fail"
    assert result.headline == "wrong gradient of square: x has the wrong sign"

def test_many():
    assert assert_gradient(square, X, grad=right, label="one").label == "one"
    assert_gradient(square, X, grad=right, label="two")
"""

UNITTEST = """
import unittest

class TestCase(unittest.TestCase):
    def setUp(self):
        assert_gradient(square, X, grad=right, label="set up")

    def test_unittest_right(self):
        assert_gradient(square, X, grad=right)

    def test_unittest_wrong(self):
        assert_gradient(square, X, grad=wrong)

    @pytest.mark.gradcheck(resolution=0.5)
    def test_unittest_marked(self):
        assert_gradient(square, X, grad=right)

    @pytest.mark.gradcheck
    def test_unittest_raises(self):
        with self.assertRaisesRegex(AssertionError, "^wrong gradient of square: x has the wrong"):
            assert_gradient(square, X, grad=wrong)
"""

ABSL = """
from absl.testing import absltest, parameterized

class AbslTest(parameterized.TestCase):
    @parameterized.parameters(1.0, 2.0)
    def test_absl_right(self, factor):
        assert_gradient(square, factor * X, grad=right)

    def test_absl_wrong(self):
        assert_gradient(square, X, grad=wrong)
"""


def test_every_kind_of_test_is_in_the_same_report(project, way):
    pytest.importorskip("absl.testing.absltest", reason="absl-py is not installed")
    project.tests(PLAIN, "test_plain.py")
    project.tests(UNITTEST, "test_unittest.py")
    project.tests(ABSL, "test_absl.py")
    run = project.run(*way)
    run.assert_outcomes(passed=8, failed=2)
    assert project.verdicts() == {
        "test_plain": ["pass"],
        "test_asked_only": ["fail"],
        "test_many": ["pass", "pass"],
        "test_unittest_right": ["pass", "pass"],
        "test_unittest_wrong": ["pass", "fail"],
        "test_unittest_marked": ["pass", "pass"],
        "test_unittest_raises": ["pass", "fail"],
        "test_absl_right0": ["pass"],
        "test_absl_right1": ["pass"],
        "test_absl_wrong": ["fail"],
    }
    assert project.totals() == {"checks": 15, "pass": 11, "fail": 4}


def test_a_result_knows_its_test_and_its_line(project):
    project.tests(UNITTEST, "test_unittest.py")
    project.run("-k", "wrong")
    context = project.results()[-1]["context"]
    assert context["test"] == "test_unittest.py::TestCase::test_unittest_wrong"
    assert context["location"] == "test_unittest.py:17"


def test_a_check_without_limits_of_its_own_takes_those_of_the_test(project):
    project.tests(UNITTEST, "test_unittest.py")
    project.run("-k", "marked").assert_outcomes(passed=1, deselected=3)
    assert [result["limits"][0]["value"] for result in project.results()] == [0.5, 0.5]


def test_a_check_outside_every_test_is_recorded_nowhere(project):
    project.tests("assert_gradient(square, X, grad=right)\ndef test_other():\n    pass")
    run = project.run_alone(f"--gradcheck-report=json:{project.report_path}")
    run.assert_outcomes(passed=1)
    assert project.totals() == {}


def test_the_functions_work_without_pytest(project):
    project.file(
        "script.py",
        """
        from pytest_gradcheck import GradCheckError, assert_gradient, check_gradient
        from sample import X, right, square, wrong

        print(check_gradient(square, X, grad=right).verdict)
        try:
            assert_gradient(square, X, grad=wrong)
        except GradCheckError as error:
            lines = str(error).splitlines()
            print(error.result.verdict, lines[0], lines[-1], sep="; ")
        """,
    )
    run = project.pytester.runpython("script.py")
    assert run.ret == 0
    run.stdout.fnmatch_lines(
        [
            "pass",
            "fail; wrong gradient of square: x has the wrong sign; reproduce: call it with seed=*",
        ],
        consecutive=True,
    )


def test_a_check_in_a_thread_is_recorded(project):
    project.tests(
        """
        from concurrent.futures import ThreadPoolExecutor
        from pytest_gradcheck import assert_gradient

        @pytest.mark.gradcheck
        def test_threads():
            with ThreadPoolExecutor(2) as pool:
                done = [pool.submit(assert_gradient, square, X, grad=right) for _ in range(3)]
            assert all(future.result().verdict == "pass" for future in done)
        """
    )
    project.run().assert_outcomes(passed=1)
    assert len(project.results()) == 3
