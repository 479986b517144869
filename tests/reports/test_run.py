"""A run as one value: which attempts count, and what is written of the others."""

from pytest_gradcheck.reports import run as runs
from pytest_gradcheck.results import VERDICTS, Result


def attempt(nodeid, number, *verdicts, **fields):
    results = tuple(
        Result(check="gradient", label="f", verdict=verdict, headline="h") for verdict in verdicts
    )
    return runs.Test(nodeid=nodeid, attempt=number, results=results, **fields)


def verdicts(run):
    return [result.verdict for result in run.results]


def test_without_reruns_every_test_counts():
    tests = (attempt("a", 1, "pass", "fail"), attempt("b", 1, "vacuous"))
    run = runs.Run(tests=tests)
    assert run.final == tests
    assert verdicts(run) == ["pass", "fail", "vacuous"]


def test_the_last_attempt_of_each_test_counts():
    run = runs.Run(
        tests=(
            attempt("a", 1, "fail", outcome="rerun"),
            attempt("b", 1, "undecided"),
            attempt("a", 2, "fail", outcome="rerun"),
            attempt("a", 3, "pass"),
        )
    )
    assert [(test.nodeid, test.attempt) for test in run.final] == [("b", 1), ("a", 3)]
    assert verdicts(run) == ["undecided", "pass"]


def test_attempts_may_arrive_in_any_order():
    run = runs.Run(tests=(attempt("a", 2, "pass"), attempt("a", 1, "fail", outcome="rerun")))
    assert verdicts(run) == ["pass"]


def test_all_phases_of_the_last_attempt_count():
    run = runs.Run(
        tests=(
            attempt("a", 1, "fail", phase="setup"),
            attempt("a", 1, "fail", phase="call"),
            attempt("a", 2, "vacuous", phase="setup"),
            attempt("a", 2, "pass", phase="call"),
            attempt("a", 2, "undecided", phase="teardown"),
        )
    )
    assert verdicts(run) == ["vacuous", "pass", "undecided"]


def test_totals_count_the_last_attempts_and_every_attempt_is_listed():
    run = runs.Run(tests=(attempt("a", 1, *VERDICTS), attempt("a", 2, "pass", "pass", "fail")))
    plain = run.to_plain()
    assert plain["totals"] == {"checks": 3, "pass": 2, "fail": 1, "undecided": 0, "vacuous": 0}
    assert [test["attempt"] for test in plain["tests"]] == [1, 2]


def test_an_empty_run():
    run = runs.Run()
    assert run.final == run.results == ()
    assert runs.run_from_plain(run.to_plain()) == run
