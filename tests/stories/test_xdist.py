"""Results cross from workers to the controller, whatever becomes of the worker."""

import pytest

pytest.importorskip("xdist")

SUITE = """
@pytest.mark.parametrize("number", range(4))
def test_many(gradcheck, number):
    gradcheck(square, X + number, grad=right)
"""

BUILTINS = (dict, list, str, int, float, bool, type(None))


def types_in(value):
    """The types of a nested value and of everything in it."""
    inner = [*value, *value.values()] if type(value) is dict else value
    nested = inner if isinstance(inner, (list, tuple)) else ()
    return {type(value)}.union(*(types_in(item) for item in nested))


def test_results_on_a_report_are_builtins(project):
    # Anything else, an enum or a number of NumPy's, would end a run of xdist.
    project.tests(
        """
        def test_all():
            check_gradient(square, X, grad=right, label="NaN")
            check_gradient(square, X, grad=wrong, resolution=np.float64(0.5))
            check_gradient(island, X, grad=np.ones_like, seed=7)
            check_gradient(constant, X, grad=np.zeros_like)
            check_gradient(square, X.astype("float32"), grad=right)
            check_gradient(square, X, grad=lambda x: x[:2])
        """
    )
    run = project.run("-p", "no:xdist")
    run.assert_outcomes(passed=1)
    reports = run.reprec.getreports("pytest_runtest_logreport")
    (carried,) = [report.gradcheck for report in reports if hasattr(report, "gradcheck")]
    assert len(carried["results"]) == 6
    assert types_in(carried) <= set(BUILTINS)


def test_reports_of_tests_without_checks_carry_nothing(project):
    project.tests("def test_other():\n    pass")
    reports = project.run().reprec.getreports("pytest_runtest_logreport")
    assert len(reports) == 3
    assert not any(hasattr(report, "gradcheck") for report in reports)


def test_results_name_their_worker(project):
    project.tests(SUITE)
    project.run("-n", "2").assert_outcomes(passed=4)
    assert {test["worker"] for test in project.report()["tests"]} == {"gw0", "gw1"}


@pytest.mark.parametrize("way", [("-p", "no:xdist"), ("-n", "0")], ids=["no xdist", "n0"])
def test_without_workers_there_is_no_name(project, way):
    project.tests(SUITE)
    project.run(*way).assert_outcomes(passed=4)
    assert {test["worker"] for test in project.report()["tests"]} == {""}


def test_workers_give_the_same_report(project):
    project.tests(SUITE)

    def told(*way):
        project.run(*way).assert_outcomes(passed=4)
        for result in project.results():
            result["context"].pop("seconds")
            yield result

    assert list(told("-n", "2")) == list(told("-p", "no:xdist"))


def test_workers_write_and_print_nothing(project):
    project.tests(SUITE)
    run = project.run("-n", "2")
    lines = run.stdout.lines
    assert lines.count("4 checks: 4 passed") == 1
    assert sum(line.startswith("report: json in ") for line in lines) == 1


def test_a_crash_keeps_the_results_of_finished_tests(project):
    project.tests(
        """
        import os

        def test_1_before():
            assert_gradient(square, X, grad=wrong)

        def test_2_crash():
            assert_gradient(square, X, grad=right)
            os._exit(3)

        def test_3_after():
            assert_gradient(square, X, grad=right)
        """
    )
    run = project.run("-n", "1")
    run.assert_outcomes(passed=1, failed=2)
    assert project.verdicts() == {"test_1_before": ["fail"], "test_3_after": ["pass"]}
    assert [test["worker"] for test in project.report()["tests"]] == ["gw0", "gw1"]


def test_a_group_is_no_part_of_a_tests_name(project):
    # xdist appends "@group" to the node ids; seed and report must not change with it.
    project.tests(
        """
        @pytest.mark.xdist_group("pair")
        @pytest.mark.parametrize("number", range(2))
        def test_pair(gradcheck, number):
            gradcheck(square, X, grad=wrong)
        """
    )
    project.run("-p", "no:xdist", "-W", "ignore::pytest.PytestUnknownMarkWarning", "-o", "strict=0")
    alone = sorted(project.report()["tests"], key=lambda test: test["nodeid"])
    run = project.run("-n", "2", "--dist", "loadgroup")
    grouped = sorted(project.report()["tests"], key=lambda test: test["nodeid"])
    assert [test["nodeid"] for test in grouped] == [
        "test_sample.py::test_pair[0]",
        "test_sample.py::test_pair[1]",
    ]
    seeds = [test["results"][0]["context"]["seed"] for test in alone]
    assert [test["results"][0]["context"]["seed"] for test in grouped] == seeds
    assert len(set(seeds)) == 2
    run.stdout.no_fnmatch_line("reproduce: *@pair*")
